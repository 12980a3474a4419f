"""One accelerator for all targets: the one that serves them best together, told from measured subnets.

The search spends half of its evaluations with an accelerator for each subnet (`hwmodel.adaptive`). That says how
accurate subnets are, and accuracy does not depend on the accelerator: so every design can be judged by the same trials,
at the cost of a table look-up. On each design the trials get their latency and energy on it, and

    score = mean over the targets of the best accuracy that meets the target with all limits, 0 where none does

The highest score wins, then the lower mean loss and the lower mean latency of those subnets, then the fewer cycles of
the largest subnet. The other half of the evaluations goes to that design alone.

Why so. What counts in the end is the accuracy under each target, and no target more than another. To judge designs by a
subnet chosen in advance (the largest, as `fixed` does) favours targets that are far away from it. Trials of the first
half lie where subnets are good on designs of their own, which no design is favoured by. A target that a design cannot
serve at all outweighs any gain elsewhere. The shortlist has the best shared design for any subnets; see
`search.shortlist`.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

import numpy as np

from hwmodel.adaptive import AdaptiveCostModel
from hwmodel.cost import CostModel, FpgaCostModel
from search.config import Limits
from search.limits import costs_function
from search.trial import Trial, best_under
from supernet.lowering import lower
from supernet.space import SearchSpace


def shared_model(
    space: SearchSpace, model: AdaptiveCostModel, trials: Sequence[Trial], limits: Limits, limits_ms: Sequence[float]
) -> FpgaCostModel:
    """The model of the design that serves the targets `limits_ms` best; it holds every subnet of the space.

    Raises:
        InfeasibleError: no design holds every subnet.
    """
    largest = lower(space.largest())

    def merit(design: FpgaCostModel) -> tuple[float, ...]:
        within = within_limits(space, design, trials, limits)
        best = [next(iter(best_under(within, limit_ms)), None) for limit_ms in limits_ms]
        accuracy = sum(trial.score for trial in best if trial)
        loss = sum(trial.val_loss if trial else math.inf for trial in best)
        latency_ms = sum(trial.latency_ms if trial else math.inf for trial in best)
        return (accuracy, -loss, -latency_ms, -design.estimate(largest).cycles)

    return max(model.holding_all(), key=merit)


def repriced(space: SearchSpace, model: CostModel, trials: Sequence[Trial]) -> list[Trial]:
    """The trials with their latency on an accelerator."""
    return _priced(space, model, trials, Limits())[0]


def within_limits(space: SearchSpace, model: CostModel, trials: Sequence[Trial], limits: Limits) -> list[Trial]:
    """Those of the trials that keep to the limits on an accelerator, with their latency there."""
    priced, kept = _priced(space, model, trials, limits)
    return [trial for trial, keeps in zip(priced, kept, strict=True) if keeps]


def _priced(
    space: SearchSpace, model: CostModel, trials: Sequence[Trial], limits: Limits
) -> tuple[list[Trial], list[bool]]:
    genotypes = np.array([trial.genotype for trial in trials], dtype=np.int64).reshape(
        len(trials), len(space.gene_sizes)
    )
    costs = costs_function(space, model, limits)(genotypes)
    latency = costs.latency_ms.tolist()
    priced = [dataclasses.replace(trial, latency_ms=ms) for trial, ms in zip(trials, latency, strict=True)]
    return priced, costs.meet(math.inf).tolist()
