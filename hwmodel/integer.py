"""The integer matrix product that the hardware computes, bit for bit, in NumPy.

    acc = sum_k A[f, k] * W[m, k] + bias[m]                                 32-bit; an overflow is an error here
    y   = clip((int64(acc) * mantissa[m] + 2^(shift[m] - 1)) >> shift[m], least, 127)
    out = table[y + 128] if there is a table, else y                       GELU, for example

Codes of activations are signed 8-bit numbers. Of the weight rows, the first `rows_high` hold 8-bit codes and the rest
4-bit codes within [-7, 7]. A product of two activations (attention) has all its rows high, and may use -128 in them.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from hwmodel.errors import UsageError

Int8Array = NDArray[np.int8]

#: a requantization factor is mantissa * 2^-shift
MANTISSAS = (2**15, 2**16 - 1)
SHIFTS = (1, 47)
LEAST_CODES = (-128, -127)
LARGEST_LOW_CODE = 7


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class IntegerGemm:
    """Operands of one product: activations (F, K), weights (M, K), bias, mantissa and shift (M,), table (256,).

    Raises:
        UsageError: an array has a wrong shape, type or range, or the product is empty; one line says which.
    """

    activations: Int8Array
    weights: Int8Array
    rows_high: int
    bias: NDArray[np.int32]
    mantissa: NDArray[np.int64]
    shift: NDArray[np.int64]
    table: Int8Array | None = None
    least: int = -128

    def __post_init__(self) -> None:
        for name, array, axes in (("activations", self.activations, 2), ("weights", self.weights, 2)):
            if array.dtype != np.int8 or array.ndim != axes:
                raise UsageError(f"{name} must be a matrix of int8, not {array.dtype} of shape {array.shape}")
        (tokens, inputs), rows = self.activations.shape, self.weights.shape[0]
        if 0 in (tokens, inputs, rows):
            raise UsageError(f"a product needs tokens, inputs and rows, not {tokens} x {inputs} x {rows}")
        if self.weights.shape[1] != inputs:
            raise UsageError(f"weights have {self.weights.shape[1]} inputs, activations {inputs}; make them equal")
        if not 0 <= self.rows_high <= rows:
            raise UsageError(f"rows_high must be from 0 to {rows}, not {self.rows_high}")
        if np.abs(self.weights[self.rows_high :].astype(np.int64)).max(initial=0) > LARGEST_LOW_CODE:
            raise UsageError(f"4-bit rows hold codes from -{LARGEST_LOW_CODE} to {LARGEST_LOW_CODE} only")
        for name, values, bounds in (
            ("bias", self.bias, (-(2**31), 2**31 - 1)),
            ("mantissa", self.mantissa, MANTISSAS),
            ("shift", self.shift, SHIFTS),
        ):
            if values.shape != (rows,) or values.min() < bounds[0] or values.max() > bounds[1]:
                raise UsageError(f"{name} needs {rows} values from {bounds[0]} to {bounds[1]}")
        if self.table is not None and (self.table.dtype != np.int8 or self.table.shape != (256,)):
            raise UsageError(f"table needs 256 values of int8, not {self.table.dtype} of shape {self.table.shape}")
        if self.least not in LEAST_CODES:
            raise UsageError(f"least must be -128 or -127, not {self.least}")

    @property
    def tokens(self) -> int:
        """F."""
        return int(self.activations.shape[0])

    @property
    def inputs(self) -> int:
        """K."""
        return int(self.activations.shape[1])

    @property
    def rows(self) -> int:
        """M."""
        return int(self.weights.shape[0])

    @staticmethod
    def random(
        rng: np.random.Generator,
        *,
        tokens: int,
        inputs: int,
        rows_high: int,
        rows_low: int,
        table: bool = False,
        least: int = -128,
    ) -> IntegerGemm:
        """Random codes over their whole range, with factors that spread the outputs over most codes and some beyond.

        Raises:
            UsageError: a size is negative, or the product is empty.
        """
        if min(tokens, inputs, rows_high, rows_low) < 0 or 0 in (tokens, inputs, rows_high + rows_low):
            raise UsageError(
                f"a product needs tokens, inputs and rows, not {tokens} x {inputs} x ({rows_high} + {rows_low})"
            )
        rows = rows_high + rows_low
        largest = np.where(np.arange(rows) < rows_high, 127, LARGEST_LOW_CODE)[:, None]
        spread = largest[:, 0] * 43 * np.sqrt(inputs)  # about the standard deviation of the sums
        factor = rng.uniform(30, 120, rows) / spread
        shift = 15 - np.floor(np.log2(factor)).astype(np.int64)
        return IntegerGemm(
            activations=rng.integers(-128, 128, (tokens, inputs), dtype=np.int8),
            weights=rng.integers(-largest, largest + 1, (rows, inputs)).astype(np.int8),
            rows_high=rows_high,
            bias=rng.normal(0, spread).astype(np.int32),
            mantissa=np.clip((factor * 2.0**shift).astype(np.int64), *MANTISSAS),
            shift=shift,
            table=rng.integers(-128, 128, 256, dtype=np.int8) if table else None,
            least=least,
        )

    def outputs(self) -> Int8Array:
        """The codes, shape (F, M).

        Raises:
            UsageError: a sum needs more than 32 bits.
        """
        # Float64 holds these sums exactly (below 2^53), and its matrix product is fast.
        sums = self.activations.astype(np.float64) @ self.weights.astype(np.float64).T
        acc = sums.astype(np.int64) + self.bias
        if acc.min() < -(2**31) or acc.max() >= 2**31:
            raise UsageError("a sum of this product needs more than 32 bits; reduce the bias or the inputs")
        rounded = (acc * self.mantissa.astype(np.int64) + (np.int64(1) << (self.shift - 1))) >> self.shift
        codes = np.clip(rounded, self.least, 127)
        return np.asarray(codes if self.table is None else self.table[codes + 128], dtype=np.int8)
