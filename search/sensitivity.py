"""Search for row precisions alone, which starts from what each of them is expected to cost.

For a network that is trained already. Its divergence from floats is nearly a sum of one term for each linear, and the
Fisher information says beforehand how large each is at each ratio (`supernet.fisher`). So before anything is measured
the best subnet under a limit is known (`search.knapsack`) but for two things, which measurements are for: by how much
each linear differs from what is expected of it, and what all of them have in common. Of trials with divergences y,

    y = a + sum over linears of (b + d_l) * x_l        x_l: expected of the linear at its ratio

is fitted by Bayesian ridge regression; the common factor b is expected to be `_COMMON` times as large as the d_l.

Each proposal is the best subnet under its goal for factors between their mean and a sample of their distribution, and
the first ones are those for the mean. So subnets differ where factors are uncertain and it matters.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from sklearn.linear_model import BayesianRidge

from hwmodel.errors import UsageError
from search.algorithm import ALGORITHMS, FloatArray, Proposals, SearchProblem, Turns, as_array
from search.knapsack import Knapsack
from search.predictor import PredictionLog
from search.trial import Trial
from supernet.space import Genotypes, SearchSpace

#: see the module's docstring
_COMMON = 3.0
#: spread of a linear's factor in units of the common one, before anything is measured: 0.44 on an ImageNet ViT-Tiny
_SPREAD = 0.4
#: a linear costs at least this share of what is expected of it, whatever the regression says
_LEAST = 0.1
#: scores below are taken for this one: their logarithm would outweigh all others
_LEAST_SCORE = 1e-3
#: trials from which on factors are fitted
_FITTED = 5
#: factors drawn for a proposal until its subnet is new
_DRAWS = 8


def check_rows_only(space: SearchSpace) -> None:
    """Raises `UsageError` where a space leaves open more than row precisions, or has other operators than attention."""
    for name in ("image_size", "embed_dim", "depth", "num_heads", "mlp_ratio", "operator", "pooling"):
        choices = getattr(space, name)
        if choices != "embed" and len(choices) > 1:
            raise UsageError(
                f"search.algorithm: sensitivity chooses row precisions and nothing else, but space.{name} has "
                f"{len(choices)} choices; leave one, or use search.algorithm=predictor"
            )
    if space.operator != ("attention",):
        raise UsageError(
            f"search.algorithm: sensitivity knows rows of attention only, not of space.operator '{space.operator[0]}'; "
            "use search.algorithm=predictor"
        )


@ALGORITHMS.register("sensitivity")
class SensitivitySearch:
    """See `search.algorithm.SearchAlgorithm`.

    Raises:
        UsageError: the space leaves open more than row precisions, or there is no `expected_divergence`.
    """

    def __init__(self, problem: SearchProblem) -> None:
        check_rows_only(problem.space)
        if problem.expected_divergence is None:
            raise UsageError("search.algorithm: sensitivity needs what rows are expected to cost; use another one")
        self._problem = problem
        self._knapsack = Knapsack(problem)
        self._expected = problem.expected_divergence[self._knapsack.genes]  # (L, C)
        self._unit = max(float(self._expected.max(axis=1).mean()), 1e-12) if len(self._expected) else 1.0
        self._proposals = Proposals(problem)
        self._turns = Turns(problem.limits_ms)
        self._served: set[float] = set()  # limits that have got the best subnet for a mean
        self._exhausted: set[float] = set()  # limits for which no new subnet was found
        self._trials = problem.known_within()
        self._log = PredictionLog()

    def ask(self, count: int) -> Genotypes:
        """A subnet for each limit in turn."""
        mean, covariance = self._factors()
        proposed = (self._propose(mean, covariance, limit_ms) for limit_ms in self._turns.next(count))
        found = [genotype for genotype in proposed if genotype is not None]
        guided = as_array(found, self._problem.space)
        self._log.expect(guided, -self._predicted(mean, guided))
        found += self._proposals.random(count - len(found), limit_ms=self._problem.limits_ms[-1])
        return as_array(found, self._problem.space)

    def tell(self, trials: Sequence[Trial]) -> None:
        """Compares what was predicted with what was measured, and keeps the trials for the next fit."""
        self._log.compare(trials)
        self._trials.extend(trials)

    def report(self) -> dict[str, Any]:
        """How well subnets were ranked, see `PredictionLog`."""
        return self._log.report()

    def _propose(self, mean: FloatArray, covariance: FloatArray, limit_ms: float) -> Genotypes | None:
        """A new subnet (G,) for a limit: the best for some factors, near it, or a random one; None if none is found."""
        if limit_ms in self._exhausted:
            return None
        rng, best = self._problem.rng, None
        for _ in range(_DRAWS):
            share = rng.random() if limit_ms in self._served else 0.0
            self._served.add(limit_ms)
            factors = mean + share * (rng.multivariate_normal(mean, covariance, method="eigh") - mean)
            best = self._knapsack.best(self._terms(factors), limit_ms)
            if best is None:
                break
            if self._proposals.is_new(best):
                return best
        near = self._knapsack.changed(best) if best is not None else as_array([], self._problem.space)
        near = near[self._predicted(mean, near).argsort(kind="stable")]
        taken = self._proposals.take(near, 1, limit_ms=limit_ms) or self._proposals.random(1, limit_ms=limit_ms)
        if not taken:
            self._exhausted.add(limit_ms)
            return None
        return taken[0]

    def _factors(self) -> tuple[FloatArray, FloatArray]:
        """Mean (1 + L) and covariance of b in units of `_COMMON` and of d, for terms in units of their mean."""
        count = len(self._expected)
        if len(self._trials) < _FITTED:
            spread = np.append(0.0, np.full(count, _SPREAD * self._unit))
            return np.append(self._unit / _COMMON, np.zeros(count)), np.diag(spread**2)
        genotypes = np.array([trial.genotype for trial in self._trials], dtype=np.int64)
        measured = np.array([-np.log(max(trial.score, _LEAST_SCORE)) for trial in self._trials])
        each = self._of(self._expected / self._unit, genotypes)
        features = np.concatenate([_COMMON * each.sum(axis=1, keepdims=True), each], axis=1)
        model = BayesianRidge().fit(features, measured)
        return np.asarray(model.coef_), np.asarray(model.sigma_)

    def _terms(self, factors: FloatArray) -> FloatArray:
        """What each choice (L, C) adds to the divergence, never below `_LEAST` of what is expected."""
        common = _COMMON * factors[0]
        each = np.maximum(common + factors[1:], _LEAST * max(common, 1e-6 * self._unit))
        return np.asarray(self._expected / self._unit * each[:, None])

    def _predicted(self, factors: FloatArray, genotypes: Genotypes) -> FloatArray:
        """The divergence of genotypes (N, G) up to a constant, (N,)."""
        return np.asarray(self._of(self._terms(factors), genotypes).sum(axis=1))

    def _of(self, terms: FloatArray, genotypes: Genotypes) -> FloatArray:
        """The terms (N, L) of genotypes (N, G), from those of all choices (L, C)."""
        return np.asarray(terms[np.arange(len(terms)), genotypes[:, self._knapsack.genes]])
