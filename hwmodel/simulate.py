"""Simulation of the RTL engine (`hwmodel/rtl`): its cycles and outputs against the model and the reference.

A build (`hwmodel.rtl_build`) belongs to one set of RTL parameters and serves any number of products.

With activations "onchip" the buffer is filled by a command first, whose cycles are reported apart. With "ddr" they
stream in again for every tile. Predicted cycles (`hwmodel.cycles`) hold for streams that never pause; with a stall
probability, only the outputs are to be compared.
"""

from __future__ import annotations

import math
import struct
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from hwmodel.accelerator import AcceleratorColumns, AcceleratorConfig
from hwmodel.cycles import gemm_cycles
from hwmodel.errors import QuasarError, UsageError
from hwmodel.integer import IntegerGemm
from hwmodel.parameter_streams import ParameterStreams, RowTiles, StoredRows, padded
from hwmodel.rtl_build import build, run
from hwmodel.rtl_parameters import ENGINE, engine_parameters
from hwmodel.workload import Gemm, Population, Workload

#: beyond this many DSPs a build takes many minutes
LARGEST_ARRAY_DSPS = 1024
#: the most products of 4-bit atoms and unsigned activations that a cascade adds up (`quasar_dsp_atomic.sv`)
LONGEST_UNSIGNED_CASCADE = 548
#: sizes are 16-bit fields of a command
LARGEST_FIELD = 2**16 - 1

_JOB = struct.Struct("<19IQ")
_RESULT = struct.Struct("<IQQ")
_DONE, _CAP_EXCEEDED = 0, 1


@dataclass(frozen=True, kw_only=True, slots=True)
class RunSettings:
    """How one operation is run.

    `stall` is the probability with which each stream pauses before a beat. `cycle_cap` None allows ten times the
    predicted cycles, and more with stalls. `reset_after` breaks the operation off by a reset after so many cycles and
    then runs it from the start, to show that a reset leaves nothing behind.

    Raises:
        UsageError: a value is out of range.
    """

    stall: float = 0.0
    seed: int = 0
    cycle_cap: int | None = None
    reset_after: int | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.stall < 1:
            raise UsageError(f"stall must be a probability from 0 to below 1, not {self.stall!r}")
        if not 0 <= self.seed < 2**32:
            raise UsageError(f"seed must be from 0 to {2**32 - 1}, not {self.seed!r}")
        for name, value in (("cycle_cap", self.cycle_cap), ("reset_after", self.reset_after)):
            if value is not None and not 1 <= value < 2**32:
                raise UsageError(f"{name} must be from 1 to {2**32 - 1}, not {value!r}")


@dataclass(frozen=True, kw_only=True, slots=True)
class SimulationJob(RunSettings):
    """One product to simulate."""

    gemm: IntegerGemm


@dataclass(frozen=True, kw_only=True, slots=True)
class SimulationResult:
    """What the simulation of one product gave. `fill_cycles` filled the activation buffer (0 with "ddr")."""

    predicted_cycles: int
    simulated_cycles: int
    fill_cycles: int
    outputs: int
    mismatching_outputs: int


def predicted_cycles(config: AcceleratorConfig, gemm: IntegerGemm) -> int:
    """Cycles of one product by the closed form of `hwmodel.cycles`."""
    layer = Gemm(
        name="gemm",
        kind="gemm",
        tokens=gemm.tokens,
        inputs=gemm.inputs,
        rows_high=gemm.rows_high,
        rows_low=gemm.rows - gemm.rows_high,
    )
    workload = Workload(name="gemm", gemms=(layer,), vectors=(), activation_bytes=0)
    return int(gemm_cycles(AcceleratorColumns.one(config), Population.of(workload)).sum())


