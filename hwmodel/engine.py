"""Cycles of the RTL engine (`hwmodel/rtl`) in closed form, derived from its pipeline.

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

Not in the formula: the fill of the on-chip activation buffer (F * KT words, in the RTL a command of its own); writing
outputs back into that buffer (the RTL hands them out as a stream); the softmax and LayerNorm units. Products run one
after the other, `count` times.
"""

from __future__ import annotations

import numpy as np

from hwmodel.accelerator import BACKENDS, NARROW_BITS, AcceleratorColumns, IntLike
from hwmodel.cycles import ceil_div, row_tiles
from hwmodel.workload import IntArray, Population

COMMAND_CYCLES = 1
OUTPUT_CYCLES = 9
LEAST_STEP_CYCLES = 2
PIPELINE_CYCLES = 5
PARAMETER_BYTES = 7


def engine_cycles(accelerator: AcceleratorColumns, population: Population) -> IntArray:
    """Cycles of every product, all its executions together: (N, G), or (C, G) for C accelerators and N = 1."""
    a, g = accelerator, population.gemms
    k_tiles = ceil_div(g.inputs, a.array_inputs)
    activations = a.ddr_activations * ceil_div(8 * g.tokens * a.array_inputs, a.activation_stream_bits)
    least_step = np.maximum(np.maximum(g.tokens, LEAST_STEP_CYCLES), activations)
    latency = array_latency(a)
    group_beats = ceil_div(PARAMETER_BYTES * a.output_stream_bits, a.weight_stream_bits)

    def terms(bits: int) -> tuple[IntLike, IntLike, IntLike]:
        """First load, least time from one last k tile to the next, and drain, of row tiles of so many bits."""
        rows = a.rows_per_dsp(bits) * a.array_rows
        stored_bits = 4 if bits <= NARROW_BITS else 8
        groups = ceil_div(8 * rows, a.output_stream_bits)
        weights = ceil_div(stored_bits * rows * a.array_inputs, a.weight_stream_bits)
        load = np.maximum(groups * group_beats + weights, activations)
        later = (k_tiles - 1) * np.maximum(weights, least_step)
        return load + later, np.maximum(load, least_step) + later, g.tokens * groups

    t_h, t_l = row_tiles(accelerator, population)
    first_h, tile_h, drain_h = terms(population.high_bits)
    first_l, tile_l, drain_l = terms(population.low_bits)
    some_h, some_l = t_h > 0, t_l > 0
    after_h, after_l = latency + drain_h, latency + drain_l
    once = (
        COMMAND_CYCLES
        + np.where(some_h, first_h, first_l)
        + np.maximum(t_h - 1, 0) * np.maximum(tile_h, after_h)
        + (some_h & some_l) * np.maximum(tile_l, after_h)
        + np.maximum(t_l - 1, 0) * np.maximum(tile_l, after_l)
        + np.where(some_l, after_l, after_h)
        + OUTPUT_CYCLES
    )
    busy = (some_h | some_l) & (g.tokens > 0) & (g.inputs > 0)
    return np.asarray(once * busy * g.count, dtype=np.int64)


def array_latency(accelerator: AcceleratorColumns) -> IntArray:
    """W of the module's docstring."""
    inputs = np.asarray(accelerator.array_inputs, dtype=np.int64)
    levels = sum((inputs > 2**level).astype(np.int64) for level in range(12))
    cascaded = np.asarray(accelerator.narrow_rows) == BACKENDS["atomic"].narrow_rows
    return np.asarray(PIPELINE_CYCLES + np.where(cascaded, inputs, levels), dtype=np.int64)
