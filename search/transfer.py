"""Whether what is good on one device is good on another: ranks of latencies, and the price of a borrowed choice.

For N candidates with latencies on D devices, and a score for each of them:

    ranks        Kendall's tau-b and Spearman's rho of the latencies on two devices
    strategy     of device A at the position p: the best score among the candidates that are, on A, no slower than the
                 p-quantile of random subnets there; of none, the fastest candidate
    lost         the strategy of A takes t on B; the best score among the candidates that take at most t on B, less that
                 of A's choice. Not negative, and 0 for A = B
    slower       how much longer than t_min the choice takes on B, as a share of t_min: the time of the fastest
                 candidate there with a score that is no lower

The question, and that its answer depends on the device and on what compiles for it, is that of "An Investigation on
Hardware-Aware Vision Transformer Scaling" (doi 10.1145/3611387). All choices are among the candidates, so `lost` and
`slower` are those of a search that has seen as many.

`bit_operations` is a score that needs no training: the multiply-accumulates of a network, times the bits of their
weights (those of two activations count with the higher precision). Zero-cost scores of networks hardly rank them better
than their size does (White et al., "A Deeper Look at Zero-Cost Proxies", 2022); it is no accuracy.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product

import numpy as np
from numpy.typing import NDArray
from scipy.stats import kendalltau, spearmanr

from search.algorithm import FloatArray
from search.parts import SpaceParts
from supernet.space import Genotypes, SearchSpace

#: positions between the fastest and the slowest random subnet at which a strategy is asked for
POSITIONS = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)


@dataclass(frozen=True, kw_only=True, slots=True)
class RankCorrelation:
    """Between the latencies on each pair of devices, both (D, D) and symmetric; NaN where all latencies are equal."""

    kendall: FloatArray
    spearman: FloatArray


@dataclass(frozen=True, kw_only=True, slots=True)
class Borrowed:
    """What the strategy of device A (rows) costs on device B (columns) at each of P positions, all (P, D, D).

    `best` is the score of the candidate on B that `lost` is measured from.
    """

    lost: FloatArray
    best: FloatArray
    slower: FloatArray


def rank_correlation(latency_ms: FloatArray) -> RankCorrelation:
    """The rank correlations of the latencies of N candidates on D devices, (D, N)."""
    devices = len(latency_ms)
    kendall, spearman = np.ones((2, devices, devices))
    for a in range(devices):
        for b in range(a):
            flat = any((latency_ms[i] == latency_ms[i, 0]).all() for i in (a, b))
            pair = latency_ms[a], latency_ms[b]
            kendall[a, b] = kendall[b, a] = np.nan if flat else kendalltau(*pair).statistic
            spearman[a, b] = spearman[b, a] = np.nan if flat else spearmanr(*pair).statistic
    return RankCorrelation(kendall=kendall, spearman=spearman)


def borrowed(latency_ms: FloatArray, score: FloatArray, limits_ms: FloatArray) -> Borrowed:
    """What strategies cost on other devices; see the module's docstring.

    Args:
        latency_ms: of N candidates on D devices, (D, N).
        score: of the candidates, (N,); higher is better. Of equals the fastest on its own device is chosen.
        limits_ms: the latencies at P positions on each device, (P, D).
    """
    devices = len(latency_ms)
    lost, best, slower = np.zeros((3, len(limits_ms), devices, devices))
    by_time = np.argsort(latency_ms, axis=1, kind="stable")
    sorted_ms = np.take_along_axis(latency_ms, by_time, axis=1)
    within = np.maximum.accumulate(score[by_time], axis=1)  # (D, N): the best score of so many of the fastest
    by_score = np.argsort(-score, kind="stable")
    at_least = np.minimum.accumulate(latency_ms[:, by_score], axis=1)  # (D, N): the least time of so many of the best
    for p, a in product(range(len(limits_ms)), range(devices)):
        count = int(np.searchsorted(sorted_ms[a], max(limits_ms[p, a], sorted_ms[a, 0]), side="right"))
        choice = by_time[a, score[by_time[a, :count]].argmax()]
        as_good = int(np.count_nonzero(score >= score[choice]))
        for b in range(devices):
            taken_ms = latency_ms[b, choice]
            best[p, a, b] = within[b, np.searchsorted(sorted_ms[b], taken_ms, side="right") - 1]
            lost[p, a, b] = best[p, a, b] - score[choice]
            slower[p, a, b] = taken_ms / at_least[b, as_good - 1] - 1
    return Borrowed(lost=lost, best=best, slower=slower)


def bit_operations(space: SearchSpace, genotypes: Genotypes) -> NDArray[np.int64]:
    """Multiply-accumulates times bits of their weights, of canonical genotypes (N, G), shape (N,)."""
    parts = SpaceParts.of(space)
    population = parts.population
    gemms, high = population.gemms, population.high_bits
    stored = gemms.tokens * gemms.weight_bits(high_bits=high, low_bits=population.low_bits)
    of_parts = population.gemm_parts((stored + gemms.macs() * high * ~gemms.stored)[0])
    total: NDArray[np.int64] = of_parts[parts.numbers(genotypes)].sum(axis=1)
    return total
