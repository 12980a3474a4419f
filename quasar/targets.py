"""The hardware of a run and what it can meet, known before any training. Torch-free, so that it answers at once."""

from __future__ import annotations

import sys
from typing import Any

from hwmodel.accelerator import AcceleratorConfig
from hwmodel.cost import CostModel, FpgaCostModel
from hwmodel.device import Device, load_device, load_hardware
from hwmodel.errors import InfeasibleError
from hwmodel.explore import best_accelerator
from quasar.config import RunConfig
from quasar.processors import processor_for_search
from search.config import HardwareConfig, Limits
from search.limits import Feasibility, limited_device
from search.profile import profile
from search.shortlist import adaptive_model
from supernet.lowering import lower
from supernet.space import SearchSpace


def choose_accelerator(space: SearchSpace, hardware: HardwareConfig, limits: Limits) -> AcceleratorConfig:
    """The accelerator that all subnets of a run share: the fastest for the largest subnet, as far as not fixed.

    Raises:
        UsageError: unknown device or backend.
        InfeasibleError: none fits the device and `limits`.
    """
    return best_accelerator(
        [lower(space.largest())],
        limited_device(load_device(hardware.device), limits),
        clock_mhz=hardware.clock_mhz,
        backend=hardware.backend,
        array=hardware.array,
        activations=hardware.activations,
    )


def build_cost_model(config: RunConfig) -> CostModel:
    """The cost model of the device of a run: on a board with the accelerator of all subnets, or the best one for each.

    Where the targets are to share an accelerator that the search finds, it is the latter. Errors are those of
    `choose_accelerator`, and of `quasar.processors.processor_for_search` on a CPU or GPU.
    """
    space, hardware, limits = config.space, config.hardware, config.search.limits
    device = load_hardware(hardware.device)
    if not isinstance(device, Device):
        return processor_for_search(device, space, hardware, limits)
    if hardware.accelerator == "fixed":
        return FpgaCostModel(device, choose_accelerator(space, hardware, limits))
    model = adaptive_model(space, hardware, device, limited=limited_device(device, limits))
    if hardware.accelerator == "shared":
        model.holding_all()  # raises if none can be shared
    return model


def check_targets(config: RunConfig, *, device: str | None = None) -> None:
    """Says before any training which targets no subnet can meet; `device` is named where there are several.

    Raises:
        InfeasibleError: that goes for all of them, or no accelerator fits the device.
    """
    feasibility = Feasibility.of(config.space, build_cost_model(config), config.search.limits)
    reasons = [feasibility.reason(target) for target in config.search.targets]
    of = "" if device is None else f"{device}: "
    if all(reasons):
        remedy = "" if device is None else f"; give {device}:search.targets=[…] or --quantiles"
        raise InfeasibleError(of + "; ".join(str(reason) for reason in reasons) + remedy)
    for reason in reasons:
        if reason:
            print(f"warning: {of}{reason}", file=sys.stderr)


def profile_targets(config: RunConfig) -> dict[str, Any]:
    """What the space offers and which targets it can meet, see `search.profile`; errors of `choose_accelerator`."""
    return profile(config.space, build_cost_model(config), config.search, seed=config.seed)
