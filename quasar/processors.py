"""The cost models of CPUs and GPUs for commands and runs."""

from __future__ import annotations

import sys

from hwmodel.measured import MeasuredHost
from hwmodel.measured_cost import MeasuredCostModel
from hwmodel.processor import Processor
from hwmodel.processor_cost import ProcessorCostModel, RooflineCostModel


def processor_model(device: Processor | MeasuredHost) -> ProcessorCostModel:
    """The cost model of a CPU or GPU; warns where one was measured on another host or with other versions than here."""
    if isinstance(device, Processor):
        return RooflineCostModel(device)
    difference = device.host.difference()
    if difference is not None:
        print(
            f"warning: {device.name} was measured {difference}; estimates are for what was measured: for this host, "
            f"measure again with 'quasar hw measure --runtime {device.host.runtime}'",
            file=sys.stderr,
        )
    return MeasuredCostModel(device)
