"""Optuna's NSGA-II and TPE: two objectives, accuracy up and latency down, and the limits as hard constraints.

One study in memory; no storage, since a write for each analytic candidate would cost more than all else. Optuna samples
every gene as a category. A proposal is made canonical before it is looked at; one that breaks a limit, or has been
measured already, is told to the study without being measured, the former as a broken constraint. After a bounded number
of such proposals the rest of a generation is drawn at random and added to the study as well.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution
from optuna.samplers import BaseSampler, NSGAIISampler, TPESampler

from search.algorithm import ALGORITHMS, Proposals, SearchProblem, Turns, as_array
from search.trial import Trial
from supernet.space import Genotypes

#: proposals for each one wanted, of which all but one may break a limit
_ATTEMPTS = 4
#: an accelerator that cannot hold a subnet is infinitely over its limit, which the samplers cannot compare
_MOST_OVERRUN = 1e6


class OptunaSearch:
    """See `search.algorithm.SearchAlgorithm`."""

    def __init__(self, problem: SearchProblem, sampler: BaseSampler) -> None:
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self._problem = problem
        self._proposals = Proposals(problem)
        self._turns = Turns(problem.limits_ms)
        names, sizes = problem.space.gene_names, problem.space.gene_sizes.tolist()
        self._distributions: dict[str, BaseDistribution] = {
            name: CategoricalDistribution(tuple(range(size))) for name, size in zip(names, sizes, strict=True)
        }
        self._study = optuna.create_study(directions=["maximize", "minimize"], sampler=sampler)
        self._asked: list[optuna.Trial] = []
        self._rejected = 0
        self._started = self._exhausted = False
        for known in problem.known_within():
            asked = self._enqueued(known.genotype)
            self._study.tell(asked, (known.score, known.latency_ms))
            self._started = True

    def ask(self, count: int) -> Genotypes:
        """The first generation is random, each limit in turn; later ones come from Optuna's sampler."""
        found: list[Genotypes] = []
        widest = self._problem.limits_ms[-1]
        if self._started and not self._exhausted:
            for _ in range(_ATTEMPTS * count):
                if len(found) == count:
                    break
                trial = self._study.ask(self._distributions)
                drawn = np.array([list(trial.params.values())], dtype=np.int64)
                genotype = self._problem.space.canonical(drawn)
                costs = self._problem.costs_of(genotype)
                over = min(float(costs.load(widest)[0]), _MOST_OVERRUN) - 1
                trial.set_constraint("limits", over)
                if costs.meet(widest)[0] and self._proposals.is_new(genotype[0]):
                    found.append(genotype[0])
                    self._asked.append(trial)
                else:
                    self._rejected += 1
                    # A broken limit is worth learning; what is known already must not count twice.
                    broken = over > 0 and math.isfinite(costs.latency_ms[0])
                    state = optuna.trial.TrialState.COMPLETE if broken else optuna.trial.TrialState.FAIL
                    self._study.tell(trial, (0.0, float(costs.latency_ms[0])) if broken else None, state=state)
            self._exhausted = not found
        self._started = True
        for limit_ms, wanted in sorted(Counter(self._turns.next(count - len(found))).items()):
            for genotype in self._proposals.random(wanted, limit_ms=limit_ms):
                found.append(genotype)
                self._asked.append(self._enqueued(genotype.tolist()))
        return as_array(found, self._problem.space)

    def _enqueued(self, genotype: Sequence[int]) -> optuna.Trial:
        """A trial of the study with this genotype, which meets the limits."""
        self._study.enqueue_trial(dict(zip(self._distributions, genotype, strict=True)))
        trial = self._study.ask(self._distributions)
        trial.set_constraint("limits", 0.0)
        return trial

    def tell(self, trials: Sequence[Trial]) -> None:
        """Completes the asked trials of the study."""
        for asked, trial in zip(self._asked, trials, strict=True):
            self._study.tell(asked, (trial.score, trial.latency_ms))
        self._asked = []

    def report(self) -> dict[str, Any]:
        """How many proposals of the sampler broke a limit or had been measured before."""
        return {"rejected_proposals": self._rejected}


def _register(name: str, sampler: Callable[[SearchProblem, int], BaseSampler]) -> None:
    @ALGORITHMS.register(name)
    def build(problem: SearchProblem) -> OptunaSearch:
        return OptunaSearch(problem, sampler(problem, int(problem.rng.integers(2**31))))


_register("nsga2", lambda problem, seed: NSGAIISampler(population_size=max(2, problem.settings.population), seed=seed))
# Sampled one by one, dozens of genes would each sort all trials anew: 60 ms a proposal instead of 10.
_register(
    "tpe",
    lambda problem, seed: TPESampler(n_startup_trials=problem.settings.population, multivariate=True, seed=seed),
)
