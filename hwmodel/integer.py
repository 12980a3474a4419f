"""The integer matrix product that the hardware computes, bit for bit, in NumPy.

    acc = sum_k A[f, k] * W[m, k] + bias[m]                                 32-bit; an overflow is an error here
    y   = clip((int64(acc) * mantissa[m] + 2^(shift[m] - 1)) >> shift[m], least, 127)
    out = table[y + 128] if there is a table, else y                       GELU, for example

Modes: outputs of 16 bits (`wide`: the residual stream, logits), clipped to 32767 and without a table; a mantissa and a
shift for each token instead of each row (`token_factors`: values mixed by numerators of softmax, divided by their sum).

Codes of activations are signed 8-bit numbers, or unsigned ones (`unsigned_activations`: numerators of softmax; then
all rows must be high, as three products of a 4-bit code with 255 do not fit a DSP). Of the weight rows, the first
`rows_high` hold 8-bit codes and the rest 4-bit codes within [-7, 7]. A product of two activations (attention) has all
its rows high, and may use -128 in them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hwmodel.errors import UsageError

Int8Array = NDArray[np.int8]
FloatArray = NDArray[np.float64]

#: a requantization factor is mantissa * 2^-shift
MANTISSAS = (2**15, 2**16 - 1)
SHIFTS = (1, 47)
LEAST_CODES = (-128, -127)
LARGEST_LOW_CODE = 7


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class IntegerGemm:
    """Operands of one product: activations (F, K), weights (M, K), bias, mantissa and shift (M,), table (256,).

    `least` is the least code of 8 bits; of wide outputs, -128 stands for -32768 and -127 for -32767. `token_factors`
    are mantissa and shift (F,), which take the place of those of the rows.

    Raises:
        UsageError: an array has a wrong shape, type or range, or the product is empty; one line says which.
    """

    activations: Int8Array | NDArray[np.uint8]
    weights: Int8Array
    rows_high: int
    bias: NDArray[np.int32]
    mantissa: NDArray[np.int64]
    shift: NDArray[np.int64]
    table: Int8Array | None = None
    least: int = -128
    unsigned_activations: bool = False
    wide: bool = False
    token_factors: tuple[NDArray[np.int64], NDArray[np.int64]] | None = None

    def __post_init__(self) -> None:
        codes = np.dtype(np.uint8 if self.unsigned_activations else np.int8)
        for name, array, dtype in (("activations", self.activations, codes), ("weights", self.weights, np.int8)):
            if array.dtype != dtype or array.ndim != 2:
                raise UsageError(
                    f"{name} must be a matrix of {np.dtype(dtype)}, not {array.dtype} of shape {array.shape}"
                )
        (tokens, inputs), rows = self.activations.shape, self.weights.shape[0]
        if 0 in (tokens, inputs, rows):
            raise UsageError(f"a product needs tokens, inputs and rows, not {tokens} x {inputs} x {rows}")
        if self.weights.shape[1] != inputs:
            raise UsageError(f"weights have {self.weights.shape[1]} inputs, activations {inputs}; make them equal")
        if not 0 <= self.rows_high <= rows:
            raise UsageError(f"rows_high must be from 0 to {rows}, not {self.rows_high}")
        if np.abs(self.weights[self.rows_high :].astype(np.int64)).max(initial=0) > LARGEST_LOW_CODE:
            raise UsageError(f"4-bit rows hold codes from -{LARGEST_LOW_CODE} to {LARGEST_LOW_CODE} only")
        if self.unsigned_activations and self.rows_high < rows:
            raise UsageError(f"unsigned activations need all {rows} rows at 8 bits, not {self.rows_high}")
        _check_range("bias", self.bias, count=rows, bounds=(-(2**31), 2**31 - 1))
        _check_factors("", self.mantissa, self.shift, count=rows)
        if self.token_factors is not None:
            _check_factors("token_factors ", *self.token_factors, count=tokens)
        if self.table is not None and (self.table.dtype != np.int8 or self.table.shape != (256,)):
            raise UsageError(f"table needs 256 values of int8, not {self.table.dtype} of shape {self.table.shape}")
        if self.table is not None and self.wide:
            raise UsageError("a table maps codes of 8 bits; leave it out for wide outputs")
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
        unsigned_activations: bool = False,
        wide: bool = False,
        token_factors: bool = False,
    ) -> IntegerGemm:
        """Random codes over their whole range, with factors that spread the outputs over most codes and some beyond.

        Factors of tokens fit the rows of 8 bits if there are any: outputs of 4-bit rows are small then.

        Raises:
            UsageError: a size is negative, the product is empty, or modes do not go together.
        """
        if min(tokens, inputs, rows_high, rows_low) < 0 or 0 in (tokens, inputs, rows_high + rows_low):
            raise UsageError(
                f"a product needs tokens, inputs and rows, not {tokens} x {inputs} x ({rows_high} + {rows_low})"
            )
        rows = rows_high + rows_low
        largest = np.where(np.arange(rows) < rows_high, 127, LARGEST_LOW_CODE)[:, None]
        # about the standard deviation of the sums
        spread = largest[:, 0] * (85 if unsigned_activations else 43) * np.sqrt(inputs)
        unit = 256 if wide else 1
        mantissa, shift = mantissa_and_shift(unit * rng.uniform(30, 120, rows) / spread)
        of_tokens = mantissa_and_shift(unit * rng.uniform(30, 120, tokens) / spread[0]) if token_factors else None
        return IntegerGemm(
            activations=(
                rng.integers(0, 256, (tokens, inputs), dtype=np.uint8)
                if unsigned_activations
                else rng.integers(-128, 128, (tokens, inputs), dtype=np.int8)
            ),
            weights=rng.integers(-largest, largest + 1, (rows, inputs)).astype(np.int8),
            rows_high=rows_high,
            bias=rng.normal(0, spread).astype(np.int32),
            mantissa=mantissa,
            shift=shift,
            table=rng.integers(-128, 128, 256, dtype=np.int8) if table else None,
            least=least,
            unsigned_activations=unsigned_activations,
            wide=wide,
            token_factors=of_tokens,
        )

    def outputs(self) -> NDArray[Any]:
        """The codes, shape (F, M): int8, or int16 if they are wide.

        Raises:
            UsageError: a sum needs more than 32 bits.
        """
        # Float64 holds these sums exactly (below 2^53), and its matrix product is fast.
        sums = self.activations.astype(np.float64) @ self.weights.astype(np.float64).T
        acc = sums.astype(np.int64) + self.bias
        if acc.min() < -(2**31) or acc.max() >= 2**31:
            raise UsageError("a sum of this product needs more than 32 bits; reduce the bias or the inputs")
        factors = (self.mantissa, self.shift)
        if self.token_factors is not None:
            factors = (self.token_factors[0][:, None], self.token_factors[1][:, None])
        mantissa, shift = factors[0].astype(np.int64), factors[1].astype(np.int64)
        rounded = (acc * mantissa + (np.int64(1) << (shift - 1))) >> shift
        if self.wide:
            return np.asarray(np.clip(rounded, self.least - 2**15 + 2**7, 2**15 - 1), dtype=np.int16)
        codes = np.clip(rounded, self.least, 127)
        return np.asarray(codes if self.table is None else self.table[codes + 128], dtype=np.int8)


def _check_range(name: str, values: NDArray[Any], *, count: int, bounds: tuple[int, int]) -> None:
    if values.shape != (count,) or values.min() < bounds[0] or values.max() > bounds[1]:
        raise UsageError(f"{name} needs {count} values from {bounds[0]} to {bounds[1]}")


def _check_factors(prefix: str, mantissa: NDArray[np.int64], shift: NDArray[np.int64], *, count: int) -> None:
    _check_range(f"{prefix}mantissa", mantissa, count=count, bounds=MANTISSAS)
    _check_range(f"{prefix}shift", shift, count=count, bounds=SHIFTS)


def mantissa_and_shift(factor: FloatArray) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The form mantissa * 2^-shift of positive factors, the mantissa rounded to 16 bits; shifts may be out of range."""
    fraction, power = np.frexp(factor)
    mantissa, shift = np.rint(fraction * 2**16).astype(np.int64), 16 - power.astype(np.int64)
    carry = mantissa > MANTISSAS[1]
    return np.where(carry, MANTISSAS[0], mantissa), shift - carry
