"""What the hardware executes, layer by layer: matrix products and vector operations, for one network or for many.

A `Population` is the array form: N workloads whose layers are aligned in columns, so that a cost model computes all
of them in a few NumPy calls. A layer that a workload lacks has `count` 0 in that row. A `Workload` is the readable
form of one row; a cost model turns it into a population of one, so both give the same integers by construction.

A matrix product has `rows_high` weight rows at `high_bits` followed by `rows_low` rows at `low_bits` (8 and 4 unless
the space says otherwise): `C[f, m] = requant(sum_k A[f, k] * W[m, k] + b[m])`, f over `tokens`, k over `inputs`,
m over the rows. Products of two activations (attention) have all their rows at `high_bits` and `stored` False.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

IntArray = NDArray[np.int64]

#: kinds of vector operation that a cost model knows
VECTOR_KINDS = ("layernorm", "softmax", "residual")


@dataclass(frozen=True, kw_only=True, slots=True)
class Gemm:
    """One matrix product, executed `count` times (once for each head in attention)."""

    name: str
    kind: str
    tokens: int
    inputs: int
    rows_high: int
    rows_low: int
    count: int = 1
    stored: bool = True

    @property
    def rows(self) -> int:
        """Output channels of one execution."""
        return self.rows_high + self.rows_low

    @property
    def macs(self) -> int:
        """Multiply-accumulates over all executions."""
        return self.tokens * self.inputs * self.rows * self.count


@dataclass(frozen=True, kw_only=True, slots=True)
class VectorOp:
    """One element-wise or row-wise operation on `tokens` rows of `width` elements, executed `count` times."""

    name: str
    kind: str
    tokens: int
    width: int
    count: int = 1


@dataclass(frozen=True, kw_only=True, slots=True)
class Workload:
    """The layers of one network for one image, in execution order by unit: products, then vector operations.

    `activation_bytes` is the largest amount of activations that are alive at once, residual stream included.
    """

    name: str
    gemms: tuple[Gemm, ...]
    vectors: tuple[VectorOp, ...]
    activation_bytes: int
    high_bits: int = 8
    low_bits: int = 4
    act_bits: int = 8

    @property
    def macs(self) -> int:
        """Multiply-accumulates for one image."""
        return sum(gemm.macs for gemm in self.gemms)

    @property
    def weight_bytes(self) -> int:
        """Bytes of stored weights, each row packed at its own precision; biases and scales not included."""
        bits = sum(
            gemm.inputs * (gemm.rows_high * self.high_bits + gemm.rows_low * self.low_bits) * gemm.count
            for gemm in self.gemms
            if gemm.stored
        )
        return -(-bits // 8)


@dataclass(frozen=True, kw_only=True, slots=True)
class GemmColumns:
    """G aligned matrix products of N workloads; every array is int64 of shape (N, G)."""

    names: tuple[str, ...]
    kinds: tuple[str, ...]
    stored: tuple[bool, ...]
    tokens: IntArray
    inputs: IntArray
    rows_high: IntArray
    rows_low: IntArray
    count: IntArray


@dataclass(frozen=True, kw_only=True, slots=True)
class VectorColumns:
    """V aligned vector operations of N workloads; every array is int64 of shape (N, V)."""

    names: tuple[str, ...]
    kinds: tuple[str, ...]
    tokens: IntArray
    width: IntArray
    count: IntArray


@dataclass(frozen=True, kw_only=True, slots=True)
class Population:
    """N workloads in array form; see the module's docstring. `activation_bytes` has shape (N,)."""

    gemms: GemmColumns
    vectors: VectorColumns
    activation_bytes: IntArray
    high_bits: int = 8
    low_bits: int = 4
    act_bits: int = 8

    def __len__(self) -> int:
        return int(self.activation_bytes.shape[0])

    @staticmethod
    def of(workload: Workload) -> Population:
        """The population that holds `workload` alone."""
        gemms, vectors = workload.gemms, workload.vectors
        return Population(
            gemms=GemmColumns(
                names=tuple(g.name for g in gemms),
                kinds=tuple(g.kind for g in gemms),
                stored=tuple(g.stored for g in gemms),
                tokens=_row([g.tokens for g in gemms]),
                inputs=_row([g.inputs for g in gemms]),
                rows_high=_row([g.rows_high for g in gemms]),
                rows_low=_row([g.rows_low for g in gemms]),
                count=_row([g.count for g in gemms]),
            ),
            vectors=VectorColumns(
                names=tuple(v.name for v in vectors),
                kinds=tuple(v.kind for v in vectors),
                tokens=_row([v.tokens for v in vectors]),
                width=_row([v.width for v in vectors]),
                count=_row([v.count for v in vectors]),
            ),
            activation_bytes=np.array([workload.activation_bytes], dtype=np.int64),
            high_bits=workload.high_bits,
            low_bits=workload.low_bits,
            act_bits=workload.act_bits,
        )

    def workload(self, index: int, *, name: str) -> Workload:
        """Row `index` as a `Workload`, without the layers that it lacks."""
        g, v = self.gemms, self.vectors
        return Workload(
            name=name,
            gemms=tuple(
                Gemm(
                    name=g.names[i],
                    kind=g.kinds[i],
                    tokens=int(g.tokens[index, i]),
                    inputs=int(g.inputs[index, i]),
                    rows_high=int(g.rows_high[index, i]),
                    rows_low=int(g.rows_low[index, i]),
                    count=int(g.count[index, i]),
                    stored=g.stored[i],
                )
                for i in range(len(g.names))
                if g.count[index, i]
            ),
            vectors=tuple(
                VectorOp(
                    name=v.names[i],
                    kind=v.kinds[i],
                    tokens=int(v.tokens[index, i]),
                    width=int(v.width[index, i]),
                    count=int(v.count[index, i]),
                )
                for i in range(len(v.names))
                if v.count[index, i]
            ),
            activation_bytes=int(self.activation_bytes[index]),
            high_bits=self.high_bits,
            low_bits=self.low_bits,
            act_bits=self.act_bits,
        )

    def macs(self) -> IntArray:
        """Multiply-accumulates for one image of each workload, shape (N,)."""
        g = self.gemms
        return np.asarray((g.tokens * g.inputs * (g.rows_high + g.rows_low) * g.count).sum(axis=1))

    def weight_bytes(self) -> IntArray:
        """Bytes of stored weights of each workload, packed, shape (N,)."""
        g = self.gemms
        bits = g.inputs * (g.rows_high * self.high_bits + g.rows_low * self.low_bits) * g.count
        total = bits[:, np.array(g.stored, dtype=bool)].sum(axis=1)
        return np.asarray(-(-total // 8))


def _row(values: Sequence[Any]) -> IntArray:
    return np.array([values], dtype=np.int64)