def engine_config(
    *, array: tuple[int, int], backend: str, activations: str, stream_bits: int, shapes: Sequence[tuple[int, int]]
) -> AcceleratorConfig:
    """An engine whose buffers just hold products of the given tokens and inputs.

    Streamed activations come a word of the array (`8 * inputs` bits) at a time.

    Raises:
        UsageError: a size is impossible; the message names it.
    """
    rows, inputs = array
    words = max((tokens * -(-k // inputs) for tokens, k in shapes), default=1)
    return AcceleratorConfig(
        array_rows=rows,
        array_inputs=inputs,
        backend=backend,
        clock_mhz=150,
        weight_stream_bits=stream_bits,
        activation_stream_bits=8 * inputs,
        output_stream_bits=stream_bits,
        activations=activations,
        activation_buffer_bytes=max(1, words * inputs),
        max_tokens=max(1, max((tokens for tokens, _ in shapes), default=1)),
        vector_lanes=1,
    )


def simulate(
    config: AcceleratorConfig, jobs: Sequence[SimulationJob], *, simulator: str = "auto"
) -> list[SimulationResult]:
    """Runs all products on one engine, one after the other, and compares them with the reference.

    `simulator` is one of `hwmodel.rtl_build.SIMULATORS`.

    Raises:
        UsageError: the simulator or g++ is missing; the array is too large to simulate; a stream width or a product
            does not fit the engine.
        QuasarError: a build failed, or a product exceeded its cycle cap.
    """
    layout = _Layout(config)
    expected = [job.gemm.outputs() for job in jobs]
    predicted = [predicted_cycles(config, job.gemm) for job in jobs]
    payload = [struct.pack("<I", len(jobs))]
    caps = []
    for job, cycles in zip(jobs, predicted, strict=True):
        layout.check(job.gemm)
        caps.append(job.cycle_cap or round((10 * (cycles + layout.fill_beats(job.gemm)) + 1000) / (1 - job.stall) ** 2))
        payload.append(layout.encode(job, cap=caps[-1]))
    program = build(
        ENGINE,
        parameters=layout.parameters,
        bench="bench.cpp",
        defines=layout.beat_bytes,
        simulator=simulator,
    )
    with tempfile.TemporaryDirectory(prefix="quasar-") as folder:
        jobs_file, results_file = Path(folder, "jobs"), Path(folder, "results")
        jobs_file.write_bytes(b"".join(payload))
        run([str(program), str(jobs_file), str(results_file)], what="the simulation")
        data = results_file.read_bytes()
    results, at = [], 0
    for index, (job, codes) in enumerate(zip(jobs, expected, strict=True)):
        status, cycles, fill_cycles = _RESULT.unpack_from(data, at)
        at += _RESULT.size
        if status == _CAP_EXCEEDED:
            raise QuasarError(f"product {index} is not done after {caps[index]} cycles; raise its cycle cap")
        if status != _DONE:
            raise QuasarError(f"product {index} broke the protocol of a stream; this is a bug of the engine, report it")
        size = layout.output_bytes(job.gemm)
        simulated = layout.decode(job.gemm, np.frombuffer(data, dtype="<i2", count=size // 2, offset=at))
        at += size
        results.append(
            SimulationResult(
                predicted_cycles=predicted[index],
                simulated_cycles=cycles,
                fill_cycles=fill_cycles,
                outputs=codes.size,
                mismatching_outputs=int((simulated != codes).sum()),
            )
        )
    return results


class _Layout:
    """Parameters of the RTL for an accelerator, and how operands lie in its streams (see the headers of the RTL)."""

    def __init__(self, config: AcceleratorConfig) -> None:
        self.config = config
        self.streamed = config.activations == "ddr"
        self.streams = ParameterStreams.of(config)
        self.lanes = self.streams.lanes
        if config.array_rows * config.array_inputs > LARGEST_ARRAY_DSPS:
            raise UsageError(
                f"an array of {config.array_rows} x {config.array_inputs} is too large to simulate; "
                f"use at most {LARGEST_ARRAY_DSPS} DSPs"
            )
        self.parameters = engine_parameters(config)
        self.activation_bits, self.buffer_words = self.parameters["PA"], self.parameters["ACT_WORDS"]
        self.words_per_beat = max(self.activation_bits // (8 * config.array_inputs), 1)

    @property
    def beat_bytes(self) -> dict[str, int]:
        """Bytes in a beat of each stream, as the test bench names them."""
        return {
            "A_BYTES": self.activation_bits // 8,
            "W_BYTES": self.config.weight_stream_bits // 8,
            "O_BYTES": 2 * self.lanes,
        }

    def check(self, gemm: IntegerGemm) -> None:
        """Raises `UsageError` if the product does not fit the engine."""
        if gemm.tokens > self.config.max_tokens:
            raise UsageError(f"{gemm.tokens} tokens exceed max_tokens {self.config.max_tokens}; raise it")
        words = gemm.tokens * self._k_tiles(gemm)
        if not self.streamed and words > self.buffer_words:
            raise UsageError(
                f"activations of {gemm.tokens} x {gemm.inputs} take {words * self.config.array_inputs} bytes on chip, "
                f"activation_buffer_bytes is {self.config.activation_buffer_bytes}; raise it or use activations 'ddr'"
            )
        atomic = self.config.backend == "atomic"
        if gemm.unsigned_activations and atomic and self.config.array_inputs > LONGEST_UNSIGNED_CASCADE:
            raise UsageError(
                f"array_inputs {self.config.array_inputs} is too long a cascade for unsigned activations; "
                f"use at most {LONGEST_UNSIGNED_CASCADE}"
            )
        if max(gemm.tokens, self._k_tiles(gemm), sum(self._row_tiles(gemm))) > LARGEST_FIELD:
            raise UsageError(f"tokens, k tiles and row tiles of a product must not exceed {LARGEST_FIELD}")

    def fill_beats(self, gemm: IntegerGemm) -> int:
        """Beats that fill the activation buffer before the product."""
        return 0 if self.streamed else gemm.tokens * self._k_tiles(gemm)

    def encode(self, job: SimulationJob, *, cap: int) -> bytes:
        """The job in the form that the test bench reads."""
        gemm = job.gemm
        stored = StoredRows(
            weights=gemm.weights, rows_high=gemm.rows_high, bias=gemm.bias, mantissa=gemm.mantissa, shift=gemm.shift
        )
        activations, weights = self._activation_stream(gemm), self.streams.rows(stored)
        # The table's address is a code's byte: codes 0 to 127 come first.
        table = b"" if gemm.table is None else np.roll(gemm.table, 128).tobytes()
        mantissas, shifts = gemm.token_factors or (np.zeros(0, dtype=np.int64),) * 2
        factors = (mantissas + (shifts << 16)).astype("<u4")
        tiles_high, tiles_low = self._row_tiles(gemm)
        head = _JOB.pack(
            self.fill_beats(gemm),
            gemm.tokens,
            self._k_tiles(gemm),
            tiles_high,
            tiles_low,
            self.streamed,
            gemm.table is not None,
            gemm.least == -127,
            gemm.unsigned_activations,
            gemm.wide,
            gemm.token_factors is not None,
            job.seed,
            round(job.stall * 2**16),
            job.reset_after or 0,
            len(activations) * 8 // self.activation_bits,
            len(weights) * 8 // self.config.weight_stream_bits,
            self.output_bytes(gemm) // (2 * self.lanes),
            len(table),
            factors.size,
            cap,
        )
        return head + activations + weights + table + factors.tobytes()

    def output_bytes(self, gemm: IntegerGemm) -> int:
        """Bytes of the output stream, padding included."""
        groups = sum(kind.tiles * -(-kind.tile_rows // self.lanes) for kind in self._kinds(gemm))
        return groups * gemm.tokens * 2 * self.lanes

    def decode(self, gemm: IntegerGemm, stream: NDArray[np.int16]) -> NDArray[np.int16]:
        """The codes (F, M) of an output stream: row tile by row tile, token by token, its rows padded to groups.

        They come as 16-bit numbers, those of 8 bits sign-extended.
        """
        parts, at = [], 0
        for kind in self._kinds(gemm):
            shape = (kind.tiles, gemm.tokens, self.lanes * -(-kind.tile_rows // self.lanes))
            codes = stream[at : at + math.prod(shape)].reshape(shape)[:, :, : kind.tile_rows]
            parts.append(codes.transpose(1, 0, 2).reshape(gemm.tokens, kind.tiles * kind.tile_rows)[:, : kind.rows])
            at += math.prod(shape)
        return np.concatenate(parts, axis=1)

    def _k_tiles(self, gemm: IntegerGemm) -> int:
        return -(-gemm.inputs // self.config.array_inputs)

    def _row_tiles(self, gemm: IntegerGemm) -> tuple[int, int]:
        high, low = self._kinds(gemm)
        return high.tiles, low.tiles

    def _kinds(self, gemm: IntegerGemm) -> tuple[RowTiles, RowTiles]:
        return self.streams.kinds(rows_high=gemm.rows_high, rows_low=gemm.rows - gemm.rows_high)

    def _activation_stream(self, gemm: IntegerGemm) -> bytes:
        """Words of P_k codes: for each k tile, all tokens; on chip once, else for every row tile, in whole beats."""
        width, k_tiles = self.config.array_inputs, self._k_tiles(gemm)
        codes = np.zeros((gemm.tokens, k_tiles * width), dtype=gemm.activations.dtype)
        codes[:, : gemm.inputs] = gemm.activations
        tiles = codes.reshape(gemm.tokens, k_tiles, width).transpose(1, 0, 2).reshape(k_tiles, -1)
        if not self.streamed:
            return tiles.tobytes()
        beats = padded(tiles, unit=self.words_per_beat * width)
        return beats.tobytes() * sum(self._row_tiles(gemm))
