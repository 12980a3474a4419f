"""Which choices matter for accuracy, told from the trials of a search.

The trials are cut into folds. A predictor (`search.predictor`) is fitted to all folds but one; in that one, the choices
of one kind are shuffled among the trials (for all blocks together) and the rise of the squared error is measured, in
units of the variance of accuracy. So a value of 0.3 says that without knowing this choice, the predictor explains 30
points less of the variance. Beside it stands what it explains in all (R^2 on trials that it has not seen): where that
is low, so is the worth of the rest. Trials of a search are no fair sample of the space, they crowd where it is good.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from search.predictor import AccuracyPredictor
from search.trial import Trial
from supernet.space import BLOCK_GENES, SearchSpace

_FOLDS = 5
_SHUFFLES = 5
#: fewer trials than this say nothing
LEAST_TRIALS = 30


def choice_importance(space: SearchSpace, trials: Sequence[Trial], *, seed: int) -> dict[str, Any] | None:
    """The importance of each kind of choice that the space leaves open, the largest first.

    Returns:
        `explained`, the R^2 on unseen trials, and `choices`, the importance by name of the gene; None if there are
        too few trials, or all are equally accurate.
    """
    accuracy = np.array([trial.score for trial in trials])
    if len(trials) < LEAST_TRIALS or accuracy.var() == 0:
        return None
    rng = np.random.default_rng(seed)
    genotypes = np.array([trial.genotype for trial in trials], dtype=np.int64)
    kinds = np.array([*space.global_genes, *BLOCK_GENES * space.max_depth])
    open_kinds = [kind for kind in dict.fromkeys(kinds) if (space.gene_sizes[kinds == kind] > 1).any()]
    fold = rng.permutation(len(trials)) % _FOLDS
    error = 0.0
    rise = dict.fromkeys(open_kinds, 0.0)
    for held in range(_FOLDS):
        predictor = AccuracyPredictor(space, [trial for trial, f in zip(trials, fold, strict=True) if f != held])
        unseen, truth = genotypes[fold == held], accuracy[fold == held]
        base = float(((predictor.predict(unseen)[0] - truth) ** 2).sum())
        error += base
        for kind in open_kinds:
            for _ in range(_SHUFFLES):
                shuffled = unseen.copy()
                columns = kinds == kind
                shuffled[:, columns] = unseen[rng.permutation(len(unseen))][:, columns]
                worse = float(((predictor.predict(space.canonical(shuffled))[0] - truth) ** 2).sum())
                rise[kind] += (worse - base) / _SHUFFLES
    total = float(((accuracy - accuracy.mean()) ** 2).sum())
    ranked = sorted(rise, key=lambda kind: -rise[kind])
    return {"explained": 1 - error / total, "choices": {kind: rise[kind] / total for kind in ranked}}
