"""What a space offers on a device, before anything is trained: the spread of every figure, and what limits the targets.

The smallest and the largest value of each figure are those of the whole space (see `search.bounds`), the quantiles
those of uniformly drawn subnets. FPS runs against latency. Resources are those of the one accelerator that all subnets
share, beside what the device and `search.limits` allow; where each has its own, the most that any of the drawn ones
takes with buffers for the largest subnet. A CPU or GPU has none, and its energy may not be known.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from hwmodel.adaptive import AdaptiveCostModel
from hwmodel.cost import CostModel, FpgaCostModel
from search.bounds import FIGURES, extremes, figures_of
from search.config import Limits, SearchConfig
from search.limits import Feasibility
from search.parts import SpaceParts
from supernet.space import Genotypes, SearchSpace

QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)
_SAMPLE = 4000


def profile(space: SearchSpace, model: CostModel, config: SearchConfig, *, seed: int) -> dict[str, Any]:
    """The figures of a space as plain data, for a table or JSON.

    Returns:
        `figures`: for each known one its unit, `min`, `quantiles` (of `QUANTILES`), `max`; `resources`: for each what
        is used, what the device has and the most that may be used; `targets`: for each its limit in ms, whether it can
        be met, the reason if it cannot, and the share of random subnets that meet it with all limits; `subnets`: how
        many the space has; `accelerator`: the one that all subnets share, or None; `accelerators`: None, or where each
        subnet has its own, the sizes of the `grid` and of the `shortlist` of designs that are best for some subnet, and
        those `drawn`, each with its share of random subnets, the most frequent first.
    """
    sample = space.sample(np.random.default_rng(seed), _SAMPLE)
    drawn = figures_of(space, model, sample)
    figures: dict[str, Any] = {}
    for name, unit in FIGURES.items():
        if name == "fps" or np.isnan(drawn[name]).any():
            continue
        ends = extremes(space, model, name)
        figures[name] = _row(unit, ends.least, np.quantile(drawn[name], QUANTILES).tolist(), ends.most)
    latency = figures["latency_ms"]
    rates = [1000 / latency[end] for end in ("max", "min")]
    figures["fps"] = _row("FPS", rates[0], np.quantile(drawn["fps"], QUANTILES).tolist(), rates[1])

    designs = _accelerators(model, space, sample)
    limits = config.limits
    feasibility = Feasibility.of(space, model, limits)
    kept = drawn["latency_ms"] <= limits.limit_ms
    for name in ("energy_mj", "weight_bytes"):
        if getattr(limits, name) is not None:
            kept &= drawn[name] <= getattr(limits, name)
    targets = []
    for target in config.targets:
        reason = feasibility.reason(target)
        targets.append(
            {
                "target": str(target),
                "latency_ms": target.limit_ms,
                "status": "infeasible" if reason else "ok",
                "reason": reason,
                "nearest_latency_ms": max(target.limit_ms, feasibility.bounds.fastest_ms),
                "share_of_random_subnets": float((kept & (drawn["latency_ms"] <= target.limit_ms)).mean()),
            }
        )
    return {
        "device": model.device.name,
        "subnets": space.size,
        "figures": {name: figures[name] for name in FIGURES if name in figures},
        "resources": _resources(designs, limits),
        "accelerator": model.accelerator.to_dict() if isinstance(model, FpgaCostModel) else None,
        "accelerators": {
            "grid": model.grid_size,
            "shortlist": len(model.designs),
            "drawn": [{"accelerator": design.accelerator.to_dict(), "share": share} for design, share in designs],
        }
        if isinstance(model, AdaptiveCostModel)
        else None,
        "targets": targets,
    }


def _resources(designs: list[tuple[FpgaCostModel, float]], limits: Limits) -> dict[str, Any]:
    """What the designs take at most of each resource, what their device has, and what is allowed."""
    resources: dict[str, Any] = {}
    for name in ("dsp", "bram18", "lut") if designs else ():
        device = designs[0][0].device
        available, limit = getattr(device, name), getattr(limits, name)
        allowed = int(available * getattr(device.limits, name) + 1e-9)
        resources[name] = {
            "used": max(getattr(design.resources, name) for design, _ in designs),
            "available": available,
            "limit": allowed if limit is None else min(allowed, limit),
        }
    return resources


def _accelerators(model: CostModel, space: SearchSpace, sample: Genotypes) -> list[tuple[FpgaCostModel, float]]:
    """The designs that the subnets of a sample get, each with its share of them, the most frequent first."""
    if isinstance(model, FpgaCostModel):
        return [(model, 1.0)]
    if not isinstance(model, AdaptiveCostModel):
        return []
    parts = SpaceParts.of(space)
    positions = model.table(parts.population).choose(parts.numbers(sample))[0]
    found, counts = np.unique(positions, return_counts=True)
    order = np.argsort(-counts, kind="stable")
    return [(model.designs[found[i]], float(counts[i] / len(sample))) for i in order.tolist()]


def _row(unit: str, low: float, quantiles: list[float], high: float) -> dict[str, Any]:
    return {"unit": unit, "min": low, "quantiles": quantiles, "max": high}
