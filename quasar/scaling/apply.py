"""A strategy that a study has found, applied elsewhere: at another budget, on another device, to another family."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hwmodel.cost import FpgaCostModel
from hwmodel.device import Device, load_hardware
from hwmodel.errors import DamagedInputError, InfeasibleError, UsageError
from hwmodel.explore import best_accelerator
from hwmodel.workload import Workload
from quasar.config import RunConfig
from quasar.processors import processor_model
from quasar.scaling.families import PitFamily, VitFamily
from quasar.scaling.shapes import VitShape
from quasar.scaling.strategy import CostOf, Placed, Strategy, cost_function
from search.config import HardwareConfig
from supernet.pit_shape import PitShape
from supernet.validation import validate


@dataclass(frozen=True, kw_only=True, slots=True)
class Found:
    """What is read from `scale.json`: the strategy with the family that it was found for, and its configuration."""

    strategy: Strategy
    family: VitFamily
    config: RunConfig


def load_strategy(path: Path) -> Found:
    """Reads `scale.json`, or that of the folder of a study.

    Raises:
        UsageError: no such file.
        DamagedInputError: it is not what `quasar scale` writes.
    """
    file = path / "scale.json" if path.is_dir() else path
    try:
        document = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UsageError(f"{file}: no such file; `quasar scale CONFIG` writes it") from None
    except (OSError, ValueError) as error:
        raise DamagedInputError(f"{file}: cannot be read as the result of a study ({error})") from None
    try:
        config = {key: value for key, value in document["config"].items() if key != "scale"}
        law = dict(document["strategy"])
        base = law.pop("base")
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise DamagedInputError(f"{file}: is not the result of a study (no {error})") from None
    settings = validate(RunConfig, config, source=str(file), error=DamagedInputError)
    shape = validate(VitShape, base, source=f"{file}: strategy.base", error=DamagedInputError)
    return Found(
        strategy=validate(Strategy, law, source=f"{file}: strategy", error=DamagedInputError),
        family=VitFamily(base=shape, space=settings.space),
        config=settings,
    )


def apply(found: Found, budget: float, *, device: str | None = None, pit: PitShape | None = None) -> dict[str, Any]:
    """The shape that a strategy gives at a budget, and what it costs.

    Each shape gets the accelerator on a board that is best for it: a shape may be larger than any that was tried.

    Args:
        budget: in the unit of the strategy.
        device: instead of the one that the strategy was found for.
        pit: a pooling ViT that is scaled instead, and which is what an unscaled one is.

    Raises:
        UsageError: an unknown device, or a device for a strategy in MACs.
        InfeasibleError: no shape near the budget fits the device.
    """
    strategy, hardware, family = found.strategy, found.config.hardware, found.family
    if strategy.unit == "macs":
        if device is not None:
            raise UsageError("--device: the strategy is one of MACs, the same on every device; leave it out")
        cost_of = cost_function("macs", None)
    else:
        other = device is not None and device != hardware.device
        hardware = HardwareConfig(device=str(device)) if other else hardware
        cost_of = latency_function(hardware)
        if other:
            strategy = strategy.moved(family, cost_of, anchor=strategy.anchor)
    document = {
        "unit": strategy.unit,
        "device": None if strategy.unit == "macs" else hardware.device,
        "budget": budget,
        "family": "vit" if pit is None else "pit",
    }
    if pit is None:
        return document | _placed(strategy.at(budget, family, cost_of))
    pits = PitFamily(base=pit, high_precision_ratio=found.config.space.high_precision_ratio[0])
    strategy = strategy.moved(pits, cost_of)
    return document | _placed(strategy.at(budget, pits, cost_of)) | {"base_cost": strategy.cost}


def latency_function(hardware: HardwareConfig) -> CostOf:
    """The latency in ms of any network on a device: on a board with the accelerator that is best for it.

    Raises:
        UsageError: an unknown device.
    """
    device = load_hardware(hardware.device)
    if not isinstance(device, Device):
        return cost_function("latency_ms", processor_model(device))

    def latency_of(workload: Workload) -> float:
        try:
            accelerator = best_accelerator(
                [workload],
                device,
                clock_mhz=hardware.clock_mhz,
                backend=hardware.backend,
                array=hardware.array,
                activations=hardware.activations,
            )
        except InfeasibleError:
            return math.inf
        return cost_function("latency_ms", FpgaCostModel(device, accelerator))(workload)

    return latency_of


def _placed(placed: Placed[Any]) -> dict[str, Any]:
    return {"shape": placed.shape.to_dict(), "cost": placed.cost, "off": placed.off}
