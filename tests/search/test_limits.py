import numpy as np
import pytest

from hwmodel.device import load_device
from search.bounds import extremes, figures_of
from search.config import Limits, SearchConfig, Target
from search.limits import Feasibility, costs_function, limited_device
from search.profile import profile


@pytest.fixture
def whole(make_space):
    """A space small enough to enumerate, and all of its genotypes."""
    space = make_space(depth=(1, 2), num_heads=(1, 3), mlp_ratio=(1.5, 2), high_precision_ratio=(0, 0.4))
    genotypes = np.array(list(np.ndindex(*space.gene_sizes)), dtype=np.int64)
    return space, np.unique(space.canonical(genotypes), axis=0)


@pytest.mark.parametrize("name", ["latency_ms", "energy_mj", "weight_bytes", "macs"])
def test_extremes_are_those_of_the_whole_enumerated_space(whole, make_cost_model, name):
    space, genotypes = whole
    model = make_cost_model(space)
    every = figures_of(space, model, genotypes)[name]
    found = extremes(space, model, name)
    assert [found.least, found.most] == pytest.approx([every.min(), every.max()], rel=1e-12)
    assert found.bound == found.least
    reached = figures_of(space, model, np.stack([found.smallest, found.largest]))[name]
    assert reached.tolist() == [found.least, found.most]


def test_overrun_is_the_fullest_limit(space, cost_model, rng):
    genotypes = space.sample(rng, 50)
    figures = figures_of(space, cost_model, genotypes)
    limits = Limits(energy_mj=float(np.median(figures["energy_mj"])), fps=20000, weight_bytes=400)
    costs = costs_function(space, cost_model, limits)(genotypes)
    ratios = [figures["energy_mj"] / limits.energy_mj, figures["weight_bytes"] / 400, figures["latency_ms"] * 20]
    np.testing.assert_allclose(costs.overrun, np.max(ratios, axis=0), rtol=1e-12)
    assert not costs.meet(np.inf)[costs.overrun > 1].any()


@pytest.mark.parametrize("name", ["energy_mj", "weight_bytes"])
def test_a_limit_below_the_whole_space_is_proven_with_the_least_value(space, cost_model, name):
    least = extremes(space, cost_model, name).least
    target = Target(latency_ms=1e6)
    assert Feasibility.of(space, cost_model, Limits(**{name: least})).reason(target) is None
    reason = Feasibility.of(space, cost_model, Limits(**{name: least * 0.99})).reason(target)
    assert f"search.limits.{name}" in reason
    assert f"the least is {least:.3g}"[:16] in reason


def test_a_target_too_fast_is_told_what_limits_it(space, cost_model, bounds):
    feasibility = Feasibility.of(space, cost_model, Limits())
    assert feasibility.reason(Target(latency_ms=bounds.fastest_ms)) is None
    reason = feasibility.reason(Target(latency_ms=bounds.fastest_ms * 0.9))
    assert "no subnet of the space meets" in reason
    assert "% of its time" in reason
    tight = Feasibility.of(space, cost_model, Limits(latency_ms=bounds.fastest_ms * 0.9))
    assert "search.limits allows" in tight.reason(Target(latency_ms=bounds.slowest_ms))


def test_resource_limits_narrow_the_device():
    device = load_device("zcu102")
    limited = limited_device(device, Limits(dsp=100))
    assert limited.dsp * limited.limits.dsp == pytest.approx(100)
    assert limited.limits.lut == device.limits.lut
    assert limited_device(device, Limits(dsp=10**9)).limits == device.limits


@pytest.mark.parametrize("value", [0, -1, float("nan"), float("inf")])
def test_limits_must_be_positive_and_finite(value):
    with pytest.raises(ValueError, match="limits: energy_mj must be positive and finite"):
        Limits(energy_mj=value)


def test_a_profile_spans_the_space(space, cost_model, bounds):
    config = SearchConfig(targets=(Target(latency_ms=bounds.fastest_ms * 0.5), Target(latency_ms=bounds.slowest_ms)))
    document = profile(space, cost_model, config, seed=0)
    assert document["subnets"] == space.size
    for row in document["figures"].values():
        assert [row["min"], *row["quantiles"], row["max"]] == sorted([row["min"], *row["quantiles"], row["max"]])
    assert document["figures"]["latency_ms"]["min"] == bounds.fastest_ms
    assert document["figures"]["fps"]["max"] == 1000 / bounds.fastest_ms
    assert [target["status"] for target in document["targets"]] == ["infeasible", "ok"]
    assert document["targets"][0]["nearest_latency_ms"] == bounds.fastest_ms
    assert document["targets"][1]["share_of_random_subnets"] == 1
