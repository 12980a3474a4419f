"""The seam for operators in the integer arithmetic of the hardware: what lies between qkv and proj. NumPy only."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Protocol, Self

import numpy as np
from numpy.typing import NDArray

from hwmodel.errors import UsageError
from hwmodel.integer import SHIFTS, FloatArray, Int8Array, mantissa_and_shift
from hwmodel.integer_vector import (
    IntegerLayerNorm,
    LayerNormConstants,
    Operation,
    layernorm_constants,
)

#: is told of every operation, in order: the name of its layer in the lowered workload, and its operands
Recorder = Callable[[str, Operation], None]
#: mantissa and shift of requantization, of one factor or of several
Factors = tuple[NDArray[np.int64], NDArray[np.int64]]

#: of the networks' LayerNorms, see `supernet.functional.Norm`
LAYER_NORM_EPSILON = 1e-6


class IntegerMixer(Protocol):
    """An operator of one block, with the constants that the hardware needs."""

    @property
    def name(self) -> str:
        """That of the block, in front of the names of layers."""

    @property
    def head_dim(self) -> int:
        """Channels of a head."""

    @staticmethod
    def own_scale(values: Mapping[str, FloatArray]) -> float | None:
        """The value of one code of what the operator has beside its sites, suggested by images.

        Args:
            values: at the operator's sites, quantized; q, k and v are (B, H, T, N).

        Returns:
            None if every tensor of 8 bits has a site.
        """

    @classmethod
    def of(cls, name: str, scales: Mapping[str, float], *, head_dim: int, tokens: int, own_scale: float | None) -> Self:
        """The operator with these scales of its sites; raises `UsageError` if a constant does not fit the hardware."""

    def __call__(self, qkv_BTH3N: Int8Array, record: Recorder | None) -> Int8Array:
        """Mixed values (B, T, H, N) of queries, keys and values; `record` is told of every operation."""

    def largest_sums(self, tokens: int) -> Mapping[str, int]:
        """What the sums of each product of two activations can reach, by the names of the layers."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class IntegerNorm:
    """A LayerNorm from codes of 16 bits to 8-bit codes."""

    name: str
    constants: LayerNormConstants

    @staticmethod
    def of(name: str, gain: FloatArray, bias: FloatArray, *, scale_in: float, scale_out: float) -> IntegerNorm:
        """With float gain and bias (N,); raises `UsageError` if a constant does not fit the hardware."""
        with naming(name):
            constants = layernorm_constants(
                gain, bias, epsilon=LAYER_NORM_EPSILON, scale_in=scale_in, scale_out=scale_out
            )
        return IntegerNorm(name=name, constants=constants)

    def __call__(self, codes: NDArray[np.int16], record: Recorder | None) -> Int8Array:
        """Codes (R, D) of as many rows."""
        operation = IntegerLayerNorm(x=codes, constants=self.constants)
        if record is not None:
            record(self.name, operation)
        return operation.outputs()


@contextmanager
def naming(layer: str) -> Iterator[None]:
    """Puts the layer in front of what is wrong with its numbers."""
    try:
        yield
    except UsageError as error:
        raise UsageError(f"{layer}: {error}") from None


def requantization(factor: FloatArray) -> Factors:
    """Mantissa and shift of positive factors; one below 2^-32 becomes 2^-32, far below any output code."""
    mantissa, shift = mantissa_and_shift(np.maximum(factor, 2.0**-32))
    if shift.min() < SHIFTS[0]:
        raise UsageError(
            f"a requantization factor of {factor.max():g} is beyond the hardware's; its output scale is tiny"
        )
    return mantissa, shift
