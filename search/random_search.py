"""Random search, the baseline: new uniformly drawn genotypes, each target's limit in turn."""

from __future__ import annotations

from collections.abc import Sequence

from search.algorithm import ALGORITHMS, Proposals, SearchProblem, as_array
from search.trial import Trial
from supernet.space import Genotypes


@ALGORITHMS.register("random")
class RandomSearch:
    """See `search.algorithm.SearchAlgorithm`."""

    def __init__(self, problem: SearchProblem) -> None:
        self._problem = problem
        self._proposals = Proposals(problem)

    def ask(self, count: int) -> Genotypes:
        """Draws anew for each limit, so that a tight one gets its share."""
        limits = self._problem.limits_ms
        found: list[Genotypes] = []
        for position, limit_ms in enumerate(limits):
            share = (count - len(found)) // (len(limits) - position)
            found += self._proposals.random(share, limit_ms=limit_ms)
        return as_array(found, self._problem.space)

    def tell(self, trials: Sequence[Trial]) -> None:
        """Learns nothing."""
