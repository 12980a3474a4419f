"""The candidates of a study: the shapes whose cost is near a budget, by the cost model alone."""

from __future__ import annotations

import dataclasses
import sys
from dataclasses import dataclass

import numpy as np

from hwmodel.cost import CostModel
from hwmodel.errors import InfeasibleError
from quasar.scaling.plan import Budget, Study, Unit, space_with_patch
from quasar.scaling.shapes import FloatArray, enumerate_shapes, shape_costs, space_filling
from quasar.targets import build_cost_model

#: columns of an array of costs
COSTS: tuple[Unit, ...] = ("macs", "latency_ms")


@dataclass(frozen=True, kw_only=True, slots=True)
class Candidates:
    """All shapes (N, 6) with their costs (N, 2), and for each budget the numbers of those that are near it.

    `chosen` are those of them that are tried, `near` says how many there are.
    """

    shapes: FloatArray
    costs: FloatArray
    near: tuple[int, ...]
    chosen: tuple[list[int], ...]


def device_models(study: Study) -> dict[int, CostModel] | None:
    """The cost model of the device by patch size; None if budgets are in MACs and the device holds none of the shapes.

    One accelerator for all shapes is the one for the patch size with the most tokens; where each shape has its own,
    there is a model for each patch size.

    Raises:
        UsageError: settings or limits that do not fit the device.
        InfeasibleError: budgets are latencies, and no accelerator fits.
    """
    config = study.config
    spaces = {patch: space_with_patch(config.space, patch) for patch in study.patch_sizes}
    finest = max(spaces, key=lambda patch: spaces[patch].image_size[-1] / patch)
    models = {}
    try:
        for patch in spaces if config.hardware.accelerator == "per_subnet" else (finest,):
            models[patch] = build_cost_model(dataclasses.replace(config, space=spaces[patch]))
    except InfeasibleError as error:
        if study.plan.unit == "latency_ms":
            raise
        print(f"warning: no latencies: {error}", file=sys.stderr)
        return None
    return {patch: models.get(patch, models[finest]) for patch in spaces}


def find_candidates(study: Study, models: dict[int, CostModel] | None) -> Candidates:
    """Enumerates all shapes and chooses among those near each budget.

    Raises:
        UsageError: the space has too many shapes.
        InfeasibleError: nothing is near a budget; the message names the nearest costs.
    """
    plan, space = study.plan, study.config.space
    shapes = enumerate_shapes(space, study.patch_sizes)
    costs = shape_costs(shapes, space, models)
    cost = costs[:, COSTS.index(plan.unit)]
    near, chosen = [], []
    for index, budget in enumerate(plan.budgets):
        among = np.flatnonzero(np.abs(cost / budget.cost - 1) <= plan.tolerance)
        if not len(among):
            raise InfeasibleError(f"{study.source}: scale.budgets: {_nearest(cost, budget, plan.tolerance)}")
        near.append(len(among))
        rng = np.random.default_rng([study.config.seed, index])
        chosen.append(space_filling(shapes, among, plan.candidates, rng))
    return Candidates(shapes=shapes, costs=costs, near=tuple(near), chosen=tuple(chosen))


def cost_text(cost: float, unit: Unit) -> str:
    """A cost for people."""
    return f"{cost:.4g} ms" if unit == "latency_ms" else f"{cost / 1e6:.4g} M MACs"


def _nearest(cost: FloatArray, budget: Budget, tolerance: float) -> str:
    known = cost[np.isfinite(cost)]
    start = f"none of {len(cost):,} shapes costs within {tolerance:.0%} of {cost_text(budget.cost, budget.unit)}"
    if not len(known):
        return f"{start}, as none fits the device; give the space smaller choices"
    sides = (known[known < budget.cost].max(initial=-np.inf), known[known > budget.cost].min(initial=np.inf))
    ends = [cost_text(float(side), budget.unit) for side in sides if np.isfinite(side)]
    return f"{start}; the nearest costs {' and '.join(ends)}: change the budget, the choices of space, or the tolerance"
