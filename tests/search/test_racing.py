"""The rule of a race, its error probability, and searches whose subnets race."""

import dataclasses
import json

import numpy as np
import pytest
import torch

from search.cache import EvaluationCache
from search.config import RacingConfig, SearchConfig, Target
from search.evaluator import Job, SupernetEvaluator
from search.executor import LocalExecutor
from search.measurer import Measurer, Task, divergences, float_reference
from search.racing import clearly_no_closer, clearly_no_improvement, estimated_accuracy, estimated_kl, racing_of
from search.run import run_search
from supernet.evaluate import evaluate
from supernet.functional import Observer
from supernet.standalone import extract
from supernet.stores import fastest_precision
from supernet.vit import unquantized

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


def divergence_pair(rng, *, gain, spread, incumbent=0.05):
    """Divergences of an incumbent and of a candidate that is closer to floats by the share `gain`, (IMAGES,) each.

    They are log-normal, as those of real networks about are, and the same images are hard for both.
    """
    hard = rng.normal(size=IMAGES)
    theirs, ours = (np.exp(hard + spread * rng.normal(size=IMAGES)) for _ in range(2))
    theirs *= incumbent / theirs.mean()
    ours *= (1 - gain) * theirs.mean() / ours.mean()
    return ours.astype(np.float32), theirs.astype(np.float32)


def further(ours, theirs, *, looks=LOOKS, **settings):
    error = settings.pop("error") / len(looks)
    return any(clearly_no_closer(ours[:n], theirs, error=error, **settings) for n in looks)


@pytest.mark.parametrize("spread", [0.1, 0.5, 1.0])
@pytest.mark.parametrize("error", [0.3, 0.1])
def test_a_closer_subnet_is_dropped_with_at_most_the_stated_probability(spread, error):
    rng = np.random.default_rng(0)
    lost = 0
    for _ in range(600):
        ours, theirs = divergence_pair(rng, gain=0.02, spread=spread)
        lost += further(ours, theirs, margin=0.0199, error=error)
    assert lost / 600 <= error + 3 * np.sqrt(error * (1 - error) / 600)


def test_a_subnet_that_is_further_away_is_dropped_early():
    rng = np.random.default_rng(0)
    pairs = [divergence_pair(rng, gain=-0.3, spread=0.3) for _ in range(50)]
    assert all(further(ours, theirs, looks=(128,), margin=0.003, error=0.1) for ours, theirs in pairs)


def test_divergences_by_hand():
    theirs = np.full(100, 0.1, dtype=np.float32)
    ours = np.tile(np.array([0.1, 0.3], dtype=np.float32), 10)
    # mean 0.1 above, standard deviation 0.1026, so t = 0.1 / (0.1026 * sqrt(0.8 / 20)) = 4.873 with 19 degrees
    assert clearly_no_closer(ours, theirs, margin=0.0, error=6e-5)
    assert not clearly_no_closer(ours, theirs, margin=0.0, error=4e-5)
    assert clearly_no_closer(ours, theirs, margin=0.1, error=4e-5)
    assert not clearly_no_closer(ours[:15], theirs, margin=0.0, error=0.4)
    assert not clearly_no_closer(theirs[:50], theirs, margin=0.0, error=0.1)
    assert clearly_no_closer(theirs[:50], theirs, margin=0.01, error=0.1)
    assert estimated_kl(ours, theirs) == pytest.approx(0.2)
    theirs[:20] = 5.0
    assert estimated_kl(ours, theirs) == pytest.approx(0.2 * 0.2)  # the other images have at least 0


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
    """An evaluator of the supernet; `one(subnet, incumbent)` asks it for a single outcome."""

    def make(
        file="evaluations.jsonl",
        batch_size=60,
        checkpoint="c",
        racing=None,
        signal="accuracy",
        precision="float32",
        wrap=None,
    ):
        key = {"checkpoint": checkpoint, "data": "d", "batch_size": batch_size, "signal": signal}
        cache = EvaluationCache(tmp_path / file, **key, precision=precision)
        exact = None if precision == "float32" else EvaluationCache(tmp_path / file, **key)
        reference = None
        if signal == "kl":
            reference = float_reference(supernet, split, batch_size=batch_size, progress=lambda *_: None)
        measure = Measurer(
            supernet, split, batch_size=batch_size, precision=precision, reference=reference, racing=racing
        )
        executor = LocalExecutor(wrap(measure) if wrap else measure)
        split.batches_given = 0
        return SupernetEvaluator(executor, cache, exact=exact, racing=racing)

    return make


def one(evaluator, subnet, incumbent=None):
    (outcome,) = evaluator.outcomes([Job(subnet=subnet, incumbent=incumbent)])
    return outcome


RACING = RacingConfig(images=1, margin=0.02)


@pytest.fixture(params=["accuracy", "kl"])
def signal(request):
    return request.param


