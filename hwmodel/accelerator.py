"""The accelerator: a time-multiplexed array of `array_rows` x `array_inputs` DSPs with a small vector unit.

Each DSP holds r weight rows of one input and multiplies all of them by the same activation in every cycle; r depends
on the packing backend and on the bits of the row:

    dual    3 rows of up to 4 bits, or 2 rows of 5 to 8 bits, on the 27 x 18 multiplier of a DSP48E2
            (4-bit codes must stay within [-7, 7]; their fields leave the DSP in every cycle)
    atomic  4-bit atoms, two for each DSP: 2 rows of up to 4 bits, or 1 row of 5 to 8 bits as 16*hi + lo

The array holds rows of one kind at a time, so a product runs all its 8-bit row tiles and then its 4-bit ones.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hwmodel.errors import UsageError
from hwmodel.registry import unknown_name
from hwmodel.workload import IntArray

IntLike = int | IntArray
FloatLike = float | NDArray[np.float64]

ACTIVATION_PLACES = ("onchip", "ddr")
MIN_BITS, NARROW_BITS, MAX_BITS = 2, 4, 8


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Backend:
    """One way to pack weight rows on a DSP: rows of up to 4 bits, rows of 5 to 8 bits, and its fabric per DSP.

    LUT and FF are estimates, without what a DSP48E2 takes in; `source` says where they come from. A skewed array takes
    a beat of the weight stream input by input, so that each input but the first has a register for it.
    """

    name: str
    narrow_rows: int
    wide_rows: int
    lut_per_dsp: float
    ff_per_dsp: float
    skewed: bool
    source: str


BACKENDS: Mapping[str, Backend] = {
    backend.name: backend
    for backend in (
        Backend(
            name="dual",
            narrow_rows=3,
            wide_rows=2,
            lut_per_dsp=130,
            ff_per_dsp=66.9,
            skewed=False,
            source="fitted to open syntheses (experiments/fit_resources.py): field extraction, adder trees, shadow "
            "weights",
        ),
        Backend(
            name="atomic",
            narrow_rows=2,
            wide_rows=1,
            lut_per_dsp=18.3,
            ff_per_dsp=8,
            skewed=True,
            source="fitted to open syntheses (experiments/fit_resources.py): packing, shadow weights, activation "
            "delays; sums stay in the DSP cascade",
        ),
    )
}


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class AcceleratorConfig:
    """One accelerator. Streams are in bits per cycle, and whole bytes.

    The weight stream comes from memory. With `activations` "onchip" the activation buffer holds all that is alive in
    a network: the array reads `array_inputs` codes per cycle from it, and `activation_stream_bits` plays no part. With
    "ddr" each activation tile streams from memory, outputs stream back, and the activation buffer holds two tiles of
    `max_tokens` x `array_inputs` codes. The drain gives `output_stream_bits` / 8 codes per cycle; those of the residual
    stream and the logits have 16 bits, so its port is twice as wide.

    Raises:
        UsageError: a value is impossible; the message names its key.
    """

    array_rows: int
    array_inputs: int
    backend: str
    clock_mhz: float
    weight_stream_bits: int
    activation_stream_bits: int
    output_stream_bits: int
    activations: str
    activation_buffer_bytes: int
    max_tokens: int
    vector_lanes: int

    def __post_init__(self) -> None:
        # The upper bounds are far beyond any part; they keep every product of the cycle model inside int64.
        for key in ("array_rows", "array_inputs", "vector_lanes"):
            _check_whole(key, getattr(self, key), most=4096)
        for key in ("max_tokens", "activation_buffer_bytes"):
            _check_whole(key, getattr(self, key), most=2**31 - 1)
        for key in ("weight_stream_bits", "activation_stream_bits", "output_stream_bits"):
            _check_whole(key, getattr(self, key), most=2**16)
            if getattr(self, key) % 8:
                raise UsageError(f"{key} must be a multiple of 8, not {getattr(self, key)}")
        clock = self.clock_mhz
        if isinstance(clock, bool) or not isinstance(clock, int | float) or not 0 < clock < math.inf:
            raise UsageError(f"clock_mhz must be a number above 0, not {clock!r}")
        if str(self.backend) not in BACKENDS:
            raise unknown_name("backend", str(self.backend), BACKENDS)
        if self.activations not in ACTIVATION_PLACES:
            raise unknown_name("activations", str(self.activations), ACTIVATION_PLACES)
        tiles_bytes = 2 * self.max_tokens * self.array_inputs
        if self.activations == "ddr" and self.activation_buffer_bytes < tiles_bytes:
            raise UsageError(
                f"activation_buffer_bytes must be at least {tiles_bytes} (two tiles of max_tokens x array_inputs) "
                f"with activations in ddr, not {self.activation_buffer_bytes}"
            )

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON and YAML; `from_dict` reads them back."""
        return dataclasses.asdict(self)

    @staticmethod
    def from_dict(values: Mapping[str, Any]) -> AcceleratorConfig:
        """The accelerator with these values; raises `UsageError` for an unknown, missing or impossible key."""
        keys = [field.name for field in dataclasses.fields(AcceleratorConfig)]
        for key in values:
            if key not in keys:
                raise unknown_name("accelerator key", str(key), keys)
        for key in keys:
            if key not in values:
                raise UsageError(f"accelerator key '{key}' is missing; add it")
        return AcceleratorConfig(**values)


