"""The seam for search algorithms: ask for genotypes, tell what they were worth.

Life of an algorithm: it is built once with a `SearchProblem`; then, until the budget of evaluations is spent or `ask`
returns nothing, `ask(count)` proposes up to `count` genotypes and `tell` hands back the trials of all of them, in the
same order. At the end `report` gives what the algorithm has to say about itself. Everything random comes from the
problem's generator and nothing from the clock, so the same problem gives the same proposals, however many workers
measure a generation.

An algorithm proposes canonical genotypes that meet at least one limit, none of them twice: accuracy is only measured
for those. It never loops without a bound; when it finds no new feasible genotype it returns fewer, or none.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from hwmodel.registry import Registry
from search.bounds import LatencyBounds
from search.config import SearchConfig
from search.trial import Trial
from supernet.space import Genotypes, SearchSpace

FloatArray = NDArray[np.float64]

#: random genotypes drawn for each one wanted: so rare may a limit make them before the walk from the smallest begins
_DRAWN = 64


@dataclass(frozen=True, kw_only=True, slots=True)
class Costs:
    """What the hardware says of N subnets, each of shape (N,).

    `overrun` is the largest ratio of a figure to its entry in `search.limits`: 0 where there are none, above 1 where
    one is broken, infinite where the accelerator cannot hold the subnet.
    """

    latency_ms: FloatArray
    overrun: FloatArray

    def meet(self, limit_ms: float | FloatArray) -> NDArray[np.bool_]:
        """Whether each subnet keeps to all limits and to this latency, which may be one for each of them."""
        return np.asarray((self.latency_ms <= limit_ms) & (self.overrun <= 1))

    def load(self, limit_ms: float | FloatArray) -> FloatArray:
        """How full the fullest limit is, with `limit_ms` among them; above 1 it is broken."""
        return np.maximum(self.latency_ms / limit_ms, self.overrun)


CostsOf = Callable[[Genotypes], Costs]


@dataclass(frozen=True, kw_only=True, slots=True)
class SearchProblem:
    """What an algorithm may know.

    `limits_ms` are those of the feasible targets, ascending; `costs_of` gives the costs of genotypes (N, G) within
    microseconds each; `anchors` (A, G) are the subnets that are smallest in latency or in another limited figure.
    `known` are subnets measured before, for other hardware, with their latency on this one: an algorithm may learn from
    them and never proposes them. Some may break limits.

    `expected_divergence` (G, C) is what choices of genes are expected to add to the divergence from floats, in nats,
    before anything is measured, and 0 where nothing is known; most searches go without it.
    """

    space: SearchSpace
    costs_of: CostsOf
    bounds: LatencyBounds
    anchors: Genotypes
    limits_ms: tuple[float, ...]
    settings: SearchConfig
    rng: np.random.Generator
    known: tuple[Trial, ...] = ()
    expected_divergence: FloatArray | None = None

    def known_within(self) -> list[Trial]:
        """Those of the known trials that meet the widest target with all limits."""
        if not self.known:
            return []
        genotypes = np.array([trial.genotype for trial in self.known], dtype=np.int64)
        meets = self.costs_of(genotypes).meet(self.limits_ms[-1]).tolist()
        return [trial for trial, meet in zip(self.known, meets, strict=True) if meet]


class SearchAlgorithm(Protocol):
    """See the module's docstring for the life cycle."""

    def ask(self, count: int) -> Genotypes:
        """Up to `count` new genotypes to evaluate, shape (n, G)."""
        ...

    def tell(self, trials: Sequence[Trial]) -> None:
        """The trials of the genotypes last asked for."""
        ...

    def report(self) -> dict[str, Any]:
        """Plain data about the algorithm's own work, such as how well its predictor ranks; for `front.json`."""
        ...


ALGORITHMS: Registry[Callable[[SearchProblem], SearchAlgorithm]] = Registry("algorithm", group="quasar.algorithms")


class Proposals:
    """Collects new feasible genotypes; shared by algorithms so that none evaluates a subnet twice."""

    def __init__(self, problem: SearchProblem) -> None:
        self._problem = problem
        self._seen = {np.array(trial.genotype, dtype=np.int64).tobytes() for trial in problem.known}
        self._exhausted_ms = 0.0  # at this limit, all attempts gave nothing new

    def is_new(self, genotype: Genotypes) -> bool:
        """Whether the genotype (G,) has not been taken yet; from now on it has."""
        key = genotype.tobytes()
        if key in self._seen:
            return False
        self._seen.add(key)
        return True

    def take(self, candidates: Genotypes, count: int, *, limit_ms: float) -> list[Genotypes]:
        """The first `count` candidates that are new and meet the limit, which from now on count as taken."""
        taken: list[Genotypes] = []
        if count == 0 or len(candidates) == 0:
            return taken
        for genotype in candidates[self._problem.costs_of(candidates).meet(limit_ms)]:
            if self.is_new(genotype):
                taken.append(genotype)
                if len(taken) == count:
                    break
        return taken

    def random(self, count: int, *, limit_ms: float) -> list[Genotypes]:
        """New uniformly drawn genotypes that meet the limit; where they are rare, mutations of the smallest subnet.

        Attempts are bounded. A limit for which all of them gave nothing new is not tried again, nor are smaller ones.
        """
        if count == 0 or limit_ms <= self._exhausted_ms:
            return []
        space, rng = self._problem.space, self._problem.rng
        taken = self.take(space.sample(rng, _DRAWN * count), count, limit_ms=limit_ms)
        if len(taken) < count:
            # Near the lower bound a uniform draw practically never fits: walk away from the smallest subnet instead.
            anchors = self._problem.anchors
            smallest = anchors[self._problem.costs_of(anchors).load(limit_ms).argmin()]
            near = np.repeat(smallest[None], _DRAWN * count, axis=0)
            for probability in (0.3, 0.1, 0.03):
                mutated = space.mutate(near, rng, probability=probability)
                taken += self.take(mutated, count - len(taken), limit_ms=limit_ms)
            taken += self.take(near[:1], min(1, count - len(taken)), limit_ms=limit_ms)
        if not taken:
            self._exhausted_ms = limit_ms
        return taken


class Turns:
    """Targets take turns, across generations too: with three of them, generations of one subnet serve all three."""

    def __init__(self, limits_ms: Sequence[float]) -> None:
        self._limits = itertools.cycle(limits_ms)

    def next(self, count: int) -> list[float]:
        """The limits of the next `count` proposals."""
        return list(itertools.islice(self._limits, count))


def as_array(genotypes: Sequence[Genotypes] | Sequence[Sequence[int]], space: SearchSpace) -> Genotypes:
    """Genotypes as one array (n, G), also when there are none."""
    return np.array(genotypes, dtype=np.int64).reshape(len(genotypes), len(space.gene_sizes))
