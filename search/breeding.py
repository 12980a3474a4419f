"""Children that use a budget: mutation and crossover, growth where it pays most, then the budget repair.

A child over its limit is not thrown away but shrunk: genes go down by one choice (fewer 8-bit rows, fewer heads, a
narrower MLP, one block less, …) in the order of

    expected loss of accuracy / expected saving of latency

until it fits, the least first. Half of the children are grown before, by a few steps up in the opposite order: so bits
and width move from where a cycle buys little accuracy to where it buys more. Loss and saving are slopes per step of a
gene, fitted once over random subnets for the latency and over the trials so far for the accuracy. Where trials have
little to say, the prior is that a saved millisecond costs the same accuracy everywhere: accuracy is fitted as
`k * latency + rest`, and ridge regression shrinks the rest to 0. The slopes only order the steps; whether a child fits
is always computed by the cost model.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from search.algorithm import FloatArray, SearchProblem
from search.trial import Trial
from supernet.space import Genotypes

#: numbers of steps down that are tried for a child over its limit
_STEPS = np.array([1, 2, 3, 4, 6, 8, 12, 16, 24, 32])
#: children with more load than this are dropped: what is left of them after a repair has little of their parents
_REPAIRABLE = 1.5
#: random subnets over which latency slopes are fitted
_SLOPE_SAMPLES = 1000
#: spread of the noise on the order of steps, in units of the median ratio, so that children differ
_NOISE = 0.5
#: share of children that are grown, and the most steps up
_GROWN = 0.5
_MOST_GROWTH = 12


class Breeder:
    """Gives children that meet their budgets, for whole generations at once; costs are computed in two batches."""

    def __init__(self, problem: SearchProblem) -> None:
        self._problem = problem
        space = problem.space
        sample = space.sample(problem.rng, _SLOPE_SAMPLES)
        latency = problem.costs_of(sample).latency_ms
        finite = np.isfinite(latency)
        self._saving = ridge_slopes(sample[finite], latency[finite], strength=1.0)
        # A step down never costs latency; a slope that says so is noise about a gene that hardly matters.
        self._saving = np.maximum(self._saving, 1e-6 * self._saving.max(initial=0) + 1e-12)
        self._loss = self._saving.copy()
        self._genotypes = np.empty((0, len(space.gene_sizes)), dtype=np.int64)  # of the trials so far
        self._accuracy = np.empty(0)

    def learn(self, trials: Sequence[Trial]) -> None:
        """Fits the accuracy that a step of each gene is worth to these trials and all before."""
        if not trials:
            return
        self._genotypes = np.concatenate([self._genotypes, [trial.genotype for trial in trials]])
        self._accuracy = np.concatenate([self._accuracy, [trial.score for trial in trials]])
        genotypes, accuracy = self._genotypes, self._accuracy
        latency = genotypes @ self._saving
        spread = latency.var()
        per_ms = max(0.0, float(np.cov(latency, accuracy, bias=True)[0, 1] / spread)) if spread > 0 else 0.0
        rest = ridge_slopes(genotypes, accuracy - per_ms * latency, strength=float(len(genotypes)) ** 0.5)
        self._loss = per_ms * self._saving + rest

    def children(self, parents: Genotypes, partners: Genotypes, *, probability: float) -> Genotypes:
        """One child of each pair, shape (N, G): by mutation, for half of them with crossover, for half with growth."""
        space, rng = self._problem.space, self._problem.rng
        crossed = np.where(rng.random((len(parents), 1)) < 0.5, space.crossover(parents, partners, rng), parents)
        children = space.mutate(crossed, rng, probability=probability)
        steps = np.where(rng.random(len(parents)) < _GROWN, rng.integers(1, _MOST_GROWTH + 1, size=len(parents)), 0)
        room = space.gene_sizes - 1
        up = self._ranks(-1, children < room) < steps[:, None]
        return space.canonical(np.minimum(children + up, room))

    def fitted(self, candidates: Genotypes, goals_ms: FloatArray) -> tuple[Genotypes, FloatArray, Genotypes]:
        """The candidates (N, G) that meet their goals (N,), as they are or repaired.

        Returns:
            Genotypes (n, G), their latency in ms (n,), and the positions (n,) of the candidates that they came from.
        """
        costs = self._problem.costs_of(candidates)
        fits = costs.meet(goals_ms)
        result, latency, source = candidates[fits], costs.latency_ms[fits], np.flatnonzero(fits)
        over = np.flatnonzero(~fits & (costs.load(goals_ms) <= _REPAIRABLE))
        if not len(over):
            return result, latency, source
        shrunk = self._shrunk(candidates[over])  # (R, S, G)
        flat = shrunk.reshape(-1, shrunk.shape[-1])
        costs = self._problem.costs_of(flat)
        fits = costs.meet(np.repeat(goals_ms[over], len(_STEPS))).reshape(len(over), -1)
        mended = np.flatnonzero(fits.any(axis=1))
        first = fits[mended].argmax(axis=1)  # the least number of steps that is enough
        return (
            np.concatenate([result, shrunk[mended, first]]),
            np.concatenate([latency, costs.latency_ms.reshape(len(over), -1)[mended, first]]),
            np.concatenate([source, over[mended]]),
        )

    def _shrunk(self, candidates: Genotypes) -> Genotypes:
        """Each of the candidates (R, G) after 1, 2, 3, 4, 6, … steps down, canonical, shape (R, S, G)."""
        down = self._ranks(1, candidates > 0)[:, None, :] < _STEPS[None, :, None]
        shrunk = np.maximum(candidates[:, None, :] - down, 0)
        flat = self._problem.space.canonical(shrunk.reshape(-1, shrunk.shape[-1]))
        return np.asarray(flat.reshape(shrunk.shape))

    def _ranks(self, sign: int, possible: NDArray[np.bool_]) -> Genotypes:
        """The place of each gene (N, G) in the noisy order of accuracy per ms, ascending for a `sign` of 1.

        Genes that cannot make a step come last.
        """
        ratio = self._loss / self._saving
        noise = self._problem.rng.normal(size=possible.shape) * _NOISE * np.median(np.abs(ratio))
        order = np.where(possible, sign * ratio + noise, np.inf).argsort(axis=1)
        ranks = np.empty_like(order)
        np.put_along_axis(ranks, order, np.arange(order.shape[1])[None, :], axis=1)
        return ranks


def ridge_slopes(genotypes: Genotypes, values: FloatArray, *, strength: float) -> FloatArray:
    """Slopes (G,) of a ridge regression of `values` (N,) on the choice indices of `genotypes` (N, G)."""
    if len(genotypes) == 0:
        return np.zeros(genotypes.shape[1])
    x = genotypes - genotypes.mean(axis=0)
    gram = x.T @ x + strength * np.eye(x.shape[1])
    return np.asarray(np.linalg.solve(gram, x.T @ (values - values.mean())))
