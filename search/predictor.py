"""A cheap predictor of accuracy from genotypes, with an idea of how sure it is.

Bayesian ridge regression (scikit-learn) on the choice indices, scaled to [0, 1], one indicator for each choice beyond
the first, whether each block is there, and for each kind of block gene its mean over the blocks. Linear models are all
that a few dozen to a few hundred trials of sixty genes support; the means let a block that was hardly varied be
predicted from the others.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from sklearn.linear_model import BayesianRidge

from search.algorithm import FloatArray
from search.trial import Trial
from supernet.space import BLOCK_GENES, GLOBAL_GENES, Genotypes, SearchSpace


class AccuracyPredictor:
    """Fitted to trials; predicts accuracy for genotypes of the same space."""

    def __init__(self, space: SearchSpace, trials: Sequence[Trial]) -> None:
        self._space = space
        genotypes = np.array([trial.genotype for trial in trials], dtype=np.int64)
        accuracy = np.array([trial.score for trial in trials])
        self._model = BayesianRidge().fit(self.features(genotypes), accuracy)

    def predict(self, genotypes: Genotypes) -> tuple[FloatArray, FloatArray]:
        """Mean and standard deviation of the accuracy of canonical genotypes (N, G), each of shape (N,)."""
        if len(genotypes) == 0:
            return np.zeros(0), np.zeros(0)
        mean, deviation = self._model.predict(self.features(genotypes), return_std=True)
        return np.asarray(mean), np.asarray(deviation)

    def features(self, genotypes: Genotypes) -> FloatArray:
        """What the regression sees of genotypes (N, G), shape (N, F)."""
        space = self._space
        most = np.maximum(space.gene_sizes - 1, 1)
        scaled = genotypes / most
        depth = np.array(space.depth)[genotypes[:, GLOBAL_GENES.index("depth")]]
        active = np.arange(space.max_depth) < depth[:, None]
        blocks = scaled[:, len(space.global_genes) :].reshape(len(genotypes), space.max_depth, len(BLOCK_GENES))
        means = blocks.sum(axis=1) / depth[:, None]
        choices = [genotypes == choice for choice in range(2, int(space.gene_sizes.max()))]
        return np.concatenate([scaled, active, means, blocks.sum(axis=1) / space.max_depth, *choices], axis=1)


class PredictionLog:
    """How well scores are predicted where it matters: of candidates that are then measured, before it is learned."""

    def __init__(self) -> None:
        self._expected: dict[tuple[int, ...], float] = {}
        self._correlations: list[tuple[float, float]] = []

    def expect(self, genotypes: Genotypes, scores: FloatArray) -> None:
        """Notes what is predicted for the genotypes (N, G) of a generation, (N,)."""
        self._expected = dict(zip(map(tuple, genotypes.tolist()), scores.tolist(), strict=True))

    def compare(self, trials: Sequence[Trial]) -> None:
        """Compares that with what was measured."""
        fresh = [trial for trial in trials if trial.genotype in self._expected]
        if len(fresh) > 2:
            measured = np.array([trial.score for trial in fresh])
            predicted = np.array([self._expected[trial.genotype] for trial in fresh])
            latency = np.array([trial.latency_ms for trial in fresh])
            self._correlations.append((rank_correlation(predicted, measured), rank_correlation(latency, measured)))
        self._expected = {}

    def report(self) -> dict[str, Any]:
        """Spearman's rank correlation on candidates before they are learned from, the mean over generations.

        Beside it that of the latency alone, which a predictor has to beat to be of use. Empty if nothing was compared.
        """
        if not self._correlations:
            return {}
        predictor, latency = np.mean(self._correlations, axis=0).tolist()
        return {
            "predictor_rank_correlation": predictor,
            "latency_rank_correlation": latency,
            "generations_predicted": len(self._correlations),
        }


def rank_correlation(first: FloatArray, second: FloatArray) -> float:
    """Spearman's rank correlation, equal values sharing their mean rank; 0 where one side does not vary."""
    x, y = (ranks - ranks.mean() for ranks in (_ranks(first), _ranks(second)))
    spread = float(np.sqrt((x @ x) * (y @ y)))
    return float(x @ y) / spread if spread > 0 else 0.0


def _ranks(values: FloatArray) -> FloatArray:
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    return np.asarray((counts.cumsum() - (counts - 1) / 2)[inverse])
