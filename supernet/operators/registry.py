"""The seam for token mixers: what mixes tokens in a block, its lowering for the hardware beside its torch module.

A `TokenMixer` is torch-free so that costs can be computed without loading torch; `module` names the class that the
supernet builds, as "package.module:Class". Add one by a file that registers both, as `linear_angular.py` does, or by
an entry point of the group "quasar.operators" that resolves to a `TokenMixer`. docs/operators.md says how.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from importlib import import_module
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hwmodel.registry import Registry
from hwmodel.workload import GemmColumns, IntArray, VectorColumns
from supernet.operators.integer import IntegerMixer


@dataclass(frozen=True, kw_only=True, slots=True)
class MixerShapes:
    """The shapes of N different mixers; arrays have shape (N,)."""

    name: str  # prefix of layer names, with "{}" where the number of the block belongs: "blocks.{}"
    tokens: IntArray
    embed_dim: IntArray
    num_heads: IntArray
    head_dim: int
    qkv_ratio: NDArray[np.float64]
    proj_ratio: NDArray[np.float64]


@dataclass(slots=True)
class LayerColumns:
    """Collects the layers of N parts while they are lowered together: every part has the same ones, in other sizes."""

    _gemms: list[tuple[str, str, bool, tuple[IntArray, ...]]] = field(default_factory=list)
    _vectors: list[tuple[str, str, tuple[IntArray, ...]]] = field(default_factory=list)

    def gemm(
        self,
        name: str,
        kind: str,
        *,
        tokens: IntArray,
        inputs: IntArray,
        rows_high: IntArray,
        rows_low: IntArray,
        count: IntArray,
        stored: bool = True,
    ) -> None:
        """Adds a matrix product; see `hwmodel.workload.Gemm` for the fields."""
        self._gemms.append((name, kind, stored, (tokens, inputs, rows_high, rows_low, count)))

    def vector(self, name: str, kind: str, *, tokens: IntArray, width: IntArray, count: IntArray) -> None:
        """Adds a vector operation; see `hwmodel.workload.VectorOp`."""
        self._vectors.append((name, kind, (tokens, width, count)))

    def gemm_columns(self, parts: int) -> GemmColumns:
        """All matrix products so far, those of the first of N parts first, then those of the second, and so on."""
        tokens, inputs, rows_high, rows_low, count = _flat([arrays for *_, arrays in self._gemms], parts, fields=5)
        return GemmColumns(
            names=tuple(name for name, *_ in self._gemms) * parts,
            kinds=tuple(kind for _, kind, *_ in self._gemms) * parts,
            stored=np.tile(np.array([stored for _, _, stored, _ in self._gemms], dtype=bool), (1, parts)),
            tokens=tokens,
            inputs=inputs,
            rows_high=rows_high,
            rows_low=rows_low,
            count=count,
        )

    def vector_columns(self, parts: int) -> VectorColumns:
        """All vector operations so far, part by part."""
        tokens, width, count = _flat([arrays for *_, arrays in self._vectors], parts, fields=3)
        return VectorColumns(
            names=tuple(name for name, *_ in self._vectors) * parts,
            kinds=tuple(kind for _, kind, *_ in self._vectors) * parts,
            tokens=tokens,
            width=width,
            count=count,
        )


def _flat(layers: list[tuple[IntArray, ...]], parts: int, *, fields: int) -> IntArray:
    """The fields of L layers, given as arrays (N,), as one array of shape (fields, 1, N * L)."""
    table = np.empty((fields, parts, len(layers)), dtype=np.int64)
    for index, arrays in enumerate(layers):
        for field_index, array in enumerate(arrays):
            table[field_index, :, index] = array
    return table.reshape(fields, 1, -1)


@dataclass(frozen=True, kw_only=True, slots=True)
class TokenMixer:
    """A block operator.

    `lower(layers, shapes, active)` adds the operator's layers, with a count of 0 where `active` (N,) is 0, and
    returns the bytes of activations (N,) that it keeps alive at its peak, the residual stream not included.
    `module` is the torch class; see `supernet.vit.ElasticAttention` for its interface. `integer` is the arithmetic of
    the hardware between qkv and proj; without it, subnets with the operator are searched, but not exported.
    """

    lower: Callable[[LayerColumns, MixerShapes, IntArray], IntArray]
    module: str
    integer: type[IntegerMixer] | None = None

    def load_module(self) -> Any:
        """The torch class of this operator."""
        module, _, name = self.module.partition(":")
        return getattr(import_module(module), name)


OPERATORS: Registry[TokenMixer] = Registry("operator", group="quasar.operators")


def operator(name: str) -> TokenMixer:
    """The operator called `name`; raises `UsageError` with the nearest name if there is none."""
    return OPERATORS.get(name)
