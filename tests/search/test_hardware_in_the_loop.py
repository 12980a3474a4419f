"""Accelerators of their own for subnets, and one that targets share, against the enumeration of grids."""

import dataclasses
import json
import math

import numpy as np
import pytest

from hwmodel.cost import FpgaCostModel
from hwmodel.device import load_device
from hwmodel.errors import InfeasibleError
from hwmodel.explore import explore
from search.bounds import extremes, figures_of, latency_bounds
from search.config import HardwareConfig, Limits, SearchConfig, Target
from search.evaluator import Direct
from search.limits import Feasibility, costs_function, limited_device
from search.profile import profile
from search.run import run_search
from search.sharing import shared_model
from search.shortlist import adaptive_model
from search.trial import Trial, best_under
from supernet.lowering import lower, lower_many

DEVICE = load_device("zcu102")
#: holds few designs, and the fewer the larger the subnet: so fits, not only cycles, decide
TIGHT = dataclasses.replace(DEVICE, bram18=62, lut=60_000)


def model_of(space, *, limited=DEVICE, **hardware):
    return adaptive_model(space, HardwareConfig(accelerator="per_subnet", **hardware), DEVICE, limited=limited)


def whole_grid(workload, device, *, limit=1, **hardware):
    """The best designs of all that hold the workload, by the definition; none if none does."""
    try:
        return explore([workload], device, limit=limit, **hardware)
    except InfeasibleError:
        return ()


@pytest.fixture
def whole(make_space):
    """A space small enough to enumerate, and all of its genotypes."""
    space = make_space(depth=(1, 2), num_heads=(1, 3), mlp_ratio=(1.5, 2), high_precision_ratio=(0, 0.4))
    genotypes = np.array(list(np.ndindex(*space.gene_sizes)), dtype=np.int64)
    return space, np.unique(space.canonical(genotypes), axis=0)


def few(whole, rng, count):
    space, genotypes = whole
    return space, genotypes[rng.permutation(len(genotypes))[:count]]


@pytest.mark.parametrize(
    ("device", "hardware"),
    [
        (DEVICE, {"array": (4, 8)}),
        (DEVICE, {"array": (8, 8), "activations": "ddr"}),
        (TIGHT, {"backend": "dual"}),
        (DEVICE, {}),
    ],
)
def test_every_subnet_gets_the_best_design_of_the_whole_grid(whole, rng, device, hardware):
    space, genotypes = few(whole, rng, 60 if "array" in hardware else 12)
    model = model_of(space, limited=device, **hardware)
    batch = model.estimate_many(lower_many(space.arrays(genotypes)))
    assert len(model.shortlist) < model.grid_size
    for i, genotype in enumerate(genotypes):
        workload = lower(space.decode(genotype))
        best, *_ = whole_grid(workload, device, **hardware)
        assert batch.fits[i]
        assert batch.cycles[i] == best.cycles[0]
        cost = FpgaCostModel(DEVICE, best.accelerator).estimate(workload)
        assert (batch.latency_ms[i], batch.energy_mj[i]) == pytest.approx((cost.latency_ms, cost.energy_mj), rel=1e-12)
        assert model.accelerator_for(workload) == best.accelerator
        assert model.estimate(workload) == cost


def test_a_device_may_hold_some_subnets_alone(make_space, rng):
    space = make_space(image_size=(8, 32), embed_dim=(16, 48), head_dim=16)
    limited = dataclasses.replace(DEVICE, bram18=70, lut=60_000)
    model = model_of(space, limited=limited, backend="dual")
    genotypes = space.sample(rng, 16)
    fits = model.estimate_many(lower_many(space.arrays(genotypes))).fits
    assert fits.any()
    assert not fits.all()
    for genotype, fit in zip(genotypes, fits, strict=True):
        assert bool(whole_grid(lower(space.decode(genotype)), limited, backend="dual")) == fit
    assert np.isinf(costs_function(space, model, Limits())(genotypes).overrun[~fits]).all()
    with pytest.raises(InfeasibleError, match="none can be shared by all"):
        model.holding_all()
    bounds = latency_bounds(space, model)
    assert model.estimate(lower(space.decode(bounds.fastest))).latency_ms == bounds.fastest_ms


def test_nothing_fits_a_device_without_block_ram(space):
    with pytest.raises(InfeasibleError, match="no accelerator fits zcu102"):
        model_of(space, limited=limited_device(DEVICE, Limits(dsp=1)))


