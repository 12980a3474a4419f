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

import numpy as np
from numpy.typing import NDArray

from search.algorithm import FloatArray, SearchProblem
from supernet.space import Genotypes

#: numbers of steps down that are tried for a child over its limit
_STEPS = np.array([1, 2, 3, 4, 6, 8, 12, 16, 24, 32])
#: children with more load than this are dropped: what is left of them after a repair has little of their parents
_REPAIRABLE = 1.5
#: random subnets over which latency slopes are fitted
_SLOPE_SAMPLES = 300
#: spread of the noise on the order of steps, in units of the median ratio, so that children differ
_NOISE = 0.5
#: share of children with genes of two parents
_CROSSED = 0.5
#: share of children that are grown, and the most steps up
_GROWN = 0.5
_MOST_GROWTH = 12


class Breeder:
    """Gives children that meet their budgets, for whole generations at once; costs are computed in two batches."""

    def __init__(self, problem: SearchProblem) -> None:
        self._problem = problem
        space = problem.space
        self._room = space.gene_sizes - 1
        sample = space.sample(problem.rng, _SLOPE_SAMPLES)
        latency = problem.costs_of(sample).latency_ms
        finite = np.isfinite(latency)
        latencies = Sums(len(self._room))
        latencies.add(sample[finite], latency[finite])
        saving = ridge_slopes(*latencies.centred(), strength=1.0)
        # A step down never costs latency; a slope that says so is noise about a gene that hardly matters.
        self._saving = np.maximum(saving, 1e-6 * saving.max(initial=0) + 1e-12)
        self._scores = Sums(len(self._room))  # of the trials so far
        self._set_loss(self._saving)

    def learn(self, genotypes: Genotypes, scores: FloatArray) -> None:
        """Fits the score that a step of each gene is worth to trials (N, G), (N,) and all before."""
        if not len(genotypes):
            return
        self._scores.add(genotypes, scores)
        gram, products = self._scores.centred()
        saving = self._saving
        spread = float(saving @ gram @ saving)
        per_ms = max(0.0, float(saving @ products) / spread) if spread > 0 else 0.0
        rest = ridge_slopes(gram, products - per_ms * (gram @ saving), strength=self._scores.count**0.5)
        self._set_loss(per_ms * saving + rest)

    def _set_loss(self, loss: FloatArray) -> None:
        self._ratio = loss / self._saving
        middle = len(loss) // 2
        self._spread = _NOISE * float(np.partition(np.abs(self._ratio), middle)[middle])

    def children(self, parents: Genotypes, partners: Genotypes, *, probability: float) -> Genotypes:
        """One child of each pair, shape (N, G): by mutation, for half of them with crossover, for half with growth."""
        rng, room, count = self._problem.rng, self._room, len(parents)
        crossed, grown = rng.random((2, count)) < ((_CROSSED,), (_GROWN,))
        swapped, redrawn = rng.random((2, *parents.shape))
        children = np.where((swapped < 0.5) & crossed[:, None], partners, parents)
        redrawn /= probability  # of those below 1, which are redrawn, it is as good as a new number
        children = np.where(redrawn < 1, (redrawn * (room + 1)).astype(np.int64), children)
        order = self._order(-1, children < room)
        steps = rng.integers(1, min(_MOST_GROWTH, len(room)) + 1, size=count)
        last = np.sort(order, axis=1)[np.arange(count), steps - 1]
        up = (order <= last[:, None]) & grown[:, None]
        return self._problem.space.canonical(np.minimum(children + up, room))

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
        order = self._order(1, candidates > 0)
        last = np.sort(order, axis=1)[:, np.minimum(_STEPS, order.shape[1]) - 1]
        shrunk = np.maximum(candidates[:, None, :] - (order[:, None, :] <= last[:, :, None]), 0)
        flat = self._problem.space.canonical(shrunk.reshape(-1, shrunk.shape[-1]))
        return np.asarray(flat.reshape(shrunk.shape))

    def _order(self, sign: int, possible: NDArray[np.bool_]) -> FloatArray:
        """What orders steps of genes (N, G): noisy score per ms, for a `sign` of 1 ascending; impossible ones last."""
        noise = self._problem.rng.standard_normal(possible.shape)
        return np.where(possible, sign * self._ratio + self._spread * noise, np.inf)


class Sums:
    """Sums over genotypes and a value of each, all that a regression needs; they do not grow with the genotypes."""

    def __init__(self, genes: int) -> None:
        self.count = 0
        self._sum, self._square = np.zeros(genes), np.zeros((genes, genes))
        self._value, self._product = 0.0, np.zeros(genes)

    def add(self, genotypes: Genotypes, values: FloatArray) -> None:
        """Adds genotypes (N, G) with values (N,)."""
        x = genotypes.astype(np.float64)
        self.count += len(x)
        self._sum += x.sum(axis=0)
        self._square += x.T @ x
        self._value += float(values.sum())
        self._product += values @ x

    def centred(self) -> tuple[FloatArray, FloatArray]:
        """Products of the genes with each other (G, G) and with the values (G,), summed, all less their means."""
        mean = self._sum / max(self.count, 1)
        return self._square - np.outer(mean, self._sum), self._product - mean * self._value


def ridge_slopes(gram: FloatArray, products: FloatArray, *, strength: float) -> FloatArray:
    """Slopes (G,) of a ridge regression on choice indices, from the sums of `Sums.centred`."""
    return np.asarray(np.linalg.solve(gram + strength * np.eye(len(gram)), products))
