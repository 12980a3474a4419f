"""Random search, the baseline: new uniformly drawn genotypes, each target's limit in turn."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

from search.algorithm import ALGORITHMS, Proposals, SearchProblem, Turns, as_array
from search.trial import Trial
from supernet.space import Genotypes


@ALGORITHMS.register("random")
class RandomSearch:
    """See `search.algorithm.SearchAlgorithm`."""

    def __init__(self, problem: SearchProblem) -> None:
        self._problem = problem
        self._proposals = Proposals(problem)
        self._turns = Turns(problem.limits_ms)

    def ask(self, count: int) -> Genotypes:
        """Draws anew for each limit, so that a tight one gets its share."""
        found: list[Genotypes] = []
        for limit_ms, share in sorted(Counter(self._turns.next(count)).items()):
            found += self._proposals.random(share, limit_ms=limit_ms)
        # What the tight limits no longer give, the widest may.
        found += self._proposals.random(count - len(found), limit_ms=max(self._problem.limits_ms))
        return as_array(found, self._problem.space)

    def tell(self, trials: Sequence[Trial]) -> None:
        """Learns nothing."""

    def report(self) -> dict[str, Any]:
        """Nothing to say."""
        return {}