def test_bounds_and_extremes_are_those_of_the_enumerated_space(whole):
    space, genotypes = whole
    for limited in (DEVICE, TIGHT):
        model = model_of(space, limited=limited, backend="dual")
        every = figures_of(space, model, genotypes)
        bounds = latency_bounds(space, model)
        assert bounds.fastest_ms == every["latency_ms"].min()
        assert bounds.slowest_ms == every["latency_ms"].max()
        energy = extremes(space, model, "energy_mj")
        assert energy.bound <= every["energy_mj"].min() * (1 + 1e-12)
        assert energy.least <= energy.bound * 1.2
        assert extremes(space, model, "weight_bytes").least == every["weight_bytes"].min()


def test_limits_hold_on_the_subnets_own_accelerator(space, rng):
    model, genotypes = model_of(space), space.sample(rng, 8)
    estimates = [model.estimate(lower(space.decode(genotype))) for genotype in genotypes]
    limits = Limits(energy_mj=float(np.median([estimate.energy_mj for estimate in estimates])))
    costs = costs_function(space, model, limits)(genotypes)
    expected = [estimate.energy_mj / limits.energy_mj for estimate in estimates]
    np.testing.assert_allclose(costs.overrun, expected, rtol=1e-12)


def test_what_is_infeasible_is_proven_with_the_nearest_value(space):
    model = model_of(space)
    feasibility = Feasibility.of(space, model, Limits())
    nearest = feasibility.bounds.fastest_ms
    assert feasibility.reason(Target(latency_ms=nearest)) is None
    assert "no subnet of the space meets" in feasibility.reason(Target(latency_ms=nearest * 0.99))
    least = extremes(space, model, "energy_mj")
    broken = Feasibility.of(space, model, Limits(energy_mj=least.bound * 0.99))
    assert "search.limits.energy_mj" in broken.reason(Target(latency_ms=1e3))


def test_a_profile_says_which_accelerators_subnets_get(space):
    model = model_of(space)
    config = SearchConfig(targets=(Target(latency_ms=1.0),))
    document = profile(space, model, config, seed=0)
    assert document["accelerator"] is None
    assert document["accelerators"]["grid"] > 10_000 > document["accelerators"]["shortlist"]
    drawn = document["accelerators"]["drawn"]
    assert sum(row["share"] for row in drawn) == pytest.approx(1)
    assert document["resources"]["dsp"]["used"] >= drawn[0]["accelerator"]["array_rows"]
    assert json.loads(json.dumps(document)) == document


def trials_of(space, genotypes, accuracies):
    return [
        Trial(
            index=i,
            generation=0,
            digest=space.decode(genotype).digest,
            genotype=tuple(genotype.tolist()),
            val_accuracy=accuracy,
            val_loss=1 - accuracy,
            latency_ms=math.nan,  # on which hardware? no one may look at it
        )
        for i, (genotype, accuracy) in enumerate(zip(genotypes, accuracies, strict=True))
    ]


@pytest.mark.parametrize("energy", [None, 0.4])
def test_the_shared_design_is_the_best_of_the_whole_grid(space, rng, energy):
    model, genotypes = model_of(space, array=(4, 8)), space.sample(rng, 40)
    trials = trials_of(space, genotypes, rng.random(40).round(2).tolist())
    figures = figures_of(space, model, genotypes)
    limits = Limits(energy_mj=energy and float(np.quantile(figures["energy_mj"], energy)))
    limits_ms = np.quantile(figures["latency_ms"], [0.1, 0.4, 0.9]).tolist()

    def score(design):
        costs = costs_function(space, design, limits)(genotypes)
        kept = [
            dataclasses.replace(trial, latency_ms=float(ms))
            for trial, ms, over in zip(trials, costs.latency_ms, costs.overrun, strict=True)
            if over <= 1
        ]
        best = [best_under(kept, limit_ms) for limit_ms in limits_ms]
        return sum(found[0].val_accuracy for found in best if found)

    grid = whole_grid(lower(space.largest()), DEVICE, array=(4, 8), limit=10**6)
    chosen = shared_model(space, model, trials, limits, limits_ms)
    assert score(chosen) == max(score(FpgaCostModel(DEVICE, point.accelerator)) for point in grid)
    assert chosen.accelerator in {point.accelerator for point in grid}


def test_without_trials_the_shared_design_is_the_fixed_one(space):
    chosen = shared_model(space, model_of(space), [], Limits(), [1.0])
    assert chosen.accelerator == whole_grid(lower(space.largest()), DEVICE)[0].accelerator


