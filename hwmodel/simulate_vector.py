"""Simulation of the RTL vector unit: cycles and outputs against the closed form and the reference.

Predicted cycles (`hwmodel.vector_cycles`) hold for streams that never pause; with a stall probability, only the outputs
are to be compared. Builds are kept as those of products are, see `hwmodel.rtl_build`.
"""

from __future__ import annotations

import struct
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hwmodel.errors import QuasarError, UsageError
from hwmodel.integer_vector import (
    IntegerLayerNorm,
    IntegerResidual,
    IntegerSoftmax,
    IntegerVector,
    mean_factor,
)
from hwmodel.parameter_streams import norm_stream
from hwmodel.rtl_build import build, run
from hwmodel.rtl_parameters import VECTOR_UNIT, vector_parameters
from hwmodel.simulate import LARGEST_FIELD, RunSettings, SimulationResult
from hwmodel.vector_cycles import KINDS, vector_operation_cycles

_JOB = struct.Struct("<19IQ")
_RESULT = struct.Struct("<IQ")
_DONE, _CAP_EXCEEDED = 0, 1
_ELEMENT_BYTES = 2


@dataclass(frozen=True, kw_only=True, slots=True)
class VectorJob(RunSettings):
    """One operation of the vector unit to simulate."""

    operation: IntegerVector

    @property
    def kind(self) -> str:
        """The operation's name in `hwmodel.vector_cycles`."""
        classes = (IntegerResidual, IntegerSoftmax, IntegerLayerNorm)
        return KINDS[classes.index(type(self.operation))]


