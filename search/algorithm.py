"""The seam for search algorithms: ask for genotypes, tell what they were worth.

Life of an algorithm: it is built once with a `SearchProblem`; then, until the budget of evaluations is spent or `ask`
returns nothing, `ask(count)` proposes up to `count` genotypes and `tell` hands back the trials of all of them, in the
same order. Everything random comes from the problem's generator, so the same problem gives the same proposals.

An algorithm proposes canonical genotypes that meet at least one limit, none of them twice: accuracy is only measured
for those. It never loops without a bound; when it finds no new feasible genotype it returns fewer, or none.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from hwmodel.registry import Registry
from search.bounds import LatencyBounds
from search.config import SearchConfig
from search.trial import Trial
from supernet.space import Genotypes, SearchSpace

#: latency in ms of genotypes (N, G), shape (N,); infinite where the accelerator cannot hold the subnet
LatencyOf = Callable[[Genotypes], NDArray[np.float64]]


@dataclass(frozen=True, kw_only=True, slots=True)
class SearchProblem:
    """What an algorithm may know: `limits_ms` are those of the feasible targets, ascending."""

    space: SearchSpace
    latency_of: LatencyOf
    bounds: LatencyBounds
    limits_ms: tuple[float, ...]
    settings: SearchConfig
    rng: np.random.Generator


class SearchAlgorithm(Protocol):
    """See the module's docstring for the life cycle."""

    def ask(self, count: int) -> Genotypes:
        """Up to `count` new genotypes to evaluate, shape (n, G)."""
        ...

    def tell(self, trials: Sequence[Trial]) -> None:
        """The trials of the genotypes last asked for."""
        ...


ALGORITHMS: Registry[Callable[[SearchProblem], SearchAlgorithm]] = Registry("algorithm", group="quasar.algorithms")


class Proposals:
    """Collects new feasible genotypes; shared by algorithms so that none evaluates a subnet twice."""

    def __init__(self, problem: SearchProblem) -> None:
        self._problem = problem
        self._seen: set[bytes] = set()

    def take(self, candidates: Genotypes, count: int, *, limit_ms: float) -> list[Genotypes]:
        """The first `count` candidates that are new and meet the limit, which from now on count as seen."""
        taken: list[Genotypes] = []
        if count == 0 or len(candidates) == 0:
            return taken
        latency = self._problem.latency_of(candidates)
        for genotype in candidates[latency <= limit_ms]:
            if len(taken) == count:
                break
            key = genotype.tobytes()
            if key not in self._seen:
                self._seen.add(key)
                taken.append(genotype)
        return taken

    def random(self, count: int, *, limit_ms: float) -> list[Genotypes]:
        """New uniformly drawn genotypes that meet the limit; where they are rare, mutations of the fastest subnet."""
        space, rng = self._problem.space, self._problem.rng
        taken = self.take(space.sample(rng, 64 * count), count, limit_ms=limit_ms)
        # Near the lower bound a uniform draw practically never fits: walk away from the fastest subnet instead.
        fastest = np.repeat(self._problem.bounds.fastest[None], 64 * count, axis=0)
        for probability in (0.3, 0.1, 0.03):
            if len(taken) < count:
                near = space.mutate(fastest, rng, probability=probability)
                taken += self.take(near, count - len(taken), limit_ms=limit_ms)
        if len(taken) < count:
            taken += self.take(fastest[:1], 1, limit_ms=limit_ms)
        return taken


def as_array(genotypes: Sequence[Genotypes], space: SearchSpace) -> Genotypes:
    """Genotypes as one array (n, G), also when there are none."""
    return np.array(genotypes, dtype=np.int64).reshape(len(genotypes), len(space.gene_sizes))
