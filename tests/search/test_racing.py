"""The rule of a race, its error probability, and searches whose subnets race."""

import json

import numpy as np
import pytest
import torch

from search.cache import EvaluationCache
from search.config import RacingConfig, SearchConfig, Target
from search.evaluator import SupernetEvaluator
from search.racing import clearly_no_improvement, estimated_accuracy
from search.run import run_search
from supernet.evaluate import evaluate
from supernet.standalone import extract

IMAGES = 2048
LOOKS = (128, 256, 512, 1024)


def population(rng, *, count, accuracy, spread):
    """Subnets (count, IMAGES) that find the same images hard, with true accuracies around `accuracy`."""
    hardness = rng.normal(size=IMAGES)
    skill = rng.normal(accuracy, spread, size=count)
    return hardness + 0.3 * rng.normal(size=(count, IMAGES)) < skill[:, None]


def dropped(ours, theirs, *, margin, error):
    return any(clearly_no_improvement(ours[:n], theirs, margin=margin, error=error / len(LOOKS)) for n in LOOKS)


@pytest.mark.parametrize(
    ("disagreement", "margin"), [(0.2, 0.0), (0.2, 0.01), (0.02, 0.0), (0.02, 0.005), (0.003, 0.003), (0.01, 0.01)]
)
@pytest.mark.parametrize("error", [0.3, 0.1, 0.02])
def test_an_improvement_by_the_margin_is_dropped_with_at_most_the_stated_probability(disagreement, margin, error):
    rng = np.random.default_rng(0)
    differing = round(disagreement * IMAGES)
    won = int(np.ceil((differing + np.ceil(margin * IMAGES)) / 2))  # just the margin, in whole images
    ours, theirs = np.ones((2, IMAGES), dtype=bool)
    theirs[:won] = False
    ours[won:differing] = False
    assert ours.mean() - theirs.mean() >= margin
    orders = (rng.permutation(IMAGES) for _ in range(600))
    share = np.mean([dropped(ours[order], theirs[order], margin=margin, error=error) for order in orders])
    assert share <= error + 3 * np.sqrt(error * (1 - error) / 600)


def test_the_best_of_a_population_survives_and_most_others_do_not():
    rng = np.random.default_rng(0)
    lost = left = 0
    for _ in range(100):
        subnets = population(rng, count=20, accuracy=0.3, spread=0.2)
        best = subnets[subnets.mean(axis=1).argmax()]
        survivors = [s for s in subnets[1:] if not dropped(s, subnets[0], margin=0.0, error=0.1)]
        reached = max(subnets[0].mean(), *(s.mean() for s in survivors), 0)
        lost += reached < best.mean()
        left += len(survivors)
    assert lost <= 10
    assert left < 100 * 19 * 0.75


def test_by_hand():
    theirs = np.ones(1000, dtype=bool)
    ours = np.ones(100, dtype=bool)
    assert not clearly_no_improvement(ours, theirs, margin=0.0, error=0.05)
    # six lost of six: (6 - 1) / sqrt(6 * 0.9) = 2.15 standard deviations
    ours[:6] = False
    assert clearly_no_improvement(ours, theirs, margin=0.0, error=0.016)
    assert not clearly_no_improvement(ours, theirs, margin=0.0, error=0.0155)
    assert estimated_accuracy(ours, theirs) == pytest.approx(0.94)
    theirs[100:] = False  # all that are left may be right, no more are known to be
    assert estimated_accuracy(ours, theirs) == pytest.approx(0.094)


@pytest.mark.parametrize("settings", [{"error": 0}, {"error": 0.5}, {"margin": -0.1}, {"margin": 1}, {"images": 0}])
def test_impossible_settings(settings):
    with pytest.raises(ValueError, match=f"racing: {next(iter(settings))} must"):
        RacingConfig(**settings)


class RandomSplit:
    """Noise images of which a network learns nothing; half of the labels are those of the largest subnet."""

    def __init__(self, supernet, images=480):
        generator = torch.Generator().manual_seed(0)
        self.images = torch.randn(images, 1, 8, 8, generator=generator)
        with torch.no_grad():
            self.labels = supernet(self.images, supernet.space.largest()).argmax(dim=1)
        self.labels[::2] = torch.randint(10, self.labels[::2].shape, generator=generator)
        self.batches_given = 0

    def __len__(self):
        return len(self.images)

    def batches(self, batch_size, *, device, limit=None):
        count = len(self) if limit is None else min(limit, len(self))
        for start in range(0, count, batch_size):
            self.batches_given += 1
            places = slice(start, min(start + batch_size, count))
            yield self.images[places].to(device), self.labels[places].to(device)


@pytest.fixture
def split(supernet):
    return RandomSplit(supernet)


@pytest.fixture
def make_evaluator(supernet, split, tmp_path):
    def make(file="evaluations.jsonl", batch_size=40, checkpoint="c"):
        cache = EvaluationCache(tmp_path / file, checkpoint=checkpoint, data="d", batch_size=batch_size)
        return SupernetEvaluator(supernet, split, batch_size=batch_size, cache=cache)

    return make


