"""Limits before search: what candidates cost against their limits, and which targets no subnet can meet.

The least of each figure over a space is known without enumeration (`search.bounds`). Each limit is proven on its own.
Limits that can be met one by one but not together are found out by the search, which gives up within a bound.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass

import numpy as np

from hwmodel.cost import CostModel
from hwmodel.device import Device
from search.algorithm import Costs, CostsOf
from search.bounds import FIGURES, LatencyBounds, extremes, latency_bounds
from search.config import Limits, Target
from search.parts import SpaceParts
from supernet.lowering import lower
from supernet.space import Genotypes, SearchSpace

#: figures that limits hold for, beside the latency: a limit and the subnet that is smallest in it
_LIMITED = ("energy_mj", "weight_bytes")
#: what the fastest subnet does with its time, and what would help
_REMEDIES = {
    "compute": "the array computes: a larger hardware.array or a faster hardware.clock_mhz helps",
    "weights": "the array waits for weights: fewer or narrower weight rows help, or a device with a faster memory",
    "activations": "the array waits for activations: smaller images help, or hardware.activations=onchip",
    "output": "the array waits for its results to go out: smaller images or widths help",
    "vector": "the vector unit works: fewer tokens help (smaller images, larger patches)",
    "arithmetic": "the processor computes: smaller images or widths help, or a faster device",
    "memory": "the processor waits for its memory: smaller widths help, or a device with a faster memory",
    "launch": "goes to launching operators: fewer blocks help",
}


def costs_function(space: SearchSpace, model: CostModel, limits: Limits) -> CostsOf:
    """The function that an algorithm asks for the costs of its candidates."""
    limit_ms = limits.limit_ms
    parts = SpaceParts.of(space)
    population = parts.population
    table = model.table(population)
    weight_bits = population.gemm_parts(
        population.gemms.weight_bits(high_bits=population.high_bits, low_bits=population.low_bits)[0]
    )

    def costs_of(genotypes: Genotypes) -> Costs:
        if len(genotypes) == 0:
            return Costs(latency_ms=np.zeros(0), overrun=np.zeros(0))
        numbers = parts.numbers(genotypes)
        batch = table.costs(numbers, energy=limits.energy_mj is not None)
        overrun = np.where(batch.fits, 0.0, np.inf)
        if math.isfinite(limit_ms):
            overrun = np.maximum(overrun, batch.latency_ms / limit_ms)
        if limits.energy_mj is not None:
            overrun = np.maximum(overrun, batch.energy_mj / limits.energy_mj)
        if limits.weight_bytes is not None:
            weight_bytes = -(-weight_bits[numbers].sum(axis=1) // 8)
            overrun = np.maximum(overrun, weight_bytes / limits.weight_bytes)
        return Costs(latency_ms=batch.latency_ms, overrun=overrun)

    return costs_of


def limited_device(device: Device, limits: Limits) -> Device:
    """The device with no more DSPs, block RAMs and LUTs than `limits` allow an accelerator."""
    shares = {}
    for name in ("dsp", "bram18", "lut"):
        limit = getattr(limits, name)
        if limit is not None:
            shares[name] = min(getattr(device.limits, name), limit / getattr(device, name))
    return dataclasses.replace(device, limits=dataclasses.replace(device.limits, **shares)) if shares else device


@dataclass(frozen=True, kw_only=True, slots=True)
class Feasibility:
    """What is proven before a search; `anchors` (A, G) are the subnets smallest in latency and in limited figures.

    `broken` is a sentence about a limit that no subnet of `space` keeps on the hardware of `model`.
    """

    space: SearchSpace
    model: CostModel
    bounds: LatencyBounds
    anchors: Genotypes
    broken: str | None

    @staticmethod
    def of(space: SearchSpace, model: CostModel, limits: Limits) -> Feasibility:
        """Proves what the space can meet on the hardware of `model`."""
        bounds = latency_bounds(space, model)
        anchors, broken = [bounds.fastest], None
        if limits.limit_ms < bounds.fastest_ms:
            broken = (
                f"search.limits allows {limits.limit_ms:g} ms, and the fastest subnet of the space takes "
                f"{round_up(bounds.fastest_ms)} ms"
            )
        for name in _LIMITED:
            limit = getattr(limits, name)
            if limit is None:
                continue
            found = extremes(space, model, name)
            anchors.append(found.smallest)
            if found.bound > limit and broken is None:
                broken = (
                    f"no subnet of the space keeps to search.limits.{name} {limit:g}: the least is "
                    f"{round_up(found.least)} {FIGURES[name]}; raise the limit or give the space smaller choices"
                )
        return Feasibility(space=space, model=model, bounds=bounds, anchors=np.stack(anchors), broken=broken)

    def reason(self, target: Target) -> str | None:
        """Why no subnet of the space can meet the target, with the nearest value that one can; None if one may."""
        if target.limit_ms < self.bounds.fastest_ms:
            fastest_ms = self.bounds.fastest_ms
            return (
                f"no subnet of the space meets {target}: the fastest takes {round_up(fastest_ms)} ms "
                f"({math.floor(1000 / fastest_ms)} FPS){self._bottleneck()}; or give the space smaller choices"
            )
        return f"{target}: {self.broken}" if self.broken else None

    def _bottleneck(self) -> str:
        """What the fastest subnet waits for, for the end of a sentence."""
        cost = self.model.estimate(lower(self.space.decode(self.bounds.fastest)))
        bound, share = next(iter(cost.time_by_bound().items()), ("", 0.0))
        return f"; {share:.0%} of its time {_REMEDIES[bound]}" if bound in _REMEDIES else ""


def round_up(value: float) -> str:
    """Six digits, rounded up: as a limit it can be met."""
    step = 10.0 ** (math.floor(math.log10(value)) - 5)
    return f"{math.ceil(value / step - 1e-6) * step:.6g}"
