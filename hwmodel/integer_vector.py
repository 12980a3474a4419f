"""The integer softmax, LayerNorm and residual addition that the hardware computes, bit for bit, in NumPy.

All values are exact integers, `>>` is the arithmetic shift, and `floor` is the floor of the exact quotient or root.

Residual, of int16 codes:

    o = clip(x + y, -32768, 32767)

Softmax with deferred normalisation, of rows of int8 scores q, with a table T of 256 bytes, T[0] >= 1:

    m  = max q          E = T[m - q]          S = sum E < 2^24                  outputs E, 0 to 255
    S' = S << z         2^23 <= S' < 2^24
    g  = floor(n * 2^24 / S')                 n * 2^-e is the command's factor, 2^15 <= n < 2^16; so 2^15 <= g < 2^17
    mantissa, shift = g >> 1, e + 23 - z      if g >= 2^16
                      g,      e + 24 - z      otherwise; shift must be from 1 to 47

The matrix product of E and the values then takes (mantissa, shift), about n * 2^-e / S, as the requantization factor of
the token; probabilities are never rounded.

LayerNorm, of rows of N int16 codes x, N <= 1024, with a gain G (int16) and a bias B (int32) of each channel:

    s1 = sum x          s2 = sum x^2
    V  = N * s2 - s1^2 + eps < 2^52           eps is a 40-bit constant >= 1: N^2 * epsilon in units of the code squared
    D  = floor(sqrt(V))                       N times the standard deviation; 1 <= D < 2^26
    mu = (s1 * c + 2^(r-1)) >> r              the mean with 8 fraction bits; r = 16 + ceil(log2 N), c = round(2^(r+8)/N)
    u  = (x << 8) - mu                        so that 2^24 <= c < 2^25, and no rounding reaches 2^25
    D' = D << z         2^25 <= D' < 2^26
    N' = N << zn        2^10 <= N' < 2^11
    g  = floor(N' * 2^31 / D')                2^15 < g < 2^17
    w  = 27 + zn - z                          from 2 to 37
    zeta = clip((u * g + 2^(w-1)) >> w, -131072, 131071)          12 fraction bits
    o  = clip((zeta * G + B + 2^(h-1)) >> h, -127, 127)           h is a constant from 1 to 31

w follows from u * g ~ u * N * 2^(31 + zn - z) / D, and zeta ~ (u / 256) * N / D * 4096 = 16 * u * N / D.
Before its clip, zeta stays within 20 signed bits, which the hardware relies on: |x - mean| * N <= sqrt(N - 1) * sqrt(V)
<= 2^5 * 2 * D, mu is at most 0.625 off, so |zeta| <= 2^12 * 2^6 + 16 * 1024 * 0.625 + 1 < 2^19.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hwmodel.errors import UsageError
from hwmodel.integer import MANTISSAS, SHIFTS, FloatArray, Int8Array, IntegerGemm, mantissa_and_shift

Int64Array = NDArray[np.int64]

INT16 = (-(2**15), 2**15 - 1)
#: widest row of LayerNorm; sums and the mean's factor are sized for it
LARGEST_WIDTH = 1024
#: an exponent e of softmax is a 7-bit field of the command
LARGEST_EXPONENT = 127
LARGEST_SUM = 2**24 - 1
LARGEST_EPSILON = 2**40 - 1
OUTPUT_SHIFTS = (1, 31)
MEAN_FRACTION_BITS = 8
ZETA_FRACTION_BITS = 12
ZETA = (-(2**17), 2**17 - 1)


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class IntegerResidual:
    """Two int16 matrices (R, N) to add.

    Raises:
        UsageError: the shapes differ, a type is wrong, or there is nothing to add; one line says which.
    """

    x: NDArray[np.int16]
    y: NDArray[np.int16]

    def __post_init__(self) -> None:
        _check_rows("x", self.x, np.int16)
        _check_rows("y", self.y, np.int16)
        if self.x.shape != self.y.shape:
            raise UsageError(f"x has the shape {self.x.shape}, y {self.y.shape}; make them equal")

    @property
    def rows(self) -> int:
        """R."""
        return int(self.x.shape[0])

    @property
    def width(self) -> int:
        """N."""
        return int(self.x.shape[1])

    @staticmethod
    def random(rng: np.random.Generator, *, rows: int, width: int) -> IntegerResidual:
        """Random codes over the whole range.

        Raises:
            UsageError: a size is below 1.
        """
        shape = _shape(rows, width)
        x, y = rng.integers(*INT16, (2, *shape), dtype=np.int16, endpoint=True)
        return IntegerResidual(x=x, y=y)

    def outputs(self) -> NDArray[np.int16]:
        """The sums, (R, N)."""
        return np.asarray(np.clip(self.x.astype(np.int64) + self.y, *INT16), dtype=np.int16)


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class IntegerSoftmax:
    """Scores (R, N), the table of exponentials (256,), and the factor numerator * 2^-exponent of the normalisation.

    Raises:
        UsageError: an array has a wrong shape, type or range; one line says which.
    """

    scores: Int8Array
    table: NDArray[np.uint8]
    numerator: int
    exponent: int

    def __post_init__(self) -> None:
        _check_rows("scores", self.scores, np.int8)
        if self.table.dtype != np.uint8 or self.table.shape != (256,):
            raise UsageError(f"table needs 256 values of uint8, not {self.table.dtype} of shape {self.table.shape}")
        if self.table[0] < 1:
            raise UsageError("table must begin with at least 1: a row's sum would be 0")
        if self.width * int(self.table.max()) > LARGEST_SUM:
            raise UsageError(f"rows of {self.width} scores can exceed a sum of {LARGEST_SUM}; shorten them")
        _check_range("numerator", self.numerator, MANTISSAS)
        _check_range("exponent", self.exponent, (0, LARGEST_EXPONENT))

    @property
    def rows(self) -> int:
        """R."""
        return int(self.scores.shape[0])

    @property
    def width(self) -> int:
        """N."""
        return int(self.scores.shape[1])

    @staticmethod
    def random(rng: np.random.Generator, *, rows: int, width: int) -> IntegerSoftmax:
        """Random scores, peaked or flat, with the table of a random scale and a random factor.

        Raises:
            UsageError: a size is below 1.
        """
        spread = rng.choice([2, 30, 120], size=(_shape(rows, width)[0], 1))
        scores = np.clip(rng.normal(rng.uniform(-40, 40), spread, (rows, width)), -128, 127)
        numerator, exponent = softmax_constants(float(rng.uniform(0.3, 3)))
        return IntegerSoftmax(
            scores=scores.astype(np.int8),
            table=exponential_table(float(rng.uniform(0.01, 0.3))),
            numerator=numerator,
            exponent=exponent,
        )

    def outputs(self) -> NDArray[np.uint8]:
        """The exponentials E, (R, N)."""
        scores = self.scores.astype(np.int64)
        return np.asarray(self.table[scores.max(axis=1, keepdims=True) - scores], dtype=np.uint8)

    def factors(self) -> tuple[Int64Array, Int64Array]:
        """Mantissa and shift of each row, (R,) each.

        Raises:
            UsageError: a shift is not from 1 to 47.
        """
        sums = self.outputs().sum(axis=1, dtype=np.int64)
        z = 24 - _bit_length(sums)
        g = (np.int64(self.numerator) << 24) // (sums << z)
        large = g >= 2**16
        shift = self.exponent + 24 - z - large
        if shift.min() < SHIFTS[0] or shift.max() > SHIFTS[1]:
            raise UsageError(
                f"shifts of the factors run from {shift.min()} to {shift.max()} with exponent {self.exponent}, "
                f"not within {SHIFTS[0]} to {SHIFTS[1]}; scale the values or the outputs differently"
            )
        return np.where(large, g >> 1, g), shift


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class LayerNormConstants:
    """Gain and bias (N,), the shift h behind them, and epsilon in units of N^2 times the input code squared.

    Raises:
        UsageError: an array has a wrong shape, type or range; one line says which.
    """

    gain: NDArray[np.int16]
    bias: NDArray[np.int32]
    shift: int
    epsilon: int

    def __post_init__(self) -> None:
        for name, values, kind in (("gain", self.gain, np.int16), ("bias", self.bias, np.int32)):
            if values.dtype != kind or values.ndim != 1 or values.size == 0:
                raise UsageError(f"{name} must be a vector of {np.dtype(kind)}, not {values.dtype} {values.shape}")
        if self.gain.shape != self.bias.shape:
            raise UsageError(f"gain has {self.gain.size} channels, bias {self.bias.size}; make them equal")
        _check_range("shift", self.shift, OUTPUT_SHIFTS)
        _check_range("epsilon", self.epsilon, (1, LARGEST_EPSILON))


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class IntegerLayerNorm:
    """Rows (R, N) of int16 codes and the constants of N channels.

    Raises:
        UsageError: an array has a wrong shape, type or range; one line says which.
    """

    x: NDArray[np.int16]
    constants: LayerNormConstants

    def __post_init__(self) -> None:
        _check_rows("x", self.x, np.int16)
        _check_range("the width of a row", self.width, (1, LARGEST_WIDTH))
        if self.constants.gain.shape != (self.width,):
            raise UsageError(f"rows are {self.width} wide, gain and bias {self.constants.gain.size}; make them equal")

    @property
    def rows(self) -> int:
        """R."""
        return int(self.x.shape[0])

    @property
    def width(self) -> int:
        """N."""
        return int(self.x.shape[1])

    @staticmethod
    def random(rng: np.random.Generator, *, rows: int, width: int) -> IntegerLayerNorm:
        """Rows of many levels and spreads, some constant but for one outlier, with gains that use most output codes.

        Raises:
            UsageError: a size is below 1 or the rows are too wide.
        """
        _check_range("the width of a row", width, (1, LARGEST_WIDTH))
        spread = rng.choice([0, 1, 100, 5000, 40000], size=(_shape(rows, width)[0], 1))
        x = rng.normal(rng.normal(0, 3000, (rows, 1)), spread, (rows, width))
        outliers = rng.random(rows) < 0.2
        x[outliers, rng.integers(0, width, rows)[outliers]] = rng.choice(INT16)
        gain, bias = rng.normal(0, 1, (2, width))
        return IntegerLayerNorm(
            x=np.clip(x, *INT16).astype(np.int16),
            constants=layernorm_constants(
                gain, bias, epsilon=1e-6, scale_in=float(rng.uniform(1e-4, 1e-2)), scale_out=float(rng.uniform(0.01, 1))
            ),
        )

    def outputs(self) -> Int8Array:
        """The codes, (R, N)."""
        x, constants = self.x.astype(np.int64), self.constants
        n, total = self.width, x.sum(axis=1, keepdims=True)
        root = _integer_root(n * (x * x).sum(axis=1, keepdims=True) - total * total + constants.epsilon)
        factor, r = mean_factor(n)
        centred = (x << MEAN_FRACTION_BITS) - ((total * factor + (1 << (r - 1))) >> r)
        z, zn = 26 - _bit_length(root), 11 - n.bit_length()
        g = (np.int64(n << zn) << 31) // (root << z)
        zeta = np.clip(_rounding_shift(centred * g, 27 + zn - z), *ZETA)
        codes = _rounding_shift(zeta * constants.gain + constants.bias, np.int64(constants.shift))
        return np.clip(codes, -127, 127).astype(np.int8)


IntegerVector = IntegerResidual | IntegerSoftmax | IntegerLayerNorm
#: all that the hardware does, with its operands
Operation = IntegerGemm | IntegerVector


def exponential_table(scale: float) -> NDArray[np.uint8]:
    """T[d] = round(255 * exp(-d * scale)), (256,), for scores whose code has the value `scale`.

    Raises:
        UsageError: the scale is not a positive finite number.
    """
    _check_positive("the scale of scores", scale)
    return np.asarray(np.rint(255 * np.exp(-scale * np.arange(256))), dtype=np.uint8)


def softmax_constants(factor: float) -> tuple[int, int]:
    """Numerator and exponent of `factor`: the scale of the values over the scale of the outputs.

    Raises:
        UsageError: the factor is not positive, or too small or large for an exponent from 0 to 127.
    """
    _check_positive("the factor of softmax", factor)
    numerator, exponent = (int(value[0]) for value in mantissa_and_shift(np.array([factor])))
    _check_range("the exponent of softmax's factor", exponent, (0, LARGEST_EXPONENT))
    return numerator, exponent


def layernorm_constants(
    gain: FloatArray, bias: FloatArray, *, epsilon: float, scale_in: float, scale_out: float
) -> LayerNormConstants:
    """Constants of a LayerNorm with float gain and bias (N,), and the values of one code at its input and output.

    The shift is the largest with which all gains fit 16 bits and all biases 32.

    Raises:
        UsageError: a scale or epsilon is not positive, or a constant does not fit; the message says which.
    """
    _check_positive("the input's scale", scale_in)
    _check_positive("the output's scale", scale_out)
    _check_positive("epsilon", epsilon)
    units = np.stack([np.asarray(gain) / 2**ZETA_FRACTION_BITS, np.asarray(bias)]) / scale_out
    most = np.abs(units).max(axis=1)
    if not np.isfinite(most).all():
        raise UsageError("gain and bias of LayerNorm must be finite")
    limits = np.array([2**15 - 1, 2**31 - 1])
    shift = OUTPUT_SHIFTS[1]
    while shift > OUTPUT_SHIFTS[0] and (np.rint(most * 2.0**shift) > limits).any():
        shift -= 1
    if (np.rint(most * 2.0**shift) > limits).any():
        raise UsageError(f"gain or bias of LayerNorm is too large for an output scale of {scale_out}")
    codes = np.rint(units * 2.0**shift)
    return LayerNormConstants(
        gain=codes[0].astype(np.int16),
        bias=codes[1].astype(np.int32),
        shift=shift,
        epsilon=max(1, round(units.shape[1] ** 2 * epsilon / scale_in**2)),
    )


def mean_factor(width: int) -> tuple[int, int]:
    """c and r: c * 2^-r is 256 / width, with 2^24 <= c < 2^25."""
    r = 16 + (width - 1).bit_length()
    return ((1 << (r + MEAN_FRACTION_BITS + 1)) // width + 1) >> 1, r


def _rounding_shift(values: Int64Array, shift: Int64Array | np.int64) -> Int64Array:
    """Division by 2^shift, a half rounded up."""
    return np.asarray((values + (np.int64(1) << (shift - 1))) >> shift)


def _bit_length(values: Int64Array) -> Int64Array:
    """Bits of positive numbers below 2^53, which float64 holds exactly."""
    return np.frexp(values.astype(np.float64))[1].astype(np.int64)


def _integer_root(values: Int64Array) -> Int64Array:
    """Floor of the square root of numbers below 2^52; float64 may round it up to the next integer."""
    root = np.sqrt(values.astype(np.float64)).astype(np.int64)
    return np.asarray(root - (root * root > values))


def _shape(rows: int, width: int) -> tuple[int, int]:
    if min(rows, width) < 1:
        raise UsageError(f"an operation needs rows and a width, not {rows} x {width}")
    return rows, width


def _check_rows(name: str, array: NDArray[Any], kind: type[np.integer[Any]]) -> None:
    if array.dtype != kind or array.ndim != 2:
        raise UsageError(f"{name} must be a matrix of {np.dtype(kind)}, not {array.dtype} of shape {array.shape}")
    if 0 in array.shape:
        raise UsageError(f"{name} needs rows and a width, not {array.shape[0]} x {array.shape[1]}")


def _check_range(name: str, value: int, bounds: tuple[int, int]) -> None:
    if not bounds[0] <= value <= bounds[1]:
        raise UsageError(f"{name} must be from {bounds[0]} to {bounds[1]}, not {value}")


def _check_positive(name: str, value: float) -> None:
    if not (math.isfinite(value) and value > 0):
        raise UsageError(f"{name} must be a positive number, not {value}")
