"""Cycles of the accelerator in closed form, for one network, a population, or many accelerators at once.

A product of F tokens, K inputs and rows of two kinds (n_h at b_h bits, n_l at b_l bits) runs on P_m x P_k DSPs that
hold r_h or r_l rows each. Its row tiles of the high kind come first, then those of the low kind:

    T_j = ceil(n_j / (r_j * P_m))                       row tiles of kind j
    KT  = ceil(K / P_k)                                 k tiles of each row tile
    C   = F, but F + 5 below 5 tokens                   tokens through the array, one per cycle
    L_j = ceil(b_j * r_j * P_m * P_k / PW)              load of a weight tile into the shadow registers
          max with ceil(a * F * P_k / PA)               ... and of its activation tile, if those live in memory
    D_j = ceil(a * r_j * P_m * F / PO)                  drain of a row tile: requantization, GELU table, write back
    S_j = max(L_j, C)                                   time between two tiles: a load hides behind the tile before it

with a the bits of an activation and PW, PA, PO the stream widths in bits per cycle. A row tile ends KT * S_j cycles
after the one before it (i), or when that one has drained: M_ij = max(KT * S_j, D_i + 4). So, with f the kind of the
first tile and e that of the last,

    cycles = L_f + (KT - 1) * S_f + C'                  the first row tile, alone; C' = F
           + (T_h - 1) * M_hh + M_hl + (T_l - 1) * M_ll   the others; terms of an absent kind drop out
           + D_e + 7                                    the last drain and the pipeline

With one kind only this is the closed form of a double-buffered W8A8 engine in the style of the published ones (VAQF,
Auto-ViT-Acc). Its constants 4, 5 and 7 are those of such an engine. No RTL of this project stands behind them yet, and
agreement with hardware is claimed nowhere until it does.

The vector unit has `vector_lanes` lanes. An operation of kind v on rows of `width` elements takes, for each row,

    passes_v * ceil(width / lanes) + overhead_v         layernorm 3 and 8, softmax 3 and 8, residual 1 and 0

Its passes are: layernorm mean, variance, normalise; softmax maximum, exponentials and their sum, write back. Division
and square root are pipelined and rows overlap in them, so the overhead is only the depth of the adder tree.

Assumptions. Layers run one after the other: the first load of a product hides behind nothing, and vector operations
do not hide behind products (conservative). Tiles at the edge cost as much as full ones. Attention runs one head
after the other, and its second operand (keys, then values) takes the path of the weights at the width PW. GELU,
LayerScale and bias cost nothing. Memory sustains PW (and PA, PO) in every cycle; whether it can is checked against
the device elsewhere, not here. All arithmetic is int64 and exact.

Not modelled. The image entering and the classes leaving; loads of bias and scale words (7 bytes a row, in the slack of
the weight stream); refresh and arbitration of the memory; control between layers; conflicts on activation buffer ports.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from hwmodel.accelerator import AcceleratorColumns, IntLike
from hwmodel.errors import UsageError
from hwmodel.workload import IntArray, Population

PIPELINE_CYCLES = 7
DRAIN_OVERHEAD_CYCLES = 4
SHORT_STREAM_TOKENS = 5
SHORT_STREAM_CYCLES = 5

#: passes over a row, and cycles added to each row, by kind of vector operation
VECTOR_TIMING = {"layernorm": (3, 8), "softmax": (3, 8), "residual": (1, 0)}

#: what can keep a product from running faster, in the order in which ties are resolved
BOUNDS = ("compute", "weights", "activations", "output")


def ceil_div(a: IntLike, b: IntLike) -> IntLike:
    """Integer quotient rounded up; `b` is positive."""
    return -(-a // b)


def gemm_cycles(accelerator: AcceleratorColumns, population: Population) -> IntArray:
    """Cycles of every product, all its executions together: (N, G), or (C, G) for C accelerators and N = 1."""
    terms = _Terms(accelerator, population)
    steps, t_h, t_l = terms.k_tiles, terms.tiles_high, terms.tiles_low
    some_h, some_l = t_h > 0, t_l > 0
    tile_h, tile_l = steps * terms.step_high, steps * terms.step_low
    after_h, after_l = terms.drain_high + DRAIN_OVERHEAD_CYCLES, terms.drain_low + DRAIN_OVERHEAD_CYCLES
    # A row tile alone takes L + (KT - 1) * S + F; written as KT * S - (S - L) + F, it reuses KT * S.
    first = np.where(
        some_h,
        tile_h - terms.step_high + terms.load_high,
        tile_l - terms.step_low + terms.load_low,
    )
    others = (
        np.maximum(t_h - 1, 0) * np.maximum(tile_h, after_h)
        + (some_h & some_l) * np.maximum(tile_l, after_h)
        + np.maximum(t_l - 1, 0) * np.maximum(tile_l, after_l)
    )
    last = np.where(some_l, terms.drain_low, terms.drain_high)
    g = population.gemms
    once = first + g.tokens + others + last + PIPELINE_CYCLES
    busy = (some_h | some_l) & (g.tokens > 0) & (g.inputs > 0)
    return np.asarray(once * busy * g.count, dtype=np.int64)


def gemm_bounds(accelerator: AcceleratorColumns, population: Population) -> NDArray[np.str_]:
    """What each product waits for most, one of `BOUNDS`: the part that would be busiest if nothing else existed."""
    terms = _Terms(accelerator, population)
    t_h, t_l, steps = terms.tiles_high, terms.tiles_low, terms.k_tiles
    busy = np.broadcast_arrays(
        (t_h + t_l) * steps * terms.stream,
        (t_h * terms.weights_high + t_l * terms.weights_low) * steps,
        (t_h + t_l) * steps * terms.activations,
        t_h * terms.drain_high + t_l * terms.drain_low,
    )
    return np.asarray(np.array(BOUNDS)[np.argmax(np.stack(busy), axis=0)], dtype=np.str_)


def row_tiles(accelerator: AcceleratorColumns, population: Population) -> tuple[IntArray, IntArray]:
    """Row tiles of the high and of the low kind of every product (one execution)."""
    g = population.gemms
    return (
        np.asarray(ceil_div(g.rows_high, accelerator.rows_per_dsp(population.high_bits) * accelerator.array_rows)),
        np.asarray(ceil_div(g.rows_low, accelerator.rows_per_dsp(population.low_bits) * accelerator.array_rows)),
    )


def vector_cycles(accelerator: AcceleratorColumns, population: Population) -> IntArray:
    """Cycles of every vector operation, all its executions together: (N, V), or (C, V) with N = 1."""
    v = population.vectors
    unknown = set(v.kinds) - set(VECTOR_TIMING)
    if unknown:
        raise UsageError(f"vector operation '{min(unknown)}' is unknown; known: {', '.join(VECTOR_TIMING)}")
    timing = np.array([VECTOR_TIMING[kind] for kind in v.kinds], dtype=np.int64).reshape(-1, 2)
    passes, overhead = timing[:, 0], timing[:, 1]
    row = passes * ceil_div(v.width, accelerator.vector_lanes) + overhead
    return np.asarray(v.count * v.tokens * row)


class _Terms:
    """The terms of the module's formula, each an array that broadcasts to the shape of the result."""

    def __init__(self, accelerator: AcceleratorColumns, population: Population) -> None:
        g = population.gemms
        rows, inputs = accelerator.array_rows, accelerator.array_inputs
        rows_high = accelerator.rows_per_dsp(population.high_bits) * rows
        rows_low = accelerator.rows_per_dsp(population.low_bits) * rows
        if not 1 <= population.act_bits <= 8:
            raise UsageError(f"activations of {population.act_bits} bits do not fit the array: use 1 to 8 bits")
        self.tiles_high, self.tiles_low = row_tiles(accelerator, population)
        self.k_tiles = ceil_div(g.inputs, inputs)
        self.stream = g.tokens + SHORT_STREAM_CYCLES * (g.tokens < SHORT_STREAM_TOKENS)
        width = accelerator.weight_stream_bits
        self.weights_high = ceil_div(population.high_bits * rows_high * inputs, width)
        self.weights_low = ceil_div(population.low_bits * rows_low * inputs, width)
        tile_bits = population.act_bits * g.tokens * inputs
        self.activations = accelerator.ddr_activations * ceil_div(tile_bits, accelerator.activation_stream_bits)
        self.load_high = np.maximum(self.weights_high, self.activations)
        self.load_low = np.maximum(self.weights_low, self.activations)
        self.step_high = np.maximum(self.load_high, self.stream)
        self.step_low = np.maximum(self.load_low, self.stream)
        row_bits = population.act_bits * g.tokens
        self.drain_high = ceil_div(row_bits * rows_high, accelerator.output_stream_bits)
        self.drain_low = ceil_div(row_bits * rows_low, accelerator.output_stream_bits)