@pytest.fixture
def search(space, cost_model, bounds, tmp_path):
    def run(evaluator, journal, **settings):
        racing = RacingConfig(images=1, margin=0.02)
        spread = bounds.slowest_ms - bounds.fastest_ms
        targets = tuple(Target(latency_ms=bounds.fastest_ms + share * spread) for share in (0.4, 1.0))
        return run_search(
            space=space,
            model=cost_model,
            config=SearchConfig(targets=targets, evaluations=40, population=10, racing=racing, **settings),
            evaluator=evaluator,
            journal=tmp_path / journal,
            seed=0,
            progress=lambda done, total, text: None,
            race=evaluator.racing(racing),
        )

    return run


def found(result):
    return result.trials, result.choices, result.front, result.curve


def lines_of(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_an_evaluator_measures_what_the_extracted_module_does(supernet, split, make_evaluator):
    evaluator = make_evaluator()
    subnet = supernet.space.smallest()
    expected = evaluate(extract(supernet, subnet), split, batch_size=40)
    assert evaluator(subnet) == expected
    split.batches_given = 0
    assert evaluator(subnet) == expected == make_evaluator()(subnet)
    assert split.batches_given == 0
    assert make_evaluator(checkpoint="other")(subnet) == expected
    assert make_evaluator(batch_size=48)(subnet).accuracy == expected.accuracy
    assert split.batches_given == 12 + 10


def test_small_splits_and_null_mean_no_race(make_evaluator):
    evaluator = make_evaluator()
    assert evaluator.racing(None) is None
    assert evaluator.racing(RacingConfig(images=481)) is None
    assert evaluator.racing(RacingConfig(images=480)) is not None


def test_a_race_ends_early_with_an_estimate_or_is_a_whole_evaluation(supernet, split, make_evaluator):
    evaluator = make_evaluator()
    space = supernet.space
    race = evaluator.racing(RacingConfig(images=1))
    evaluator(space.largest())  # right on about half of the images
    split.batches_given = 0
    outcome = race(space.smallest(), space.largest())
    assert not outcome.complete
    assert outcome.evaluation.images == 40 * split.batches_given < 480
    whole = evaluator(space.smallest())
    assert outcome.evaluation.accuracy == pytest.approx(whole.accuracy, abs=0.1)
    assert outcome.evaluation.loss == pytest.approx(whole.loss, rel=0.2)
    outcome = race(space.largest(), space.smallest())
    assert outcome.complete
    assert outcome.evaluation == evaluator(space.largest())
    # what is known beyond the end of a race does not change it
    again = race(space.smallest(), space.largest())
    assert not again.complete
    assert again.evaluation.images < 480


def test_a_search_drops_subnets_and_chooses_from_those_measured_in_full(search, split, make_evaluator, tmp_path):
    evaluator = make_evaluator()
    result = search(evaluator, "trials.jsonl")
    rows = lines_of(tmp_path / "trials.jsonl")
    lost = [row for row in rows if not row.get("complete", True)]
    assert len(rows) == 40
    assert lost
    assert all(row["images"] < 480 for row in lost)
    assert all(row["images"] == 480 and "complete" not in row for row in rows if row not in lost)
    for trial in (*(choice.trial for choice in result.choices), *result.front.trials):
        assert trial.complete
    for choice in result.choices:
        assert choice.trial.val_accuracy == evaluator(choice.subnet).accuracy


def test_finalists_known_by_estimates_are_measured_in_full(search, make_evaluator):
    result = search(make_evaluator(), "trials.jsonl", top=39)
    for choice in result.choices:
        assert len(choice.alternatives) > 10
        assert all(trial.complete for trial in (choice.trial, *choice.alternatives))


@pytest.mark.parametrize("stop", [3, 17, 30])
@pytest.mark.parametrize("keep_cache", [True, False])
def test_an_interrupted_race_is_replayed(search, make_evaluator, tmp_path, stop, keep_cache):
    whole = search(make_evaluator("whole-evaluations.jsonl"), "whole.jsonl")
    stopped = make_evaluator("stopped-evaluations.jsonl")
    left = stop

    def stopping(measure):
        def wrapped(*arguments):
            nonlocal left
            if left == 0:
                raise KeyboardInterrupt
            left -= 1
            return measure(*arguments)

        return wrapped

    class Stopping:
        __call__ = staticmethod(stopping(stopped))

        @staticmethod
        def racing(config):
            return stopping(stopped.racing(config))

    with pytest.raises(KeyboardInterrupt):
        search(Stopping(), "stopped.jsonl")
    cache = tmp_path / "stopped-evaluations.jsonl"
    with cache.open("a") as file:
        file.write('{"subnet": "a')  # a kill in the middle of a line
    if not keep_cache:
        cache.unlink()
    resumed = search(make_evaluator("stopped-evaluations.jsonl"), "stopped.jsonl")
    assert found(resumed) == found(whole)
    assert (tmp_path / "stopped.jsonl").read_bytes() == (tmp_path / "whole.jsonl").read_bytes()
    if keep_cache:
        assert cache.read_bytes() == (tmp_path / "whole-evaluations.jsonl").read_bytes()


def test_what_is_in_the_cache_does_not_change_a_search(search, split, make_evaluator, supernet):
    cold = search(make_evaluator(), "cold.jsonl")
    evaluator = make_evaluator()
    for trial in cold.trials:  # now they are all known in full
        evaluator(supernet.space.decode(np.array(trial.genotype)))
    split.batches_given = 0
    assert found(search(make_evaluator(), "warm.jsonl")) == found(cold)
    assert split.batches_given == 0
