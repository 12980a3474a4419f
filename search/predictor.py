"""A cheap predictor of accuracy from genotypes, with an idea of how sure it is.

Bayesian ridge regression (scikit-learn) on the choice indices, scaled to [0, 1], one indicator for each choice beyond
the first, whether each block is there, and for each kind of block gene its mean over the blocks. Linear models are all
that a few dozen to a few hundred trials of sixty genes support; the means let a block that was hardly varied be
predicted from the others.
"""

from __future__ import annotations

from collections.abc import Sequence

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
        blocks = scaled[:, len(GLOBAL_GENES) :].reshape(len(genotypes), space.max_depth, len(BLOCK_GENES))
        means = blocks.sum(axis=1) / depth[:, None]
        choices = [genotypes == choice for choice in range(2, int(space.gene_sizes.max()))]
        return np.concatenate([scaled, active, means, blocks.sum(axis=1) / space.max_depth, *choices], axis=1)
