"""Evolution that serves all latency targets at once.

Every trial counts for each target whose limit it meets. In a generation the targets take turns: each breeds children
from its own best trials, half of them by mutation and half by crossover with mutation. Children over the limit are
dropped before any accuracy is measured; the analytic cost of thousands takes milliseconds.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from search.algorithm import ALGORITHMS, Proposals, SearchProblem, as_array
from search.trial import Trial, best_under
from supernet.space import Genotypes

#: children bred for each one wanted; most fall to the limit, or have been seen
_BREED = 32
#: share of a later generation that is drawn at random, against early convergence
_FRESH = 0.1


@ALGORITHMS.register("evolution")
class Evolution:
    """See `search.algorithm.SearchAlgorithm`."""

    def __init__(self, problem: SearchProblem) -> None:
        self._problem = problem
        self._proposals = Proposals(problem)
        self._trials: list[Trial] = []

    def ask(self, count: int) -> Genotypes:
        """The first generation is random, with the extremes of the space in it; later ones are bred."""
        limits = self._problem.limits_ms
        found: list[Genotypes] = []
        if not self._trials:
            bounds = self._problem.bounds
            extremes = np.stack([bounds.fastest, bounds.slowest])
            found += self._proposals.take(extremes, min(2, count), limit_ms=max(limits))
        for position, limit_ms in enumerate(limits):
            share = (count - len(found)) // (len(limits) - position)
            fresh = share if not self._trials else int(share * _FRESH)
            bred = self._breed(share - fresh, limit_ms)
            found += bred + self._proposals.random(share - len(bred), limit_ms=limit_ms)
        return as_array(found, self._problem.space)

    def tell(self, trials: Sequence[Trial]) -> None:
        """Adds the trials to those that may breed."""
        self._trials.extend(trials)

    def _breed(self, count: int, limit_ms: float) -> list[Genotypes]:
        settings, space, rng = self._problem.settings, self._problem.space, self._problem.rng
        best = best_under(self._trials, limit_ms, count=settings.parents)
        if not best or count == 0:
            return []
        parents = np.array([trial.genotype for trial in best], dtype=np.int64)
        size = _BREED * count
        first, second = (parents[rng.integers(len(parents), size=size)] for _ in range(2))
        crossed = np.where(rng.random((size, 1)) < 0.5, space.crossover(first, second, rng), first)
        children = space.mutate(crossed, rng, probability=settings.mutation_probability)
        return self._proposals.take(children, count, limit_ms=limit_ms)