def parse_array(text: str) -> tuple[int, int]:
    """Rows and inputs of an array such as "32x32"; raises `UsageError` for another form."""
    rows, _, inputs = text.lower().partition("x")
    if not (rows.isdecimal() and inputs.isdecimal() and int(rows) and int(inputs)):
        raise UsageError(f"an array must look like 32x32, not '{text}'")
    return int(rows), int(inputs)


def _check_whole(key: str, value: object, *, most: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= most:
        raise UsageError(f"{key} must be a whole number from 1 to {most}, not {value!r}")


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class AcceleratorColumns:
    """The numbers of one accelerator (`one`: plain ints) or of C of them (`of`: arrays of shape (C, 1)).

    Formulas written over these columns broadcast against layers of shape (N, G) for one accelerator and of (1, G) for
    many. `ddr_activations` is 1 where activations live in memory, else 0.
    """

    array_rows: IntLike
    array_inputs: IntLike
    clock_mhz: FloatLike
    weight_stream_bits: IntLike
    activation_stream_bits: IntLike
    output_stream_bits: IntLike
    activation_buffer_bytes: IntLike
    max_tokens: IntLike
    vector_lanes: IntLike
    ddr_activations: IntLike
    narrow_rows: IntLike
    wide_rows: IntLike
    lut_per_dsp: FloatLike
    ff_per_dsp: FloatLike
    skewed: IntLike

    @staticmethod
    def one(config: AcceleratorConfig) -> AcceleratorColumns:
        """The columns of one accelerator, as plain numbers."""
        return AcceleratorColumns(**_values(config))

    @staticmethod
    def of(configs: Sequence[AcceleratorConfig]) -> AcceleratorColumns:
        """The columns of C accelerators, each of shape (C, 1)."""
        rows = [_values(config) for config in configs]
        return AcceleratorColumns(
            **{
                field.name: np.array([[row[field.name]] for row in rows])
                for field in dataclasses.fields(AcceleratorColumns)
            }
        )

    def rows_per_dsp(self, bits: int) -> IntLike:
        """Weight rows of so many bits that share one DSP; raises `UsageError` if no lane can hold them."""
        if not MIN_BITS <= bits <= MAX_BITS:
            raise UsageError(f"weights of {bits} bits do not fit the array: use {MIN_BITS} to {MAX_BITS} bits")
        return self.narrow_rows if bits <= NARROW_BITS else self.wide_rows


def _values(config: AcceleratorConfig) -> dict[str, Any]:
    backend = BACKENDS[config.backend]
    return {
        "array_rows": config.array_rows,
        "array_inputs": config.array_inputs,
        "clock_mhz": float(config.clock_mhz),
        "weight_stream_bits": config.weight_stream_bits,
        "activation_stream_bits": config.activation_stream_bits,
        "output_stream_bits": config.output_stream_bits,
        "activation_buffer_bytes": config.activation_buffer_bytes,
        "max_tokens": config.max_tokens,
        "vector_lanes": config.vector_lanes,
        "ddr_activations": int(config.activations == "ddr"),
        "narrow_rows": backend.narrow_rows,
        "wide_rows": backend.wide_rows,
        "lut_per_dsp": backend.lut_per_dsp,
        "ff_per_dsp": backend.ff_per_dsp,
        "skewed": int(backend.skewed),
    }
