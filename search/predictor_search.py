"""Predictor-guided search: measure, fit a cheap predictor, evolve on it, measure the promising, repeat.

The idea is that of LINAS (DyNAS-T): latency is known by the cost model and accuracy is predicted, so thousands of
candidates can be compared for each one that is measured. Within a generation, rounds of evolution (`search.breeding`)
run on predicted accuracy plus a share of its uncertainty; then each goal gets the most promising new candidate that
meets it. How well the predictor ranks is measured where it matters: on each generation before it has seen it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from search.algorithm import ALGORITHMS, FloatArray, SearchProblem, as_array
from search.evolution import REACH, Evolution
from search.predictor import AccuracyPredictor, PredictionLog
from search.trial import Trial
from supernet.space import Genotypes

#: generations of plain evolution before there is a predictor
_WARM_UP = 2
#: rounds of evolution on the predictor in a generation, and children in each
_ROUNDS = 6
_CHILDREN = 240
#: share of a generation that the predictor has no say in: it extrapolates, and what it thinks little of it never sees
_UNGUIDED = 0.4
#: a prediction is worth its mean plus up to so many of its standard deviations, drawn for each goal
_OPTIMISM = 1.0


@ALGORITHMS.register("predictor")
class PredictorSearch(Evolution):
    """See `search.algorithm.SearchAlgorithm`; evolution that measures only what its predictor finds promising."""

    def __init__(self, problem: SearchProblem) -> None:
        super().__init__(problem)
        self._log = PredictionLog()

    def ask(self, count: int) -> Genotypes:
        """Two generations of evolution, then for each goal what the predictor finds most promising."""
        if len(self._trials) < max(2, _WARM_UP * self._problem.settings.population):
            return super().ask(count)
        predictor = AccuracyPredictor(self._problem.space, self._trials)
        goals = self._goals(count - int(self._problem.rng.binomial(count, _UNGUIDED)))
        guided = self._promising(predictor, goals)
        self._log.expect(guided, predictor.predict(guided)[0])
        return np.concatenate([guided, super().ask(count - len(guided))])

    def tell(self, trials: Sequence[Trial]) -> None:
        """Compares what was predicted with what was measured before it learns."""
        self._log.compare(trials)
        super().tell(trials)

    def report(self) -> dict[str, Any]:
        """How well the predictor ranked, see `PredictionLog`."""
        return self._log.report()

    def _promising(self, predictor: AccuracyPredictor, goals: FloatArray) -> Genotypes:
        """For each goal the most promising new candidate of an evolution on the predictor, shape (n, G)."""
        rng, settings = self._problem.rng, self._problem.settings
        if not len(goals):
            return as_array([], self._problem.space)
        pool, latency = self._archive.ranked()
        for _ in range(_ROUNDS):
            mean, deviation = predictor.predict(pool)
            wanted = rng.choice(goals, size=_CHILDREN)
            promise = mean + _OPTIMISM * rng.random() * deviation
            pairs = np.empty((2, _CHILDREN), dtype=np.int64)
            for goal in np.unique(wanted):
                near = np.flatnonzero(latency <= REACH * goal)
                best = near[promise[near].argsort()[: -settings.parents - 1 : -1]]
                chosen = wanted == goal
                pairs[:, chosen] = best[rng.integers(len(best), size=(2, int(chosen.sum())))]
            children = self._breeder.children(*pool[pairs], probability=settings.mutation_probability)
            fitted, fitted_ms, _ = self._breeder.fitted(children, wanted)
            pool, first = np.unique(np.concatenate([pool, fitted]), axis=0, return_index=True)
            latency = np.concatenate([latency, fitted_ms])[first]
        mean, deviation = predictor.predict(pool)
        found = []
        for goal in goals.tolist():
            promise = mean + _OPTIMISM * rng.random() * deviation
            within = np.flatnonzero(latency <= goal)
            for index in within[promise[within].argsort()[::-1]]:
                if self._proposals.is_new(pool[index]):
                    found.append(pool[index])
                    break
        return as_array(found, self._problem.space)
