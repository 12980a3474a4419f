import numpy as np
import pytest

from hwmodel.errors import UsageError
from search.ranking import EQUAL_COST, at_equal_cost, over_the_range, tau, tau_between_seeds, tau_with_seeds
from supernet.lowering import lower_many


def test_tau_by_hand():
    assert tau([1, 2, 3], [10, 20, 30]) == pytest.approx(1)
    assert tau([1, 2, 3], [30, 20, 10]) == pytest.approx(-1)
    assert tau([1, 2, 3], [10, 30, 20]) == pytest.approx(1 / 3)  # two pairs agree, one does not
    assert tau([1, 1, 1], [1, 2, 3]) is None
    assert tau_with_seeds([1, 2, 3], [[1, 2, 3], [1, 3, 2]]) == pytest.approx(2 / 3)
    assert tau_between_seeds([[1, 2, 3], [1, 3, 2], [1, 2, 3]]) == pytest.approx((1 / 3 + 1 / 3 + 1) / 3)
    assert tau_between_seeds([[1, 2, 3]]) is None


def latencies(space, model, genotypes):
    return model.estimate_many(lower_many(space.arrays(genotypes))).latency_ms


def test_subnets_over_the_range_are_spread_and_differ(space, cost_model):
    genotypes = over_the_range(space, cost_model, 9, seed=0)
    latency = latencies(space, cost_model, genotypes)
    assert len(np.unique(genotypes, axis=0)) == 9
    everything = latencies(space, cost_model, space.sample(np.random.default_rng(5), 500))
    assert latency.min() <= everything.min()
    assert latency.max() >= everything.max()
    assert np.diff(latency).max() < 0.25 * (latency.max() - latency.min())


def test_subnets_at_equal_cost(space, cost_model):
    genotypes = at_equal_cost(space, cost_model, 6, seed=0)
    latency = latencies(space, cost_model, genotypes)
    assert len(np.unique(genotypes, axis=0)) == 6
    assert latency.max() / latency.min() <= (1 + EQUAL_COST) / (1 - EQUAL_COST)
    assert np.array_equal(genotypes, at_equal_cost(space, cost_model, 6, seed=0))


def test_more_subnets_than_there_are(make_space, cost_model):
    space = make_space(depth=(1,), num_heads=(1,), high_precision_ratio=(1,))
    with pytest.raises(UsageError, match=r"--subnets 9: the space has only 8 different subnets"):
        over_the_range(space, cost_model, 9, seed=0)
