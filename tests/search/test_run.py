import json

import pytest

from hwmodel.errors import DamagedInputError, UsageError
from search.config import HardwareConfig, SearchConfig, Target
from search.evaluator import Direct
from search.run import run_search


def silent(done, total, text):
    pass


@pytest.fixture
def start(space, cost_model, bounds, evaluator, tmp_path):
    def search(*shares, targets=None, journal=tmp_path / "trials.jsonl", measure=evaluator, seed=0, **settings):
        spread = bounds.slowest_ms - bounds.fastest_ms
        targets = targets or tuple(Target(latency_ms=bounds.fastest_ms + share * spread) for share in shares)
        return run_search(
            space=space,
            model=cost_model,
            config=SearchConfig(**({"targets": targets, "evaluations": 90, "population": 15} | settings)),
            evaluator=Direct(measure),
            journal=journal,
            seed=seed,
            progress=silent,
        )

    return search


def test_each_target_gets_the_best_subnet_that_meets_it(start, evaluator):
    result = start(0.2, 0.5, 1.0)
    assert len(result.trials) == 90 == len(set(evaluator.seen))
    accuracies = []
    for choice in result.choices:
        feasible = [t for t in result.trials if t.latency_ms <= choice.limit_ms]
        assert choice.trial.val_accuracy == max(t.val_accuracy for t in feasible)
        assert choice.trial.latency_ms <= choice.limit_ms
        assert choice.subnet.digest == choice.trial.digest
        accuracies.append(choice.trial.val_accuracy)
    assert accuracies == sorted(accuracies)
    assert 0 < result.hypervolume < 1


def test_evolution_beats_random_search(start, tmp_path):
    volumes = {}
    for algorithm in ("evolution", "random"):
        runs = [
            start(0.3, 0.6, 1.0, algorithm=algorithm, seed=seed, journal=tmp_path / f"{algorithm}{seed}")
            for seed in range(5)
        ]
        volumes[algorithm] = sum(run.hypervolume for run in runs) / 5
    assert volumes["evolution"] > volumes["random"]


def test_an_impossible_target_is_answered_without_evaluation(start, bounds, evaluator):
    result = start(targets=(Target(latency_ms=bounds.fastest_ms * 0.9), Target(fps=1e9)))
    assert evaluator.seen == []
    for choice in result.choices:
        assert choice.trial is None
        assert choice.nearest_latency_ms == bounds.fastest_ms
        assert "no subnet of the space meets" in choice.reason


def test_impossible_and_possible_targets_together(start, bounds):
    result = start(targets=(Target(fps=1e9), Target(latency_ms=bounds.slowest_ms)))
    assert result.choices[0].trial is None
    assert result.choices[1].trial is not None


def test_a_target_exactly_at_the_fastest_subnet_is_met(start, bounds):
    result = start(targets=(Target(latency_ms=bounds.fastest_ms),))
    assert result.choices[0].trial.latency_ms == bounds.fastest_ms


def test_the_journal_is_replayed_after_an_interruption(start, evaluator, tmp_path):
    whole = start(0.3, 0.8, journal=tmp_path / "whole.jsonl")

    class Stopping:
        left = 40

        def __call__(self, subnet):
            if self.left == 0:
                raise KeyboardInterrupt
            self.left -= 1
            return evaluator(subnet)

    journal = tmp_path / "stopped.jsonl"
    with pytest.raises(KeyboardInterrupt):
        start(0.3, 0.8, journal=journal, measure=Stopping())
    assert len(journal.read_text().splitlines()) == 40
    with journal.open("a") as file:
        file.write('{"index": 40, "dig')  # a kill in the middle of a line
    evaluator.seen.clear()
    resumed = start(0.3, 0.8, journal=journal)
    assert len(evaluator.seen) == 50
    assert resumed.trials == whole.trials
    assert resumed.choices == whole.choices
    assert [json.loads(line)["index"] for line in journal.read_text().splitlines()] == list(range(90))


def test_a_damaged_journal_is_named_with_its_line(start, tmp_path):
    journal = tmp_path / "bad.jsonl"
    journal.write_text('{"digest": "a"}\n')
    with pytest.raises(DamagedInputError, match=r"bad\.jsonl:1: is not a trial"):
        start(0.5, journal=journal)


def test_unknown_algorithms_suggest_the_nearest(start):
    with pytest.raises(UsageError, match="unknown algorithm 'evolutoin': did you mean 'evolution'"):
        start(0.5, algorithm="evolutoin")


@pytest.mark.parametrize("value", [0, -1, float("nan"), float("inf")])
@pytest.mark.parametrize("kind", ["latency_ms", "fps"])
def test_targets_must_be_positive_and_finite(kind, value):
    with pytest.raises(ValueError, match=f"{kind} must be positive and finite"):
        Target(**{kind: value})


def test_a_target_has_one_kind():
    for settings in ({}, {"latency_ms": 1, "fps": 1}):
        with pytest.raises(ValueError, match="either latency_ms or fps"):
            Target(**settings)
    assert Target(fps=50).limit_ms == 20


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"targets": ()}, "targets: the list is empty"),
        ({"evaluations": 0}, "evaluations must be at least 1"),
        ({"mutation_probability": 0}, r"mutation_probability must lie in \(0, 1\]"),
        ({"targets": (Target(latency_ms=20), Target(fps=50))}, "the same limit is given twice"),
    ],
)
def test_impossible_search_settings(settings, message):
    with pytest.raises(ValueError, match=message):
        SearchConfig(**({"targets": (Target(latency_ms=1),)} | settings))


def test_impossible_hardware_settings():
    with pytest.raises(ValueError, match="clock_mhz must be positive"):
        HardwareConfig(clock_mhz=float("nan"))
    with pytest.raises(ValueError, match="array must be two positive sizes"):
        HardwareConfig(array=(0, 8))
