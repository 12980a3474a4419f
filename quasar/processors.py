"""The cost models of CPUs and GPUs for commands and runs."""

from __future__ import annotations

import functools
import math
import sys
from dataclasses import fields

import numpy as np

from hwmodel.errors import InfeasibleError, UsageError
from hwmodel.measured import MeasuredHost
from hwmodel.measured_cost import MeasuredCostModel
from hwmodel.processor import Processor
from hwmodel.processor_cost import ProcessorCostModel, RooflineCostModel
from search.config import HardwareConfig, Limits
from search.parts import SpaceParts
from supernet.lowering import lower
from supernet.space import SearchSpace

#: random subnets by which a space is compared with what was measured
_SAMPLE = 500


def processor_model(device: Processor | MeasuredHost) -> ProcessorCostModel:
    """The cost model of a CPU or GPU; warns where one was measured on another host or with other versions than here."""
    if isinstance(device, Processor):
        return RooflineCostModel(device)
    difference = device.host.difference()
    if difference is not None:
        _warn(
            f"{device.name} was measured {difference}; estimates are for what was measured: for this host, measure "
            f"again with 'quasar hw measure --runtime {device.host.runtime}'"
        )
    return MeasuredCostModel(device)


def processor_for_search(
    device: Processor | MeasuredHost, space: SearchSpace, hardware: HardwareConfig, limits: Limits
) -> ProcessorCostModel:
    """The cost model of a CPU or GPU for a run; warns where a part of the space is outside of what was measured.

    Raises:
        UsageError: settings or limits are about accelerators, or about an energy of which nothing is known.
        InfeasibleError: no subnet is within what was measured.
    """
    for field in fields(HardwareConfig):
        if field.name != "device" and getattr(hardware, field.name) != field.default:
            default = "null" if field.default is None else field.default
            raise UsageError(
                f"hardware.{field.name} is about accelerators, and {device.name} is no FPGA board; give "
                f"hardware.{field.name}={default}"
            )
    for name in ("dsp", "bram18", "lut"):
        if getattr(limits, name) is not None:
            raise UsageError(
                f"search.limits.{name} is about accelerators, and {device.name} is no FPGA board; give "
                f"search.limits.{name}=null"
            )
    model = processor_model(device)
    if limits.energy_mj is not None and math.isnan(model.power_w):
        raise UsageError(
            f"search.limits.energy_mj: nothing is known about the power of {device.name}; measure it again with "
            "'quasar hw measure --power-w W', or remove the limit"
        )
    sample = space.sample(np.random.default_rng(0), _SAMPLE)
    within = float(model.estimate_many(SpaceParts.of(space).of_genotypes(sample)).fits.mean())
    if within < 1:
        ends = (model.estimate(lower(subnet)).violations for subnet in (space.largest(), space.smallest()))
        outside = next((sentences[0] for sentences in ends if sentences), "some sizes lie outside what was measured")
        if within == 0:
            raise InfeasibleError(
                f"no subnet of the space is within what was measured of {device.name}: {outside}; measure larger sizes "
                "(without --quick), or give the space other choices"
            )
        _warn(f"{1 - within:.0%} of the subnets are left out: {outside}; measure larger sizes (without --quick)")
    return model


@functools.cache
def _warn(line: str) -> None:
    """Prints a warning once, however often a run asks for its cost model."""
    print(f"warning: {line}", file=sys.stderr)
