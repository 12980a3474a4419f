"""Spaces that pool: parts, bounds, designs and searches, against lowering and enumeration."""

import dataclasses

import numpy as np
import pytest

from hwmodel.cost import FpgaCostModel
from hwmodel.device import load_device, load_hardware
from hwmodel.errors import InfeasibleError
from hwmodel.explore import explore
from hwmodel.processor_cost import RooflineCostModel
from search.baselines import uniform_ladder
from search.bounds import extremes, figures_of, latency_bounds
from search.config import HardwareConfig, SearchConfig, Target
from search.importance import choice_importance
from search.parts import SpaceParts
from search.predictor import AccuracyPredictor
from search.profile import profile
from search.shortlist import adaptive_model
from search.trial import Trial
from supernet.lowering import lower, lower_many

DEVICE = load_device("zcu102")
TIGHT = dataclasses.replace(DEVICE, bram18=62, lut=60_000)


@pytest.fixture
def pooling_space(make_space):
    return make_space(depth=(3, 4), pooling=((), (1,), (2,), (1, 2)))


@pytest.fixture
def whole(make_space):
    """A space small enough to enumerate, and all of its genotypes."""
    space = make_space(
        image_size=(6, 12),
        embed_dim=(16,),
        depth=(2, 3),
        num_heads=(1, 3),
        mlp_ratio=(2,),
        high_precision_ratio=(0, 1),
        pooling=((), (1,)),
    )
    genotypes = np.array(list(np.ndindex(*space.gene_sizes[:4])), dtype=np.int64)
    rng = np.random.default_rng(0)
    blocks = rng.integers(0, space.gene_sizes[4:], size=(400, len(space.gene_sizes) - 4))
    ends = np.stack([0 * blocks[0], space.gene_sizes[4:] - 1])
    rows = np.concatenate([blocks, ends])
    both = np.concatenate([np.repeat(genotypes, len(rows), axis=0), np.tile(rows, (len(genotypes), 1))], axis=1)
    return space, np.unique(space.canonical(both), axis=0)


@pytest.mark.parametrize("changes", [{}, {"num_heads": "embed"}, {"depth": (3,)}, {"pooling": ((2,),)}])
def test_subnets_put_together_from_parts_are_those_of_the_lowering(pooling_space, make_cost_model, rng, changes):
    space = dataclasses.replace(pooling_space, **changes)
    parts, genotypes = SpaceParts.of(space), space.sample(rng, 200)
    found, lowered = parts.of_genotypes(genotypes), lower_many(space.arrays(genotypes))
    assert [found.workload(i, name="") for i in range(40)] == [lowered.workload(i, name="") for i in range(40)]
    np.testing.assert_array_equal(found.activation_bytes(), lowered.activation_bytes())
    model = make_cost_model(space)
    ours, theirs = model.table(parts.population).costs(parts.numbers(genotypes)), model.estimate_many(lowered)
    for name in ("cycles", "latency_ms", "energy_mj", "fits"):
        np.testing.assert_array_equal(getattr(ours, name), getattr(theirs, name))


def test_bounds_are_those_of_the_enumerated_space(make_space, make_cost_model):
    space = make_space(
        image_size=(6, 8), embed_dim=(12,), depth=(2, 3), num_heads=(1, 2), mlp_ratio=(1.5,), high_precision_ratio=(0,),
        pooling=((), (1,)),
    )  # fmt: skip
    genotypes = np.unique(space.canonical(np.array(list(np.ndindex(*space.gene_sizes)), dtype=np.int64)), axis=0)
    assert len(genotypes) == space.size
    for model in (make_cost_model(space), RooflineCostModel(load_hardware("jetson_tx2"))):
        latency = model.estimate_many(lower_many(space.arrays(genotypes))).latency_ms
        bounds = latency_bounds(space, model)
        assert (bounds.fastest_ms, bounds.slowest_ms) == (latency.min(), latency.max())
        reached = model.estimate_many(lower_many(space.arrays(np.stack([bounds.fastest, bounds.slowest])))).latency_ms
        assert reached.tolist() == [bounds.fastest_ms, bounds.slowest_ms]
        for name in ("weight_bytes", "macs"):
            values = figures_of(space, model, genotypes)[name]
            found = extremes(space, model, name)
            assert (found.least, found.most) == (values.min(), values.max())


@pytest.mark.parametrize(("device", "hardware"), [(DEVICE, {"array": (4, 8)}), (TIGHT, {"backend": "dual"})])
def test_every_subnet_gets_the_best_design_of_the_whole_grid(whole, rng, device, hardware):
    space, genotypes = whole
    genotypes = genotypes[rng.permutation(len(genotypes))[:25]]
    model = adaptive_model(space, HardwareConfig(accelerator="per_subnet", **hardware), DEVICE, limited=device)
    batch = model.estimate_many(lower_many(space.arrays(genotypes)))
    assert len(model.shortlist) < model.grid_size
    for i, genotype in enumerate(genotypes):
        workload = lower(space.decode(genotype))
        try:
            best, *_ = explore([workload], device, limit=1, **hardware)
        except InfeasibleError:
            assert not batch.fits[i]
            continue
        assert batch.fits[i]
        assert batch.cycles[i] == best.cycles[0]
        assert model.estimate(workload) == FpgaCostModel(DEVICE, best.accelerator).estimate(workload)


def test_bounds_where_each_subnet_has_its_own_accelerator(whole):
    space, genotypes = whole
    model = adaptive_model(space, HardwareConfig(accelerator="per_subnet", array=(4, 8)), DEVICE, limited=DEVICE)
    latency = model.estimate_many(lower_many(space.arrays(genotypes))).latency_ms
    bounds = latency_bounds(space, model)
    assert bounds.fastest_ms == latency.min()
    assert bounds.slowest_ms >= latency.max() * (1 - 1e-12)


def test_a_profile_a_ladder_and_a_predictor(pooling_space, make_cost_model, rng):
    space, model = pooling_space, make_cost_model(pooling_space)
    config = SearchConfig(targets=(Target(latency_ms=1.0),))
    figures = profile(space, model, config, seed=0)
    assert figures["subnets"] == space.size
    ladder = uniform_ladder(space, model, config, ratio=1)
    assert len(ladder) > 0
    np.testing.assert_array_equal(space.canonical(ladder), ladder)
    genotypes = space.sample(rng, 120)
    accuracy = 0.3 + 0.1 * genotypes[:, 3] + 0.01 * rng.random(120)  # only pooling matters
    trials = [
        Trial(
            index=index,
            generation=0,
            digest=space.decode(genotype).digest,
            genotype=tuple(genotype.tolist()),
            val_accuracy=float(value),
            val_loss=1.0,
            latency_ms=1.0,
        )
        for index, (genotype, value) in enumerate(zip(genotypes, accuracy, strict=True))
    ]
    predicted, _ = AccuracyPredictor(space, trials).predict(genotypes)
    np.testing.assert_allclose(predicted, accuracy, atol=0.05)
    importance = choice_importance(space, trials, seed=0)
    assert next(iter(importance["choices"])) == "pooling"
