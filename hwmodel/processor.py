"""Processors as data: CPUs and GPUs that run a network operator by operator; see `hwmodel.processor_cost`.

A device file of `kind: roofline` holds one: `name`, `title`, `part`, `memory`, `precision`, and every other field as
`{value: ..., source: ...}`. This module imports no NumPy, so that a command line can list processors at once.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import field

from hwmodel.device_file import MAY_BE_ZERO, SHARE

#: bytes of a number in each precision that arithmetic can have
PRECISION_BYTES = {"fp32": 4, "fp16": 2, "int8": 1}


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class PeakRates:
    """10^9 operations per second at each precision, a multiply-accumulate being two; None where the chip lacks it."""

    fp32: float
    fp16: float | None
    int8: float | None

    def at(self, precision: str) -> float | None:
        """The peak at one of `PRECISION_BYTES`."""
        return {"fp32": self.fp32, "fp16": self.fp16, "int8": self.int8}[precision]


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Processor:
    """One CPU or GPU.

    `precision` is that of the arithmetic of matrix products. `compute_efficiency` is the share of a peak that they
    reach, `memory_efficiency` the share of `memory_gb_per_s` (10^9 bytes per second) that can be sustained. Every
    operator takes `launch_us` beside its work. `power_w` is the power while a network runs. `sources` maps each figure
    ("launch_us", "peak_gops.fp32") to where it comes from.
    """

    name: str
    title: str
    part: str
    memory: str
    precision: str
    peak_gops: PeakRates
    compute_efficiency: float = field(metadata=SHARE)
    memory_gb_per_s: float
    memory_efficiency: float = field(metadata=SHARE)
    launch_us: float = field(metadata=MAY_BE_ZERO)
    power_w: float
    sources: Mapping[str, str]
