"""What an accelerator takes of a device, term by term, and what the device allows.

DSP and block RAM counts of the RTL are EXACT: they follow from its structure (`hwmodel/rtl`), whose memories choose
their RAM by a rule of their own (`quasar_memory.sv`), and they equal open synthesis of it (`hwmodel.synth`).

    engine          array                   P_m * P_k DSPs
                    requantization          PO / 8 lanes; acc * mantissa is 32 x 16 bits, so 2 DSPs a lane
                    accumulators            2 halves (one fills, one drains) of r * P_m banks of 32 bits x max_tokens,
                                            r = most rows of a DSP
                    activation buffer       words of P_k codes; several of them wide if a beat of the stream holds them
                    token factors           22 bits x max_tokens
                    bias and scale tables   56 bits a lane, for each group of lanes that two row tiles have
                    GELU tables             256 x 8 bits a lane, distributed
                    control                 command, schedule, and the weight stream's registers
    vector unit     vector unit             3 DSPs a lane and 6 for the statistics of LayerNorm; memories of rows that
                                            are read again, and of the gains and biases of 1,024 channels
                    exponential tables      256 x 8 bits a lane, distributed
    not in the RTL  stream buffers          512 words of each memory stream, its address generator and burst control
                    host interface          registers and interconnect of the control processor

A memory of width x depth bits is distributed up to 64 words, 8 LUTs holding 32 x 14 or 64 x 7 bits, and takes else,
over the shapes w x d that an 18 Kb block RAM has,

    bram18 = min over (1 x 16384, 2 x 8192, 4 x 4096, 9 x 2048, 18 x 1024, 36 x 512) of ceil(width/w) * ceil(depth/d)

LUT and FF are ESTIMATES. What the structure says (distributed RAM, registers as wide as a stream) is counted; the rest
is so much for each DSP, lane and row, fitted to open syntheses of the shipped RTL, without what goes into the DSPs.
`FIT_ERRORS` are the differences that the fit leaves (experiments/fit_resources.py makes both anew):

    LUT   standard deviation 1.7 %, worst 3.9 %     of 14 engines from 2 x 4 to 16 x 16 DSPs of both backends
    FF    standard deviation 1.3 %, worst 2.5 %     and 4 vector units

Placement and routing change LUT and FF again, and Vivado's optimisation is not that of the open tools. A device with a
calibration multiplies each part by its factor.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from hwmodel.accelerator import AcceleratorColumns, AcceleratorConfig, FloatLike, IntLike
from hwmodel.cycles import ceil_div
from hwmodel.device import Calibration, Device, ResourceFit
from hwmodel.errors import DamagedInputError
from hwmodel.integer_vector import LARGEST_WIDTH
from hwmodel.registry import unknown_name
from hwmodel.vector_cycles import clog2

BRAM18_SHAPES = ((1, 16384), (2, 8192), (4, 4096), (9, 2048), (18, 1024), (36, 512))
#: of `quasar_memory.sv`: memories of at most so many words are distributed
DISTRIBUTED_WORDS = 64
#: of a distributed table of 256 x 8 bits: 4 x 2 groups of 8 LUTs with 64 x 7 bits each
TABLE_LUT = 64


ENGINE_PARTS = (
    "array",
    "requantization",
    "accumulators",
    "activation buffer",
    "token factors",
    "bias and scale tables",
    "GELU tables",
    "control",
)
VECTOR_PARTS = ("vector unit", "exponential tables")

_STRUCTURE = "structure of the RTL"
_FITTED = "structure of the RTL; LUT and FF fitted to open syntheses (experiments/fit_resources.py)"
_ESTIMATE = "not in the RTL; engineering estimate"


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Fabric:
    """LUT and FF of the parts whose structure does not tell them, beside those of a DSP (`hwmodel.accelerator`)."""

    lane_lut: float  # requantization, each lane
    lane_ff: float
    row_lut: float  # each accumulator: its adder, and its share of the choice of rows that are drained
    row_ff: float
    control_lut: float
    control_ff: float
    vector_lane_lut: float
    vector_lane_ff: float
    vector_lut: float  # what the vector unit has once: divider, square root, counters
    vector_ff: float


FABRIC = Fabric(
    lane_lut=475,
    lane_ff=308,
    row_lut=52,
    row_ff=17.4,
    control_lut=422,
    control_ff=116,
    vector_lane_lut=631,
    vector_lane_ff=514,
    vector_lut=3746,
    vector_ff=4238,
)


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class FitError:
    """Relative differences of an estimate from the syntheses that it was fitted to, in percent."""

    std_percent: float
    worst_percent: float


#: of LUT and FF, of the engine and the vector unit, each synthesis one difference
FIT_ERRORS: Mapping[str, FitError] = {
    "lut": FitError(std_percent=1.7, worst_percent=3.9),
    "ff": FitError(std_percent=1.3, worst_percent=2.5),
}


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
    sentence: str | None = None  # in place of the figures

    @property
    def violation(self) -> str | None:
        """A sentence if this demand, of one accelerator, is above its limit."""
        if self.used <= self.limit:
            return None
        if self.sentence is not None:
            return self.sentence
        return f"{self.name} {self.used:.10g} exceeds {self.limit:.10g} ({self.why})"


def bram18(width: IntLike, depth: IntLike) -> IntLike:
    """18 Kb block RAMs of a memory of `depth` words of `width` bits; 0 if it is distributed."""
    return _blocks(width, depth) * (1 - _distributed(depth))


def lutram(width: IntLike, depth: IntLike) -> IntLike:
    """LUTs of the RAM of a distributed memory; 0 for any other."""
    return 8 * ceil_div(width, np.where(np.asarray(depth) <= 32, 14, 7)) * _distributed(depth)


def activation_memory(accelerator: AcceleratorColumns) -> tuple[IntLike, IntLike, IntLike]:
    """Width in bits and depth of the activation buffer's memory, and how many words of P_k codes one of its words has.

    On chip it holds `activation_buffer_bytes`; with activations in memory, two tiles of `max_tokens` words.
    """
    a = accelerator
    streamed = np.asarray(a.ddr_activations) == 1
    word = 8 * a.array_inputs
    beat_words = np.where(streamed, np.maximum(a.activation_stream_bits // word, 1), 1)
    words = np.where(streamed, 2 * a.max_tokens, a.activation_buffer_bytes // a.array_inputs)
    # two halves, each of whole beats
    return word * beat_words, np.maximum(2 * ceil_div(words, 2 * beat_words), 2), beat_words


def fits_words(accelerator: AcceleratorColumns) -> Any:
    """Whether beats of the activation stream and words of P_k codes are whole parts of each other, as the RTL needs."""
    word, stream = 8 * accelerator.array_inputs, accelerator.activation_stream_bits
    words = stream // word
    return (word % stream == 0) | ((stream % word == 0) & (words & (words - 1) == 0))


def resource_terms(accelerator: AcceleratorColumns, fabric: Fabric = FABRIC) -> tuple[ResourceTerm, ...]:
    """Every part of the accelerator with what it takes; LUT and FF are rounded to whole numbers."""
    a = accelerator
    return (*_engine_terms(a, fabric), *_vector_terms(a, fabric), *_outside_terms(a))


def _engine_terms(a: AcceleratorColumns, fabric: Fabric) -> tuple[ResourceTerm, ...]:
    dsps = a.array_rows * a.array_inputs
    rows = a.array_rows * a.narrow_rows
    lanes = a.output_stream_bits // 8
    groups = 2 * _power_of_two(np.maximum(ceil_div(rows, lanes), 2))
    record = 56 * lanes
    skew = np.minimum(a.weight_stream_bits, 16 * a.array_rows)
    buffer_width, buffer_depth, _ = activation_memory(a)
    word = 8 * a.array_inputs
    stream = np.where(np.asarray(a.ddr_activations) == 1, a.activation_stream_bits, word)
    return (
        ResourceTerm(
            name="array",
            source="packing backend; see hwmodel.accelerator.BACKENDS",
            dsp=dsps,
            lut=_whole(dsps * a.lut_per_dsp),
            ff=_whole(dsps * a.ff_per_dsp)
            # a cascade's inputs take a beat of the weight stream one after the other (of a beat that is much wider than
            # an input's weights, most becomes shift-register LUTs); sums of 27 and 22 bits
            + a.skewed * (skew * (a.array_inputs - 1) + 49 * a.array_rows)
            # three trees of 18, 18 and 11 bits, about two bits wider on average
            + (1 - a.skewed) * 53 * a.array_rows * (a.array_inputs - 1),
        ),
        ResourceTerm(
            name="requantization",
            source=_FITTED,
            dsp=2 * lanes,
            lut=_whole(fabric.lane_lut * lanes),
            ff=_whole(fabric.lane_ff * lanes),
        ),
        ResourceTerm(
            name="accumulators",
            source=_FITTED,
            bram18=2 * rows * bram18(32, a.max_tokens),
            lut=_whole(fabric.row_lut * rows) + 2 * rows * _memory_lut(32, a.max_tokens),
            ff=_whole(fabric.row_ff * rows) + 2 * rows * _memory_ff(32, a.max_tokens),
        ),
        ResourceTerm(
            name="activation buffer",
            source=_STRUCTURE,
            bram18=bram18(buffer_width, buffer_depth),
            lut=_memory_lut(buffer_width, buffer_depth),
            # the head of a word whose beats are still to come
            ff=_memory_ff(buffer_width, buffer_depth) + np.maximum(word - stream, 0),
        ),
        ResourceTerm(
            name="token factors",
            source=_STRUCTURE,
            bram18=bram18(22, a.max_tokens),
            lut=_memory_lut(22, a.max_tokens),
            ff=_memory_ff(22, a.max_tokens),
        ),
        ResourceTerm(
            name="bias and scale tables",
            source=_STRUCTURE,
            bram18=bram18(record, groups),
            lut=_memory_lut(record, groups),
            # a record as it is put together, and as it is used
            ff=_memory_ff(record, groups) + record + 54 * lanes,
        ),
        ResourceTerm(name="GELU tables", source=_STRUCTURE, lut=TABLE_LUT * lanes),
        ResourceTerm(
            name="control",
            source=_FITTED,
            lut=_whole(fabric.control_lut),
            ff=_whole(fabric.control_ff) + a.weight_stream_bits,
        ),
    )


def _vector_terms(a: AcceleratorColumns, fabric: Fabric) -> tuple[ResourceTerm, ...]:
    lanes = a.vector_lanes
    levels = clog2(lanes)
    groups = ceil_div(LARGEST_WIDTH, lanes)
    memories = (
        # rows whose statistics are under way, of LayerNorm (60 cycles and a tree) and of softmax
        (16 * lanes, _power_of_two(groups + levels + 60)),
        (8 * lanes, _power_of_two(ceil_div(a.max_tokens, lanes) + levels + 4)),
        # gains and biases
        (48 * lanes, groups),
    )
    return (
        ResourceTerm(
            name="vector unit",
            source=_FITTED,
            dsp=3 * lanes + 6,
            bram18=_sum(bram18(width, depth) for width, depth in memories),
            lut=_whole(fabric.vector_lut + fabric.vector_lane_lut * lanes) + _sum(_memory_lut(*m) for m in memories),
            # with the parameters of a group as they are put together
            ff=_whole(fabric.vector_ff + fabric.vector_lane_ff * lanes)
            + 48 * lanes
            + _sum(_memory_ff(*m) for m in memories),
        ),
        ResourceTerm(name="exponential tables", source=_STRUCTURE, lut=TABLE_LUT * lanes),
    )


def _outside_terms(a: AcceleratorColumns) -> tuple[ResourceTerm, ...]:
    memory_streams = 1 + 2 * a.ddr_activations
    return (
        ResourceTerm(
            name="stream buffers",
            source=_ESTIMATE,
            bram18=bram18(a.weight_stream_bits, 512)
            + a.ddr_activations * (bram18(a.activation_stream_bits, 512) + bram18(2 * a.output_stream_bits, 512)),
            # address generator and burst control of each stream
            lut=1500 * memory_streams,
            ff=2000 * memory_streams,
        ),
        ResourceTerm(name="host interface", source=_ESTIMATE, lut=3000, ff=4000),
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
    # Codes of the residual stream leave with 16 bits, twice the width that 8-bit ones need.
    streams = accelerator.weight_stream_bits + accelerator.ddr_activations * (
        accelerator.activation_stream_bits + 2 * accelerator.output_stream_bits
    )
    sustained = device.ddr_gb_per_s * device.ddr_efficiency
    misfit = accelerator.ddr_activations * (1 - np.asarray(fits_words(accelerator), dtype=np.int64))
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
            name="activation stream",
            used=misfit,
            limit=0,
            why="see quasar_activations.sv",
            sentence="activation_stream_bits must divide 8 * array_inputs or be a power of two times it",
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


def _blocks(width: IntLike, depth: IntLike) -> IntLike:
    return _smallest(ceil_div(width, w) * ceil_div(depth, d) for w, d in BRAM18_SHAPES)


def _distributed(depth: IntLike) -> IntLike:
    return np.asarray(np.asarray(depth) <= DISTRIBUTED_WORDS).astype(np.int64)


def _memory_lut(width: IntLike, depth: IntLike) -> IntLike:
    """LUTs of a memory: distributed RAM, or the choice between the rows of a grid of blocks."""
    least, rows = _blocks(width, depth), np.zeros((), dtype=np.int64)
    for w, d in BRAM18_SHAPES:  # the deepest of the shapes that take the least
        here = ceil_div(depth, d)
        rows = np.where((ceil_div(width, w) * here == least) & (rows == 0), here, rows)
    choice = width * np.where(rows > 1, -(-rows // 2), 0) * (1 - _distributed(depth))
    return np.asarray(lutram(width, depth) + choice)


def _memory_ff(width: IntLike, depth: IntLike) -> IntLike:
    """Flip-flops of a memory: the word that was read from distributed RAM."""
    return width * _distributed(depth)


def _power_of_two(least: IntLike) -> IntLike:
    """The least power of two that is not below `least`, elementwise."""
    return np.left_shift(np.int64(1), clog2(least))


def _whole(amount: Any) -> IntLike:
    return np.asarray(np.rint(amount), dtype=np.int64)


def _sum(amounts: Iterable[IntLike]) -> IntLike:
    return sum(amounts, 0)


def _smallest(values: Iterable[IntLike]) -> IntLike:
    smallest, *rest = values
    for value in rest:
        smallest = np.minimum(smallest, value)
    return smallest
