"""What the hardware executes, layer by layer: matrix products and vector operations, for one network or for many.

A `Population` is the array form of N workloads. Networks of one search space are put together from few different
*parts* (half a block, the stem, the head), so it holds the layers of every part once, in columns, and for each network
the numbers of its parts. A cost model computes each layer of that table once and adds up for each network. A
`Workload` is the readable form of one network; a cost model turns it into a population of one part, so both give the
same integers by construction.

A matrix product has `rows_high` weight rows at `high_bits` followed by `rows_low` rows at `low_bits` (8 and 4 unless
the space says otherwise): `C[f, m] = requant(sum_k A[f, k] * W[m, k] + b[m])`, f over `tokens`, k over `inputs`,
m over the rows. Products of two activations (attention) have all their rows at `high_bits` and `stored` False.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from itertools import chain
from typing import Any

import numpy as np
from numpy.typing import NDArray

IntArray = NDArray[np.int64]


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
    """G matrix products; every array has shape (1, G), so that it broadcasts against C accelerators of shape (C, 1).

    A product with a `count` of 0 is absent.
    """

    names: tuple[str, ...]
    kinds: tuple[str, ...]
    stored: NDArray[np.bool_]
    tokens: IntArray
    inputs: IntArray
    rows_high: IntArray
    rows_low: IntArray
    count: IntArray

    def macs(self) -> IntArray:
        """Multiply-accumulates of each product over all its executions, (1, G)."""
        return self.tokens * self.inputs * (self.rows_high + self.rows_low) * self.count

    def weight_bits(self, *, high_bits: int, low_bits: int) -> IntArray:
        """Bits of the stored weights of each product, each row at its own precision, (1, G)."""
        return self.inputs * (self.rows_high * high_bits + self.rows_low * low_bits) * (self.count * self.stored)

    def some(self, index: IntArray) -> GemmColumns:
        """The products at these positions (G',)."""
        return GemmColumns(
            names=tuple([self.names[i] for i in index.tolist()]),
            kinds=tuple([self.kinds[i] for i in index.tolist()]),
            stored=self.stored[:, index],
            tokens=self.tokens[:, index],
            inputs=self.inputs[:, index],
            rows_high=self.rows_high[:, index],
            rows_low=self.rows_low[:, index],
            count=self.count[:, index],
        )

    @staticmethod
    def joined(tables: Sequence[GemmColumns]) -> GemmColumns:
        """The products of several tables in one."""
        return GemmColumns(**_joined(tables, GemmColumns))


@dataclass(frozen=True, kw_only=True, slots=True)
class VectorColumns:
    """V vector operations; every array is int64 of shape (1, V). One with a `count` of 0 is absent."""

    names: tuple[str, ...]
    kinds: tuple[str, ...]
    tokens: IntArray
    width: IntArray
    count: IntArray

    @staticmethod
    def joined(tables: Sequence[VectorColumns]) -> VectorColumns:
        """The operations of several tables in one."""
        return VectorColumns(**_joined(tables, VectorColumns))


@dataclass(frozen=True, kw_only=True, slots=True)
class Population:
    """N workloads, each a sequence of at most S of the U different parts; see the module's docstring.

    Part u owns the products from `gemm_starts[u]` up to `gemm_starts[u + 1]`, and the vector operations likewise.
    `parts[n, s]` is the part that network n has in slot s; a part without layers stands for an empty slot. The layers
    of a part have names with "{}" where the label of their slot belongs: "blocks.{}.fc1" and "3" give "blocks.3.fc1".
    """

    gemms: GemmColumns
    vectors: VectorColumns
    gemm_starts: IntArray  # (U + 1,)
    vector_starts: IntArray  # (U + 1,)
    part_activation_bytes: IntArray  # (U,)
    slots: tuple[str, ...]  # (S,)
    parts: IntArray  # (N, S)
    high_bits: int = 8
    low_bits: int = 4
    act_bits: int = 8

    def __len__(self) -> int:
        return len(self.parts)

    @staticmethod
    def of(workload: Workload) -> Population:
        """The population that holds `workload` alone, as one part."""
        gemms, vectors = workload.gemms, workload.vectors
        gemm_rows = [(g.tokens, g.inputs, g.rows_high, g.rows_low, g.count, g.stored) for g in gemms]
        vector_rows = [(v.tokens, v.width, v.count) for v in vectors]
        g = np.fromiter(chain.from_iterable(gemm_rows), dtype=np.int64).reshape(-1, 6).T.copy()
        v = np.fromiter(chain.from_iterable(vector_rows), dtype=np.int64).reshape(-1, 3).T.copy()
        return Population(
            gemms=GemmColumns(
                names=tuple([g.name for g in gemms]),
                kinds=tuple([g.kind for g in gemms]),
                tokens=g[0:1],
                inputs=g[1:2],
                rows_high=g[2:3],
                rows_low=g[3:4],
                count=g[4:5],
                stored=g[5:6] != 0,
            ),
            vectors=VectorColumns(
                names=tuple([v.name for v in vectors]),
                kinds=tuple([v.kind for v in vectors]),
                tokens=v[0:1],
                width=v[1:2],
                count=v[2:3],
            ),
            gemm_starts=np.array([0, len(gemms)]),
            vector_starts=np.array([0, len(vectors)]),
            part_activation_bytes=np.array([workload.activation_bytes], dtype=np.int64),
            slots=("",),
            parts=np.zeros((1, 1), dtype=np.int64),
            high_bits=workload.high_bits,
            low_bits=workload.low_bits,
            act_bits=workload.act_bits,
        )

    def workload(self, index: int, *, name: str) -> Workload:
        """Network `index` as a `Workload`, without absent layers."""
        g, v = self.gemms, self.vectors
        gemms, vectors = [], []
        for slot, part in zip(self.slots, self.parts[index].tolist(), strict=True):
            gemms += [
                Gemm(
                    name=g.names[i].replace("{}", slot),
                    kind=g.kinds[i],
                    tokens=int(g.tokens[0, i]),
                    inputs=int(g.inputs[0, i]),
                    rows_high=int(g.rows_high[0, i]),
                    rows_low=int(g.rows_low[0, i]),
                    count=int(g.count[0, i]),
                    stored=bool(g.stored[0, i]),
                )
                for i in range(self.gemm_starts[part], self.gemm_starts[part + 1])
                if g.count[0, i]
            ]
            vectors += [
                VectorOp(
                    name=v.names[i].replace("{}", slot),
                    kind=v.kinds[i],
                    tokens=int(v.tokens[0, i]),
                    width=int(v.width[0, i]),
                    count=int(v.count[0, i]),
                )
                for i in range(self.vector_starts[part], self.vector_starts[part + 1])
                if v.count[0, i]
            ]
        return Workload(
            name=name,
            gemms=tuple(gemms),
            vectors=tuple(vectors),
            activation_bytes=int(self.activation_bytes()[index]),
            high_bits=self.high_bits,
            low_bits=self.low_bits,
            act_bits=self.act_bits,
        )

    def gemm_parts(self, figures: IntArray) -> IntArray:
        """A figure of each product, (..., G), added up for each part in exact integers, (..., U)."""
        return _sums(figures, self.gemm_starts)

    def vector_parts(self, figures: IntArray) -> IntArray:
        """A figure of each vector operation, (..., V), added up for each part in exact integers, (..., U)."""
        return _sums(figures, self.vector_starts)

    def part_tokens(self) -> IntArray:
        """The most tokens that a product of each part has, shape (U,); 0 without products."""
        most = np.zeros(len(self.part_activation_bytes), dtype=np.int64)
        owners = np.repeat(np.arange(len(most)), np.diff(self.gemm_starts))
        np.maximum.at(most, owners, (self.gemms.tokens * (self.gemms.count > 0))[0])
        return most

    def gemm_totals(self, figures: IntArray) -> IntArray:
        """A figure of each product, (..., G), added up for each network in exact integers, (..., N)."""
        return self._totals(figures, self.gemm_starts)

    def vector_totals(self, figures: IntArray) -> IntArray:
        """A figure of each vector operation, (..., V), added up for each network in exact integers, (..., N)."""
        return self._totals(figures, self.vector_starts)

    def _totals(self, figures: IntArray, starts: IntArray) -> IntArray:
        return np.asarray(_sums(figures, starts).take(self.parts, axis=-1).sum(axis=-1))

    def activation_bytes(self) -> IntArray:
        """The largest amount of activations alive at once in each network, shape (N,)."""
        return np.asarray(self.part_activation_bytes[self.parts].max(axis=1, initial=0))

    def macs(self) -> IntArray:
        """Multiply-accumulates for one image of each workload, shape (N,)."""
        return self.gemm_totals(self.gemms.macs()[0])

    def weight_bytes(self) -> IntArray:
        """Bytes of stored weights of each workload, packed, shape (N,)."""
        bits = self.gemm_totals(self.gemms.weight_bits(high_bits=self.high_bits, low_bits=self.low_bits)[0])
        return np.asarray(-(-bits // 8))


def _sums(figures: IntArray, starts: IntArray) -> IntArray:
    """The sums of `figures` (..., L) from each start to the next, shape (..., U); a part may be empty."""
    running = np.zeros((*figures.shape[:-1], figures.shape[-1] + 1), dtype=np.int64)
    np.cumsum(figures, axis=-1, out=running[..., 1:])
    ends = running[..., starts]
    return np.asarray(ends[..., 1:] - ends[..., :-1])


def _joined(tables: Sequence[Any], cls: type) -> dict[str, Any]:
    """Every field of `cls` from all `tables`, one after the other."""
    columns = {field.name: [getattr(table, field.name) for table in tables] for field in fields(cls)}
    return {
        name: tuple(chain.from_iterable(values)) if name in ("names", "kinds") else np.concatenate(values, axis=1)
        for name, values in columns.items()
    }
