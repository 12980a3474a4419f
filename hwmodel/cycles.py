"""Cycles of the accelerator in closed form, for one network, a population, or many accelerators at once.

The formula of products is derived from the pipeline of the engine in `hwmodel/rtl` and exact about it in simulation.

A product of F tokens, K inputs and rows of two kinds runs on P_m x P_k DSPs, row tiles of 8 bits first, then those of
4 bits, each over KT = ceil(K / P_k) k tiles. For kind j, with b_j = 8 or 4 bits, r_j rows for each DSP, R_j = r_j * P_m
rows in a tile, T_j = ceil(n_j / R_j) row tiles, and streams of PW, PA, PO bits per cycle:

    C   = max(F, 2)                                     tokens issued, one per cycle; a sum can return after 2 cycles
    G_j = ceil(8 * R_j / PO)                            groups of rows in the drain, PO / 8 rows each
    H_j = G_j * ceil(7 * PO / PW)                       parameters of a row tile ahead of its weights: 7 bytes a row,
                                                        each group in whole beats
    L_j = ceil(b_j * R_j * P_k / PW)                    weights of a tile, in whole beats
    A   = ceil(8 * F * P_k / PA), 0 on chip             activations of a tile, if they are streamed
    D_j = F * G_j                                       drain of a row tile, PO / 8 codes per cycle within one token
    W   = 5 + clog2(P_k)  dual                          from the issue of a token to its finished sum being readable:
          5 + P_k         atomic                        buffer, DSP input, product, [fields, adder tree | cascade,
                                                        fields], accumulator

The rules of the schedule. A tile starts (issues token 0) when its own weights and activations are complete and the
tile before started at least C cycles ago. The loads of the next tile start in the same cycle: the shadow registers are
free again. The first load starts one cycle after the command. So, from one start to the next, with no drain in the way,

    S_j  = max(C, L_j, A)                               within a row tile
    N_j  = max(C, H_j + L_j, A)                         into the first tile of a row tile

The drain of a row tile begins W cycles after the start of its last k tile: tokens finish at one per cycle, and the
drain never reads faster. It reads for D cycles. The next row tile may fill the partial sums meanwhile, but its *last*
k tile overwrites the finished sums, so it starts W + D_i cycles after the last k tile of the row tile before (of kind
i), at the earliest. Hence for the starts of two last k tiles in a row, kinds i and then j,

    M_ij = max(N_j + (KT - 1) * S_j, W + D_i)

and, with 9 registers from the drain's address to the output, f the first kind, e the last one,

    cycles = 1 + max(H_f + L_f, A) + (KT - 1) * S_f     command; start of the last k tile of the first row tile
           + (T_h - 1) * M_hh + M_hl + (T_l - 1) * M_ll   start of the last one; terms of an absent kind drop out
           + W + D_e + 9                                the last drain

which counts from the cycle that takes the command to the one that hands over the last output, both included. The next
command is taken in the cycle after that: cycles of products add up.

What this is exact about: the Verilog of this project in simulation, with streams that never pause; see
`hwmodel.simulate` and its tests. Streamed activations need PA to divide 8 * P_k or to be a power of two times it.

The vector unit has `vector_lanes` lanes and a stream of parameters of PW bits; `hwmodel.vector_cycles` has its closed
form, exact about the RTL in simulation like that of the products.

Assumptions. Layers run one after the other, and vector operations do not hide behind products (conservative).
Attention runs one head after the other, and its second operand (keys, then values) takes the path of the weights at
the width PW. GELU, LayerScale and bias ride on the drain; tables, and the factors of tokens, are written while the
units that read them are idle. Memory sustains PW (and PA, PO) in every cycle; whether it can is
checked against the device elsewhere, not here. The vector unit reads and writes its rows at full rate, wherever
activations live: with "ddr" that is optimistic, and not checked. All arithmetic is int64 and exact.

Not modelled. The image entering and the classes leaving; the fill of the on-chip activation buffer from outside and
the way of outputs back into it (in the RTL a command of its own, and a stream); refresh and arbitration of the memory;
the cycle in which the next command is fetched.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from hwmodel.accelerator import NARROW_BITS, AcceleratorColumns, IntLike
from hwmodel.errors import UsageError
from hwmodel.vector_cycles import clog2, vector_operation_cycles
from hwmodel.workload import IntArray, Population

COMMAND_CYCLES = 1
OUTPUT_CYCLES = 9
LEAST_STEP_CYCLES = 2
PIPELINE_CYCLES = 5
PARAMETER_BYTES = 7

#: what can keep a product from running faster, in the order in which ties are resolved
BOUNDS = ("compute", "weights", "activations", "output")


def ceil_div(a: IntLike, b: IntLike) -> IntLike:
    """Integer quotient rounded up; `b` is positive."""
    return (a + (b - 1)) // b


def gemm_cycles(accelerator: AcceleratorColumns, population: Population) -> IntArray:
    """Cycles of every product of the population's table, all its executions together.

    Returns:
        int64 of shape (1, G) for one accelerator, (..., G) for accelerators whose columns have shape (..., 1).

    Raises:
        UsageError: the array cannot hold weights or activations of so many bits.
    """
    return GemmTerms(accelerator, population).cycles()


def row_tiles(accelerator: AcceleratorColumns, population: Population) -> tuple[IntArray, IntArray]:
    """Row tiles of the high and of the low kind of every product (one execution), (1, G) or (..., G)."""
    g = population.gemms
    return (
        np.asarray(ceil_div(g.rows_high, accelerator.rows_per_dsp(population.high_bits) * accelerator.array_rows)),
        np.asarray(ceil_div(g.rows_low, accelerator.rows_per_dsp(population.low_bits) * accelerator.array_rows)),
    )


def vector_cycles(accelerator: AcceleratorColumns, population: Population) -> IntArray:
    """Cycles of every vector operation, all its executions together: (1, V), or (..., V) for many accelerators."""
    v = population.vectors
    once = vector_operation_cycles(v.kinds, v.tokens, v.width, accelerator.vector_lanes, accelerator.weight_stream_bits)
    return np.asarray(v.count * once)


def array_latency(accelerator: AcceleratorColumns) -> IntArray:
    """W of the module's docstring."""
    inputs = accelerator.array_inputs
    levels = clog2(inputs)
    cascaded = accelerator.skewed
    return np.asarray(PIPELINE_CYCLES + np.where(cascaded, inputs, levels), dtype=np.int64)


