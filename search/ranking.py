"""Whether one measure of subnets orders them as another one does: which subnets to compare, and how well they agree.

Kendall's tau-b is +1 for the same order, 0 for unrelated ones, -1 for the reverse; ties count for neither.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import combinations

import numpy as np
from numpy.typing import NDArray
from scipy.stats import kendalltau

from hwmodel.cost import CostModel
from hwmodel.errors import UsageError
from supernet.lowering import lower_many
from supernet.space import Genotypes, SearchSpace

#: subnets of which the ones to compare are chosen
_CANDIDATES = 4000
#: largest deviation from the median latency at equal cost, as a share
EQUAL_COST = 0.03


def over_the_range(space: SearchSpace, model: CostModel, count: int, *, seed: int) -> Genotypes:
    """`count` different subnets with latencies spread evenly from the smallest to the largest, (N, G).

    Raises:
        UsageError: the space has fewer.
    """
    candidates, latency_ms = _candidates(space, model, seed=seed)
    if count > len(candidates):
        raise UsageError(f"--subnets {count}: the space has only {len(candidates)} different subnets; ask for fewer")
    chosen: list[int] = []
    for wanted in np.linspace(latency_ms.min(), latency_ms.max(), count):
        order = np.abs(latency_ms - wanted).argsort(kind="stable")
        chosen.append(next(int(index) for index in order if index not in chosen))
    return candidates[chosen]


def at_equal_cost(space: SearchSpace, model: CostModel, count: int, *, seed: int) -> Genotypes:
    """Up to `count` different random subnets within `EQUAL_COST` of the median latency of random subnets, (N, G)."""
    candidates, latency_ms = _candidates(space, model, seed=seed)
    median = np.median(latency_ms)
    near = np.flatnonzero(np.abs(latency_ms - median) <= EQUAL_COST * median)
    chosen: Genotypes = candidates[np.random.default_rng(seed).permutation(near)[:count]]
    return chosen


def _candidates(space: SearchSpace, model: CostModel, *, seed: int) -> tuple[Genotypes, NDArray[np.float64]]:
    """Different genotypes (N, G), the smallest and the largest subnet among them, and their latencies (N,)."""
    ends = np.stack([space.encode(space.smallest()), space.encode(space.largest())])
    genotypes = np.concatenate([ends, space.sample(np.random.default_rng(seed), _CANDIDATES)])
    genotypes = np.unique(genotypes, axis=0)
    return genotypes, model.estimate_many(lower_many(space.arrays(genotypes))).latency_ms


def tau(first: Sequence[float], second: Sequence[float]) -> float | None:
    """Kendall's tau-b of two measures of the same subnets; None if either is the same for all."""
    value = float(kendalltau(first, second).statistic)
    return value if math.isfinite(value) else None


def tau_with_seeds(measure: Sequence[float], by_seed: Sequence[Sequence[float]]) -> float | None:
    """The mean tau of a measure with the results of each seed."""
    return _mean([tau(measure, results) for results in by_seed])


def tau_between_seeds(by_seed: Sequence[Sequence[float]]) -> float | None:
    """The mean tau of the results of each two seeds: what a perfect measure could reach. None for one seed."""
    return _mean([tau(first, second) for first, second in combinations(by_seed, 2)])


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None