@pytest.fixture
def search(space, cost_model, bounds, make_evaluator, signal, tmp_path):
    def run(journal, file="evaluations.jsonl", wrap=None, precision="float32", **settings):
        spread = bounds.slowest_ms - bounds.fastest_ms
        targets = tuple(Target(latency_ms=bounds.fastest_ms + share * spread) for share in (0.4, 1.0))
        settings = {"evaluations": 30, "population": 10, "racing": RACING, "signal": signal} | settings
        return run_search(
            space=space,
            model=cost_model,
            config=SearchConfig(targets=targets, **settings),
            evaluator=make_evaluator(file, racing=settings["racing"], signal=signal, precision=precision, wrap=wrap),
            journal=tmp_path / journal,
            seed=0,
            progress=lambda done, total, text: None,
        )

    return run


def found(result):
    return result.trials, result.choices, result.front, result.curve


def lines_of(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_an_evaluator_measures_what_the_extracted_module_does(supernet, split, make_evaluator):
    evaluator = make_evaluator()
    subnet = supernet.space.smallest()
    expected = evaluate(extract(supernet, subnet), split, batch_size=60)
    assert one(evaluator, subnet).evaluation == expected
    split.batches_given = 0
    assert one(evaluator, subnet).evaluation == expected == one(make_evaluator(), subnet).evaluation
    assert split.batches_given == 0
    assert one(make_evaluator(checkpoint="other"), subnet).evaluation == expected
    assert split.batches_given == 8
    assert one(make_evaluator(batch_size=48), subnet).evaluation.accuracy == expected.accuracy
    assert split.batches_given == 10


def test_a_divergence_is_that_of_the_shares_of_classes(supernet, split, make_evaluator):
    evaluator, subnet = make_evaluator(signal="kl"), supernet.space.smallest()
    with torch.no_grad():
        p = supernet(split.images, supernet.space.largest(), Observer(quantize=False), weights=unquantized).softmax(1)
        q = extract(supernet, subnet)(split.images).softmax(1)
    outcome = one(evaluator, subnet)
    assert outcome.kl == pytest.approx((p * (p / q).log()).sum(dim=1).mean().item(), rel=1e-4)
    assert outcome.evaluation == evaluate(extract(supernet, subnet), split, batch_size=60)
    # by hand: 0.5 ln(0.5 / 0.25) + 0.5 ln(0.5 / 0.75)
    reference, logits = torch.tensor([[0.5, 0.5]]).log(), torch.tensor([[1.0, 3.0]]).log() + 7
    assert divergences(reference, logits).item() == pytest.approx(0.5 * np.log(2) + 0.5 * np.log(2 / 3))
    assert divergences(reference, reference).item() == 0


def test_accuracies_do_not_answer_for_divergences(supernet, split, make_evaluator):
    subnet = supernet.space.smallest()
    accuracy = one(make_evaluator(), subnet)
    assert accuracy.kl is None
    by_kl = one(make_evaluator(signal="kl"), subnet)
    assert split.batches_given == 8
    assert one(make_evaluator(signal="kl"), subnet) == by_kl
    assert one(make_evaluator(), subnet).evaluation == by_kl.evaluation == accuracy.evaluation
    assert split.batches_given == 0
    other = supernet.space.largest()
    by_kl = one(make_evaluator(signal="kl"), other)
    assert one(make_evaluator(), other).evaluation == by_kl.evaluation
    assert split.batches_given == 0


def test_small_splits_and_null_mean_no_race():
    def races(**settings):
        return racing_of(SearchConfig(targets=(Target(fps=1),), **settings), images=480)

    assert races(racing=None) is None
    assert races(racing=RacingConfig(images=481)) is None
    assert races(racing=RacingConfig(images=480)) is not None
    assert races(racing=RacingConfig(images=481), signal="kl") is not None
    assert races(racing=None, signal="kl") is None


def test_a_race_ends_early_with_an_estimate_or_is_a_whole_evaluation(supernet, split, make_evaluator, signal):
    evaluator = make_evaluator(racing=RacingConfig(images=1), signal=signal)
    space = supernet.space
    one(evaluator, space.largest())  # right on about half of the images, and close to itself in floats
    split.batches_given = 0
    outcome = one(evaluator, space.smallest(), space.largest())
    assert not outcome.complete
    assert outcome.evaluation.images == 60 * split.batches_given < 480
    whole = one(evaluator, space.smallest())
    assert whole.complete
    assert outcome.evaluation.accuracy == pytest.approx(whole.evaluation.accuracy, abs=0.1)
    assert outcome.evaluation.loss == pytest.approx(whole.evaluation.loss, rel=0.2)
    assert outcome.kl == (None if signal == "accuracy" else pytest.approx(whole.kl, rel=0.2))
    best = one(evaluator, space.largest(), space.smallest())
    assert best.complete
    assert best == one(evaluator, space.largest())
    # what is known beyond the end of a race does not change it
    assert one(evaluator, space.smallest(), space.largest()) == outcome


def test_a_search_drops_subnets_and_chooses_from_those_measured_in_full(search, signal, make_evaluator, tmp_path):
    result = search("trials.jsonl")
    rows = lines_of(tmp_path / "trials.jsonl")
    lost = [row for row in rows if not row.get("complete", True)]
    assert len(rows) == 30
    assert lost
    assert all(row["images"] < 480 for row in lost)
    assert all(row["images"] == 480 and "complete" not in row for row in rows if row not in lost)
    assert all(("val_kl" in row) == (signal == "kl") for row in rows)
    for trial in (*(choice.trial for choice in result.choices), *result.front.trials):
        assert trial.complete
    for choice in result.choices:
        whole = one(make_evaluator(signal=signal), choice.subnet)
        assert (choice.trial.val_accuracy, choice.trial.val_kl) == (whole.evaluation.accuracy, whole.kl)
        feasible = [trial for trial in result.trials if trial.latency_ms <= choice.limit_ms]
        assert choice.trial.score == max(trial.score for trial in feasible)


def test_finalists_known_by_estimates_are_measured_in_full(search):
    result = search("trials.jsonl", top=29)
    for choice in result.choices:
        assert len(choice.alternatives) > 8
        assert all(trial.complete for trial in (choice.trial, *choice.alternatives))


@pytest.mark.parametrize("signal", ["kl"])
def test_of_the_finalists_the_most_accurate_is_chosen(search):
    result = search("trials.jsonl", finalists=6, racing=dataclasses.replace(RACING, most_images=60))
    for choice in result.choices:
        feasible = [trial for trial in result.trials if trial.latency_ms <= choice.limit_ms]
        closest = sorted(feasible, key=lambda trial: trial.quality)[-6:]
        assert all(trial.complete for trial in closest)
        assert choice.trial.val_accuracy == max(trial.val_accuracy for trial in closest)
        assert choice.trial.score >= min(trial.score for trial in closest)


@pytest.mark.parametrize("signal", ["kl"])
def test_divergences_are_measured_on_so_many_images_at_most(search, tmp_path):
    search("trials.jsonl", racing=dataclasses.replace(RACING, most_images=100))
    rows = lines_of(tmp_path / "trials.jsonl")
    assert {row["images"] for row in rows[:10]} == {480}  # there is nothing to race against
    assert {row["images"] for row in rows[10:]} == {60, 120}


@pytest.mark.skipif(fastest_precision(torch.device("cpu")) != "int8", reason="this CPU does not multiply int8 fast")
def test_what_is_chosen_is_measured_in_float32(search, split, signal, make_evaluator):
    result = search("trials.jsonl", precision="int8")
    exact, codes = make_evaluator(signal=signal), make_evaluator(signal=signal, precision="int8")
    for choice in result.choices:
        whole, close = one(exact, choice.subnet), one(codes, choice.subnet)
        assert (choice.trial.val_accuracy, choice.trial.val_loss) == (whole.evaluation.accuracy, whole.evaluation.loss)
        assert close.evaluation.loss == pytest.approx(whole.evaluation.loss, rel=1e-2)
    assert split.batches_given == 0  # both are in the file


@pytest.mark.parametrize(("stop", "keep_cache"), [(3, True), (17, False), (25, True)])
def test_an_interrupted_race_is_replayed(search, tmp_path, stop, keep_cache):
    whole = search("whole.jsonl", "whole-evaluations.jsonl")
    left = stop

    def stopping(measure):
        def wrapped(task: Task):
            nonlocal left
            if left == 0:
                raise KeyboardInterrupt
            left -= 1
            return measure(task)

        return wrapped

    with pytest.raises(KeyboardInterrupt):
        search("stopped.jsonl", "stopped-evaluations.jsonl", wrap=stopping)
    cache = tmp_path / "stopped-evaluations.jsonl"
    with cache.open("a") as file:
        file.write('{"subnet": "a')  # a kill in the middle of a line
    if not keep_cache:
        cache.unlink()
    resumed = search("stopped.jsonl", "stopped-evaluations.jsonl")
    assert found(resumed) == found(whole)
    assert (tmp_path / "stopped.jsonl").read_bytes() == (tmp_path / "whole.jsonl").read_bytes()
    if keep_cache:
        assert cache.read_bytes() == (tmp_path / "whole-evaluations.jsonl").read_bytes()


def test_what_is_in_the_cache_does_not_change_a_search(search, signal, split, make_evaluator, supernet):
    cold = search("cold.jsonl")
    subnets = [supernet.space.decode(np.array(trial.genotype)) for trial in cold.trials]
    list(make_evaluator(signal=signal).outcomes([Job(subnet=subnet) for subnet in subnets]))  # now all are known
    assert found(search("warm.jsonl")) == found(cold)
    assert split.batches_given == 0
