"""What a study has found, before it is written."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np

from quasar.scaling.candidates import Candidates
from quasar.scaling.families import VitFamily
from quasar.scaling.plan import Study
from quasar.scaling.shapes import VitShape
from quasar.scaling.strategy import FittedExponent, Growth, Measured, Strategy
from supernet.evaluate import Evaluation


@dataclass(frozen=True, kw_only=True, slots=True)
class Row:
    """One shape in the comparison: trained with the seeds that no candidate had."""

    what: str
    budget: float | None
    shape: VitShape
    macs: float
    latency_ms: float | None
    validation: tuple[Evaluation, ...]
    test: tuple[Evaluation, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class Outcome:
    """All that a study has found, see `quasar.scaling.results`.

    `left_out` says what has no shape at a budget, and why.
    """

    study: Study
    candidates: Candidates
    measured: tuple[Measured, ...]
    found: Mapping[Growth, FittedExponent]
    strategy: Strategy
    family: VitFamily
    compound: Strategy
    rows: tuple[Row, ...]
    left_out: tuple[str, ...]


def mean_and_error(evaluations: Iterable[Evaluation]) -> tuple[float, float]:
    """Mean accuracy over seeds and its standard error: that of the images, which all seeds share, and of the seeds."""
    evaluations = list(evaluations)
    accuracy = np.array([evaluation.accuracy for evaluation in evaluations])
    mean = float(accuracy.mean())
    variance = mean * (1 - mean) / evaluations[0].images
    if len(accuracy) > 1:
        variance += float(accuracy.var(ddof=1)) / len(accuracy)
    return mean, float(np.sqrt(variance))
