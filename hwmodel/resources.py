"""What an accelerator takes of a device, term by term, and what the device allows.

DSP and block RAM counts follow from the structure below. LUT and FF are ESTIMATES: sums of per-part figures that
placement and routing will change, unless the device carries a calibration: then each is multiplied by its factor.

    array               P_m * P_k DSPs; both weight buffers sit in their registers and in flip-flops beside them
    requantization      PO / 8 lanes, one output code each; acc * mantissa is 32 x 16 bits, so 2 DSPs a lane
    vector unit         2 DSPs a lane (square and accumulate; normalise), one pipelined divider and square root
    accumulators        2 halves (one fills, one drains) of r * P_m banks, 32 bits x max_tokens, r = most rows of a DSP
    activation buffer   one word holds max(P_k, vector lanes) bytes, so that either reads a word per cycle
    bias and scale      for each lane, 54 bits (32 bias, 16 mantissa, 6 exponent) for the rows of two tiles
    GELU, exponentials  256 x 8 bits; the two ports of a table serve two lanes
    stream buffers      512 words of each memory stream

A bank of width x depth bits takes, over the shapes w x d that an 18 Kb block RAM has,

    bram18 = min over (1 x 16384, 2 x 8192, 4 x 4096, 9 x 2048, 18 x 1024, 36 x 512) of ceil(width/w) * ceil(depth/d)

and none if it is smaller than 1,024 bits: then it becomes LUT RAM, 32 bits to a LUT.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Mapping

import numpy as np

from hwmodel.accelerator import AcceleratorColumns, AcceleratorConfig, FloatLike, IntLike
from hwmodel.cycles import ceil_div
from hwmodel.device import Calibration, Device, ResourceFit
from hwmodel.errors import DamagedInputError
from hwmodel.registry import unknown_name

BRAM18_SHAPES = ((1, 16384), (2, 8192), (4, 4096), (9, 2048), (18, 1024), (36, 512))
LUTRAM_BELOW_BITS = 1024

_SYNTHESIS = "structure; block RAM count of the accumulators agrees with open synthesis of a W8A8 engine"
_STRUCTURE = "structure of the unit; LUT and FF are engineering estimates"


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class ResourceTerm:
    """What one part of the accelerator takes, and where the figures come from."""

    name: str
    source: str
    dsp: IntLike = 0
    bram18: IntLike = 0
    lut: IntLike = 0
    ff: IntLike = 0


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Resources:
    """DSPs, 18 Kb block RAMs, LUTs and flip-flops of one accelerator; the last two are estimates."""

    dsp: int
    bram18: int
    lut: int
    ff: int


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Demand:
    """Something that an accelerator uses and a device limits; `why` explains the limit."""

    name: str
    used: IntLike | FloatLike
    limit: float
    why: str

    @property
    def violation(self) -> str | None:
        """A sentence if this demand, of one accelerator, is above its limit."""
        if self.used <= self.limit:
            return None
        return f"{self.name} {self.used:.10g} exceeds {self.limit:.10g} ({self.why})"


def bram18(width: IntLike, depth: IntLike) -> IntLike:
    """18 Kb block RAMs of a bank of `depth` words of `width` bits; 0 if the bank becomes LUT RAM."""
    blocks = _smallest(ceil_div(width, w) * ceil_div(depth, d) for w, d in BRAM18_SHAPES)
    return blocks * _in_blocks(width, depth)


def lutram(width: IntLike, depth: IntLike) -> IntLike:
    """LUTs of a bank that is too small for block RAM (estimate); 0 for any other bank."""
    return ceil_div(width * depth, 32) * (1 - _in_blocks(width, depth))


def resource_terms(accelerator: AcceleratorColumns) -> tuple[ResourceTerm, ...]:
    """Every part of the accelerator with what it takes."""
    a = accelerator
    dsps = a.array_rows * a.array_inputs
    banks = a.array_rows * a.narrow_rows
    lanes = a.output_stream_bits // 8
    lane_pairs, vector_pairs = ceil_div(lanes, 2), ceil_div(a.vector_lanes, 2)
    bias_depth = 2 * ceil_div(banks, lanes)
    word_bytes = np.maximum(a.array_inputs, a.vector_lanes)
    words = ceil_div(a.activation_buffer_bytes, word_bytes)
    memory_streams = 1 + 2 * a.ddr_activations
    return (
        ResourceTerm(
            name="array",
            source="packing backend; see hwmodel.accelerator.BACKENDS",
            dsp=dsps,
            lut=dsps * a.lut_per_dsp,
            ff=dsps * a.ff_per_dsp,
        ),
        ResourceTerm(name="requantization", source=_STRUCTURE, dsp=2 * lanes, lut=120 * lanes, ff=200 * lanes),
        ResourceTerm(
            name="vector unit",
            source=_STRUCTURE,
            dsp=2 * a.vector_lanes,
            lut=2500 + 250 * a.vector_lanes,
            ff=4000 + 300 * a.vector_lanes,
        ),
        ResourceTerm(
            name="accumulators",
            source=_SYNTHESIS,
            bram18=2 * banks * bram18(32, a.max_tokens),
            # one 32-bit adder a row, and the choice between the two halves
            lut=banks * (48 + 2 * lutram(32, a.max_tokens)),
            ff=64 * banks,
        ),
        ResourceTerm(
            name="activation buffer",
            source=_STRUCTURE,
            bram18=bram18(8 * word_bytes, words),
            lut=lutram(8 * word_bytes, words),
        ),
        ResourceTerm(
            name="bias and scale tables",
            source=_STRUCTURE,
            bram18=lanes * bram18(54, bias_depth),
            lut=lanes * lutram(54, bias_depth),
        ),
        ResourceTerm(name="GELU tables", source=_STRUCTURE, bram18=lane_pairs * bram18(8, 256)),
        ResourceTerm(name="exponential tables", source=_STRUCTURE, bram18=vector_pairs * bram18(8, 256)),
        ResourceTerm(
            name="stream buffers",
            source=_STRUCTURE,
            bram18=bram18(a.weight_stream_bits, 512)
            + a.ddr_activations * (bram18(a.activation_stream_bits, 512) + bram18(a.output_stream_bits, 512)),
            # address generator and burst control of each stream
            lut=1500 * memory_streams,
            ff=2000 * memory_streams,
        ),
        ResourceTerm(name="control", source="engineering estimate", lut=4000, ff=5000),
    )


def total(accelerator: AcceleratorColumns, calibration: Calibration | None = None) -> ResourceTerm:
    """The sum of all parts; with a calibration, LUT and FF are corrected by it and rounded to whole numbers."""
    terms = resource_terms(accelerator)
    return ResourceTerm(
        name="total",
        source="sum of all parts",
        dsp=sum((term.dsp for term in terms), 0),
        bram18=sum((term.bram18 for term in terms), 0),
        lut=_corrected({term.name: term.lut for term in terms}, calibration.lut if calibration else None),
        ff=_corrected({term.name: term.ff for term in terms}, calibration.ff if calibration else None),
    )


def resources_of(config: AcceleratorConfig, calibration: Calibration | None = None) -> Resources:
    """What one accelerator takes in total."""
    sums = total(AcceleratorColumns.one(config), calibration)
    return Resources(dsp=int(sums.dsp), bram18=int(sums.bram18), lut=int(sums.lut), ff=int(sums.ff))


def demands(accelerator: AcceleratorColumns, device: Device) -> tuple[Demand, ...]:
    """All that `device` limits: resources, memory bandwidth, memory ports and clock."""
    sums = total(accelerator, device.calibration)
    streams = accelerator.weight_stream_bits + accelerator.ddr_activations * (
        accelerator.activation_stream_bits + accelerator.output_stream_bits
    )
    sustained = device.ddr_gb_per_s * device.ddr_efficiency
    return (
        _resource("DSP", sums.dsp, device.dsp, device.limits.dsp),
        _resource("BRAM18", sums.bram18, device.bram18, device.limits.bram18),
        _resource("LUT", sums.lut, device.lut, device.limits.lut),
        _resource("FF", sums.ff, device.ff, device.limits.ff),
        Demand(
            name="memory bandwidth in GB/s",
            used=streams * accelerator.clock_mhz / 8000,
            limit=sustained,
            why=f"{100 * device.ddr_efficiency:g} % of {device.ddr_gb_per_s:g}; narrow the streams",
        ),
        # A port reads and writes on separate channels; counting both against it is conservative.
        Demand(
            name="memory stream bits per cycle",
            used=streams,
            limit=device.hp_ports * device.port_bits,
            why=f"{device.hp_ports} ports of {device.port_bits} bits",
        ),
        Demand(
            name="clock in MHz",
            used=accelerator.clock_mhz,
            limit=device.max_clock_mhz,
            why=f"the most that {device.name} supports",
        ),
    )


def _corrected(amounts: Mapping[str, IntLike], fit: ResourceFit | None) -> IntLike:
    if fit is None:
        return sum(amounts.values(), 0)
    for part in fit.factors:
        if part not in amounts:
            raise DamagedInputError(f"calibration: {unknown_name('part', part, amounts)}")
    factors = {part: factor.value for part, factor in fit.factors.items()}
    exact = sum((factors.get(part, 1.0) * amount for part, amount in amounts.items()), 0.0)
    return np.asarray(np.rint(exact), dtype=np.int64)


def _resource(name: str, used: IntLike, available: int, share: float) -> Demand:
    # The tiny term keeps a product such as 0.57 * 100 = 56.99... from losing a unit.
    usable = math.floor(available * share + 1e-9)
    return Demand(name=name, used=used, limit=usable, why=f"{100 * share:g} % of {available}")


def _in_blocks(width: IntLike, depth: IntLike) -> IntLike:
    return np.asarray(width * depth >= LUTRAM_BELOW_BITS).astype(np.int64)


def _smallest(values: Iterable[IntLike]) -> IntLike:
    smallest, *rest = values
    for value in rest:
        smallest = np.minimum(smallest, value)
    return smallest