def simulate_vector(
    *, lanes: int, stream_bits: int, max_tokens: int, jobs: Sequence[VectorJob], simulator: str = "auto"
) -> list[SimulationResult]:
    """Runs all operations on one unit, one after the other, and compares them with the reference.

    The mantissa and the shift of each softmax row count as outputs, too. `simulator` is one of
    `hwmodel.rtl_build.SIMULATORS`.

    Raises:
        UsageError: the simulator or g++ is missing, or an operation does not fit the unit.
        QuasarError: a build failed, or an operation exceeded its cycle cap.
    """
    if lanes < 1 or stream_bits < 8 or stream_bits % 8:
        raise UsageError(f"a vector unit has lanes and whole bytes of a stream, not {lanes} and {stream_bits} bits")
    layout = _Layout(lanes=lanes, stream_bits=stream_bits, max_tokens=max_tokens)
    predicted, payload, caps = [], [struct.pack("<I", len(jobs))], []
    for job in jobs:
        cycles = int(
            vector_operation_cycles([job.kind], job.operation.rows, job.operation.width, lanes, stream_bits)[0]
        )
        predicted.append(cycles)
        caps.append(job.cycle_cap or round((10 * cycles + 1000) / (1 - job.stall) ** 2))
        payload.append(layout.encode(job, cap=caps[-1]))
    program = build(
        VECTOR_UNIT,
        parameters=vector_parameters(lanes=lanes, stream_bits=stream_bits, max_tokens=max_tokens),
        bench="vector_bench.cpp",
        defines={"X_BYTES": _ELEMENT_BYTES * lanes, "P_BYTES": stream_bits // 8},
        simulator=simulator,
    )
    with tempfile.TemporaryDirectory(prefix="quasar-") as folder:
        jobs_file, results_file = Path(folder, "jobs"), Path(folder, "results")
        jobs_file.write_bytes(b"".join(payload))
        run([str(program), str(jobs_file), str(results_file)], what="the simulation")
        data = results_file.read_bytes()
    results, at = [], 0
    for index, job in enumerate(jobs):
        status, cycles = _RESULT.unpack_from(data, at)
        at += _RESULT.size
        if status == _CAP_EXCEEDED:
            raise QuasarError(f"operation {index} is not done after {caps[index]} cycles; raise its cycle cap")
        if status != _DONE:
            raise QuasarError(f"operation {index} broke the protocol of a stream; this is a bug of the unit, report it")
        expected = layout.expected(job.operation)
        simulated = np.frombuffer(data, dtype=np.uint8, count=expected.nbytes, offset=at).view(expected.dtype)
        at += expected.nbytes
        results.append(
            SimulationResult(
                predicted_cycles=predicted[index],
                simulated_cycles=cycles,
                fill_cycles=0,
                outputs=layout.outputs(job.operation),
                mismatching_outputs=int((simulated != expected).sum()),
            )
        )
    return results


@dataclass(frozen=True, kw_only=True, slots=True)
class _Layout:
    """How operands lie in the streams of a unit."""

    lanes: int
    stream_bits: int
    max_tokens: int

    def encode(self, job: VectorJob, *, cap: int) -> bytes:
        """The job in the form that the test bench reads; raises `UsageError` if it does not fit the unit."""
        operation = job.operation
        if max(operation.rows, operation.width) > LARGEST_FIELD:
            raise UsageError(f"rows and width of an operation must not exceed {LARGEST_FIELD}")
        x, y, p, table = b"", b"", b"", b""
        numerator = exponent = epsilon = factor = mean_shift = out_shift = factors = 0
        if isinstance(operation, IntegerResidual):
            x, y = self._beats(operation.x, seed=job.seed), self._beats(operation.y, seed=job.seed + 1)
        elif isinstance(operation, IntegerSoftmax):
            if operation.width > self.max_tokens:
                raise UsageError(f"{operation.width} tokens exceed max_tokens {self.max_tokens}; raise it")
            operation.factors()  # raises if they are out of range
            numerator, exponent, factors = operation.numerator, operation.exponent, operation.rows
            upper = np.random.default_rng(job.seed).integers(-128, 128, operation.scores.shape, dtype=np.int16)
            x = self._beats(upper << 8 | operation.scores.view(np.uint8), seed=job.seed)
            table = operation.table.tobytes()
        else:
            constants = operation.constants
            x = self._beats(operation.x, seed=job.seed)
            p = norm_stream(constants.gain, constants.bias, lanes=self.lanes, beat_bytes=self.stream_bits // 8)
            epsilon, out_shift = constants.epsilon, constants.shift
            factor, mean_shift = mean_factor(operation.width)
        beat_bytes = _ELEMENT_BYTES * self.lanes
        beats = operation.rows * -(-operation.width // self.lanes)
        head = _JOB.pack(
            KINDS.index(job.kind),
            operation.rows,
            operation.width,
            numerator,
            exponent,
            epsilon % 2**32,
            epsilon >> 32,
            factor,
            mean_shift,
            out_shift,
            job.seed,
            round(job.stall * 2**16),
            job.reset_after or 0,
            len(x) // beat_bytes,
            len(y) // beat_bytes,
            len(p) * 8 // self.stream_bits,
            beats,
            factors,
            len(table),
            cap,
        )
        return head + x + y + p + table

    def expected(self, operation: IntegerVector) -> NDArray[Any]:
        """Factors and outputs as the test bench writes them, in 16-bit words; padding is zero."""
        padded = np.zeros((operation.rows, self.lanes * -(-operation.width // self.lanes)), dtype="<i2")
        padded[:, : operation.width] = operation.outputs()
        factors = b""
        if isinstance(operation, IntegerSoftmax):
            factors = np.stack(operation.factors(), axis=1).astype("<u4").tobytes()
        return np.frombuffer(factors + padded.tobytes(), dtype="<i2")

    @staticmethod
    def outputs(operation: IntegerVector) -> int:
        """Numbers that the operation gives, without padding."""
        factors = 2 * operation.rows if isinstance(operation, IntegerSoftmax) else 0
        return operation.rows * operation.width + factors

    def _beats(self, rows: NDArray[np.int16], *, seed: int) -> bytes:
        """Rows in whole beats. What lies beyond the width is random, as it must not matter."""
        shape = (rows.shape[0], self.lanes * -(-rows.shape[1] // self.lanes))
        beats = np.random.default_rng(seed).integers(-(2**15), 2**15, shape, dtype=np.int16)
        beats[:, : rows.shape[1]] = rows
        return beats.astype("<i2").tobytes()
