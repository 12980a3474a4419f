"""Evolution that serves all latency targets, and the frontier between them, in one run.

Trials are kept in an archive of latency bins (AlphaNet's idea, with own code). Every child of a generation has a goal,
a latency that it must meet: the targets take turns, and a share of the goals is drawn between the fastest subnet and
the widest target. Parents are the best kept trials up to a little above the goal, and what is over the goal is repaired
(`search.breeding`); only then is accuracy measured.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np

from search.algorithm import ALGORITHMS, FloatArray, Proposals, SearchProblem, Turns, as_array
from search.archive import LatencyArchive
from search.breeding import Breeder
from search.trial import Trial
from supernet.space import Genotypes

#: children bred for each one wanted, and for each one for which these cannot be repaired or have been seen
_BREED = (2, 6)
#: share of children that are drawn at random instead of bred, against early convergence
_FRESH = 0.1
#: share of goals that lie anywhere on the frontier instead of at a target
_FRONTIER = 0.25
#: parents may be so much slower than the goal: a better one that is shrunk is often the best child
REACH = 1.25


@ALGORITHMS.register("evolution")
class Evolution:
    """See `search.algorithm.SearchAlgorithm`."""

    def __init__(self, problem: SearchProblem) -> None:
        self._problem = problem
        self._proposals = Proposals(problem)
        self._turns = Turns(problem.limits_ms)
        self._breeder = Breeder(problem)
        self._trials: list[Trial] = []
        self._started = False
        self._archive = LatencyArchive(
            fastest_ms=problem.bounds.fastest_ms, limits_ms=problem.limits_ms, depth=problem.settings.parents
        )
        self._add(problem.known_within())

    def ask(self, count: int) -> Genotypes:
        """The first generation has the extremes of the space in it, the rest is random if nothing is known."""
        problem, widest = self._problem, self._problem.limits_ms[-1]
        found: list[Genotypes] = []
        if not self._started:
            extremes = np.stack([problem.bounds.fastest, problem.bounds.slowest])
            found += self._proposals.take(extremes, min(2, count), limit_ms=widest)
            self._started = True
        unserved = self._goals(count - len(found))
        for breed in _BREED:
            if not len(unserved):
                break
            fitted, _, source = self._breeder.fitted(self._candidates(unserved, breed), np.repeat(unserved, breed))
            served = set()
            for genotype, slot in zip(fitted, (source // breed).tolist(), strict=True):
                if slot not in served and self._proposals.is_new(genotype):
                    found.append(genotype)
                    served.add(slot)
            unserved = np.delete(unserved, list(served))
        for goal, wanted in sorted(Counter(unserved.tolist()).items()):
            found += self._proposals.random(wanted, limit_ms=goal)
        # What goals near the fastest subnet no longer give, the widest target may.
        found += self._proposals.random(count - len(found), limit_ms=widest)
        return as_array(found, problem.space)

    def tell(self, trials: Sequence[Trial]) -> None:
        """Adds the trials to those that may breed, and learns from them what a repair costs."""
        self._add(trials)

    def report(self) -> dict[str, Any]:
        """Nothing to say."""
        return {}

    def _add(self, trials: Sequence[Trial]) -> None:
        self._trials.extend(trials)
        genotypes = as_array([trial.genotype for trial in trials], self._problem.space)
        self._archive.add(trials, genotypes)
        self._breeder.learn(genotypes, np.array([trial.score for trial in trials]))

    def _goals(self, count: int) -> FloatArray:
        """A latency for each child to meet, in ms, shape (count,)."""
        limits, rng = self._problem.limits_ms, self._problem.rng
        anywhere = rng.uniform(self._problem.bounds.fastest_ms, limits[-1], size=count)
        return np.where(rng.random(count) < _FRONTIER, anywhere, self._turns.next(count))

    def _candidates(self, goals: FloatArray, breed: int) -> Genotypes:
        """`breed` candidates for each goal, shape (N, G): children of the best near it, or fresh ones."""
        space, rng, settings = self._problem.space, self._problem.rng, self._problem.settings
        if not self._trials:
            return space.sample(rng, len(goals) * breed)
        ranked, latency = self._archive.ranked()
        near = latency <= REACH * goals[:, None]
        near &= near.cumsum(axis=1) <= settings.parents  # of the best near a goal, so many
        pools, counts = np.nonzero(near)[1], near.sum(axis=1)
        bred = (counts > 0) & (rng.random(len(goals)) >= _FRESH)
        starts = (counts.cumsum() - counts)[bred, None]
        places = starts + (rng.random((2, len(starts), breed)) * counts[bred, None]).astype(np.int64)
        parents, partners = ranked[pools[places.reshape(2, -1)]]
        candidates = np.empty((len(goals), breed, ranked.shape[1]), dtype=np.int64)
        candidates[~bred] = space.sample(rng, int((~bred).sum()) * breed).reshape(-1, *candidates.shape[1:])
        children = self._breeder.children(parents, partners, probability=settings.mutation_probability)
        candidates[bred] = children.reshape(-1, *candidates.shape[1:])
        return candidates.reshape(-1, ranked.shape[1])
