"""What a space offers on a device, before anything is trained: the spread of every figure, and what limits the targets.

The smallest and the largest value of each figure are those of the whole space (see `search.limits`), the quantiles
those of uniformly drawn subnets. FPS runs against latency. Resources are those of the one accelerator that all subnets
share, beside what the device and `search.limits` allow.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from hwmodel.cost import FpgaCostModel
from search.algorithm import FloatArray
from search.config import SearchConfig
from search.limits import FIGURES, Feasibility, extremes, figures_of
from supernet.space import Genotypes, SearchSpace

QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)
_SAMPLE = 4000


def profile(space: SearchSpace, model: FpgaCostModel, config: SearchConfig, *, seed: int) -> dict[str, Any]:
    """The figures of a space as plain data, for a table or JSON.

    Returns:
        `figures`: for each its unit, `min`, `quantiles` (of `QUANTILES`), `max`; `resources`: for each what is used,
        what the device has and the most that may be used; `targets`: for each its limit in ms, whether it can be met,
        the reason if it cannot, and the share of random subnets that meet it with all limits; `subnets`: how many the
        space has.
    """
    sample = space.sample(np.random.default_rng(seed), _SAMPLE)
    drawn = figures_of(space, model, sample)
    figures: dict[str, Any] = {}
    for name, unit in FIGURES.items():
        if name == "fps":
            continue

        def figure(genotypes: Genotypes, name: str = name) -> FloatArray:
            return figures_of(space, model, genotypes)[name]

        low, high = figure(np.stack(extremes(space, figure))).tolist()
        figures[name] = _row(unit, low, np.quantile(drawn[name], QUANTILES).tolist(), high)
    latency = figures["latency_ms"]
    rates = [1000 / latency[end] for end in ("max", "min")]
    figures["fps"] = _row("FPS", rates[0], np.quantile(drawn["fps"], QUANTILES).tolist(), rates[1])

    limits, device = config.limits, model.device
    resources = {}
    for name in ("dsp", "bram18", "lut"):
        available = getattr(device, name)
        allowed = available * getattr(device.limits, name)
        limit = getattr(limits, name)
        resources[name] = {
            "used": getattr(model.resources, name),
            "available": available,
            "limit": int(allowed + 1e-9) if limit is None else min(int(allowed + 1e-9), limit),
        }

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
        "device": device.name,
        "subnets": space.size,
        "figures": {name: figures[name] for name in FIGURES},
        "resources": resources,
        "accelerator": model.accelerator.to_dict(),
        "targets": targets,
    }


def _row(unit: str, low: float, quantiles: list[float], high: float) -> dict[str, Any]:
    return {"unit": unit, "min": low, "quantiles": quantiles, "max": high}