class _RowTiles(NamedTuple):
    """The row tiles of one kind: their number, and cycles as named in the module's docstring."""

    tiles: IntArray
    header: IntLike  # H
    weights: IntLike  # L
    drain: IntLike  # D
    first: IntLike  # start of the last k tile of the first row tile, after the command
    later: IntLike  # N + (KT - 1) * S


class GemmTerms:
    """The terms of the module's formula, each an array that broadcasts to the shape of `gemm_cycles`; same errors."""

    def __init__(self, accelerator: AcceleratorColumns, population: Population) -> None:
        if not 1 <= population.act_bits <= 8:
            raise UsageError(f"activations of {population.act_bits} bits do not fit the array: use 1 to 8 bits")
        a, g = accelerator, population.gemms
        self.accelerator, self.population = accelerator, population
        self.k_tiles = ceil_div(g.inputs, a.array_inputs)
        self.issue = np.maximum(g.tokens, LEAST_STEP_CYCLES)
        self.activations = a.ddr_activations * ceil_div(g.tokens * (8 * a.array_inputs), a.activation_stream_bits)
        self.latency = array_latency(a)
        self._least_step = np.maximum(self.issue, self.activations)
        self._other_k_tiles = self.k_tiles - 1
        tiles_high, tiles_low = row_tiles(a, population)
        self.high = self._row_tiles(a, population, tiles_high, bits=population.high_bits)
        self.low = self._row_tiles(a, population, tiles_low, bits=population.low_bits)

    def cycles(self) -> IntArray:
        """What `gemm_cycles` returns."""
        high, low = self.high, self.low
        some_h, some_l = high.tiles > 0, low.tiles > 0
        after_h, after_l = self.latency + high.drain, self.latency + low.drain
        once = (
            COMMAND_CYCLES
            + np.where(some_h, high.first, low.first)
            + (high.tiles - some_h) * np.maximum(high.later, after_h)
            + (some_h & some_l) * np.maximum(low.later, after_h)
            + (low.tiles - some_l) * np.maximum(low.later, after_l)
            + np.where(some_l, after_l, after_h)
            + OUTPUT_CYCLES
        )
        g = self.population.gemms
        busy = (some_h | some_l) & (g.tokens > 0) & (g.inputs > 0)
        return np.asarray(once * (busy * g.count), dtype=np.int64)

    def bounds(self) -> IntArray:
        """What each product waits for most on one accelerator, as an index of `BOUNDS`, shape (G,).

        It is the part that would be busiest if nothing else existed.
        """
        high, low = self.high, self.low
        all_tiles = (high.tiles + low.tiles) * self.k_tiles
        busy = [
            all_tiles * self.issue,
            high.tiles * (high.header + self.k_tiles * high.weights)
            + low.tiles * (low.header + self.k_tiles * low.weights),
            all_tiles * self.activations,
            high.tiles * high.drain + low.tiles * low.drain,
        ]
        return np.asarray(np.concatenate(busy).argmax(axis=0))

    def _row_tiles(self, a: AcceleratorColumns, population: Population, tiles: IntArray, *, bits: int) -> _RowTiles:
        rows = a.rows_per_dsp(bits) * a.array_rows
        stored_bits = 4 if bits <= NARROW_BITS else 8
        groups = ceil_div(8 * rows, a.output_stream_bits)
        header = groups * ceil_div(PARAMETER_BYTES * a.output_stream_bits, a.weight_stream_bits)
        weights = ceil_div(stored_bits * rows * a.array_inputs, a.weight_stream_bits)
        load = np.maximum(header + weights, self.activations)
        others = self._other_k_tiles * np.maximum(weights, self._least_step)
        return _RowTiles(
            tiles=tiles,
            header=header,
            weights=weights,
            drain=population.gemms.tokens * groups,
            first=load + others,
            later=np.maximum(load, self._least_step) + others,
        )