@pytest.fixture(params=["per_subnet", "shared"])
def start(request, space, evaluator, tmp_path):
    model = model_of(space)
    bounds = latency_bounds(space, model)

    def search(*shares, targets=None, journal="trials.jsonl", measure=evaluator, **settings):
        spread = bounds.slowest_ms - bounds.fastest_ms
        targets = targets or tuple(Target(latency_ms=bounds.fastest_ms + share * spread) for share in shares)
        return run_search(
            space=space,
            model=model,
            config=SearchConfig(**({"targets": targets, "evaluations": 60, "population": 10} | settings)),
            evaluator=Direct(measure),
            journal=tmp_path / journal,
            seed=0,
            progress=lambda done, total, text: None,
            shared=request.param == "shared",
        )

    search.mode, search.bounds, search.model = request.param, bounds, model
    return search


@pytest.mark.parametrize("algorithm", ["evolution", "predictor", "nsga2", "random"])
def test_all_algorithms_search_in_all_modes(start, evaluator, space, algorithm):
    result = start(0.2, 0.5, 1.0, algorithm=algorithm)
    assert len(result.trials) == 60 == len(set(evaluator.seen)) == len(evaluator.seen)
    assert [trial.index for trial in result.trials] == list(range(60))
    workloads = [lower(choice.subnet) for choice in result.choices]
    for choice, workload in zip(result.choices, workloads, strict=True):
        feasible = [trial for trial in result.trials if trial.latency_ms <= choice.limit_ms]
        assert choice.trial.val_accuracy == max(trial.val_accuracy for trial in feasible)
        assert result.model.estimate(workload).latency_ms == choice.trial.latency_ms <= choice.limit_ms
    accelerators = {result.model.accelerator_for(workload) for workload in workloads}
    assert isinstance(result.model, FpgaCostModel) == (start.mode == "shared")
    assert len(accelerators) == 1 or start.mode == "per_subnet"
    for trial in result.trials[:: len(result.trials) // 4]:
        subnet = space.decode(np.array(trial.genotype))
        assert result.model.estimate(lower(subnet)).latency_ms == trial.latency_ms
    assert 0 < result.hypervolume < 1
    assert result.curve[-1] == (60, result.hypervolume)


def test_limits_are_kept_in_all_modes(start, space):
    energy = figures_of(space, start.model, space.sample(np.random.default_rng(1), 200))["energy_mj"]
    limit = float(np.quantile(energy, 0.3))
    result = start(0.3, 1.0, algorithm="evolution", limits=Limits(energy_mj=limit))
    assert len(result.trials) == 60
    for choice in result.choices:
        assert result.model.estimate(lower(choice.subnet)).energy_mj <= limit
    figures = figures_of(space, result.model, np.array([trial.genotype for trial in result.front.trials]))
    assert figures["energy_mj"].max() <= limit


def test_impossible_targets_are_answered_before_any_evaluation(start, evaluator):
    result = start(targets=(Target(latency_ms=start.bounds.fastest_ms * 0.9), Target(fps=1e9)))
    assert evaluator.seen == []
    for choice in result.choices:
        assert choice.trial is None
        assert choice.nearest_latency_ms == start.bounds.fastest_ms
        assert "no subnet of the space meets" in choice.reason


def test_a_target_that_only_an_own_accelerator_meets_is_named(start):
    result = start(targets=(Target(latency_ms=start.bounds.fastest_ms), Target(latency_ms=start.bounds.slowest_ms)))
    first, second = result.choices
    assert second.trial is not None
    if start.mode == "per_subnet":
        assert first.trial.latency_ms == start.bounds.fastest_ms
    elif first.trial is None:
        assert "hardware.accelerator=per_subnet" in first.reason


@pytest.mark.parametrize("stop", [12, 45])
def test_the_journal_is_replayed_after_an_interruption(start, evaluator, tmp_path, stop):
    whole = start(0.3, 0.8, algorithm="evolution", journal="whole.jsonl")

    class Stopping:
        left = stop

        def __call__(self, subnet):
            if self.left == 0:
                raise KeyboardInterrupt
            self.left -= 1
            return evaluator(subnet)

    with pytest.raises(KeyboardInterrupt):
        start(0.3, 0.8, algorithm="evolution", journal="stopped.jsonl", measure=Stopping())
    evaluator.seen.clear()
    resumed = start(0.3, 0.8, algorithm="evolution", journal="stopped.jsonl")
    assert len(evaluator.seen) == 60 - stop
    assert (resumed.trials, resumed.choices, resumed.curve) == (whole.trials, whole.choices, whole.curve)
    journals = [(tmp_path / name).read_bytes() for name in ("whole.jsonl", "stopped.jsonl")]
    assert journals[0] == journals[1]
    latencies = [json.loads(line)["latency_ms"] for line in journals[0].splitlines()]
    assert latencies == [trial.latency_ms for trial in whole.trials]  # readers of the journal see the result's hardware
