"""Energy of one image, an ESTIMATE that ranks designs and does not predict a power meter.

    energy = sum of MACs * energy by lane (up to 4 bits, up to 8 bits)
           + bytes moved in buffers and in memory * energy per byte of the level
           + static power * latency

Bytes, for a product of F tokens, K inputs, M rows in T row tiles and KT k tiles:

    buffers   F * K * T activations read, 8 * F * M * KT of 32-bit sums read and written, F * M outputs written;
              a vector operation reads and writes each element once per pass
    memory    the weights once, packed at their own bits; with activations in memory also F * K * T read, the
              second operand of attention read, and F * M written

Every constant belongs to the device, with its source. Left out: clock tree, routing, control, processors, the board.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from hwmodel.accelerator import NARROW_BITS, AcceleratorColumns
from hwmodel.cycles import VECTOR_TIMING, ceil_div, row_tiles
from hwmodel.device import EnergyConstants
from hwmodel.workload import Population


def energy_mj(
    accelerator: AcceleratorColumns,
    population: Population,
    constants: EnergyConstants,
    latency_ms: NDArray[np.float64],
) -> NDArray[np.float64]:
    """Energy of each workload in millijoules, shape (N,); `latency_ms` has shape (N,)."""
    g, v = population.gemms, population.vectors
    tiles_high, tiles_low = row_tiles(accelerator, population)
    columns = g.tokens * g.inputs * g.count
    streamed = columns * (tiles_high + tiles_low) * population.act_bits
    results = g.tokens * (g.rows_high + g.rows_low) * g.count
    sums = 64 * results * ceil_div(g.inputs, accelerator.array_inputs)
    written = results * population.act_bits
    second_operand = g.inputs * (g.rows_high + g.rows_low) * g.count * ~g.stored * population.act_bits
    passes = np.array([VECTOR_TIMING[kind][0] for kind in v.kinds], dtype=np.int64)

    # Whole numbers (bits, not bytes), so that they add up exactly in whatever order.
    of_gemms = [
        columns * g.rows_high,
        columns * g.rows_low,
        streamed + sums + written,
        g.weight_bits(high_bits=population.high_bits, low_bits=population.low_bits),
        accelerator.ddr_activations * (streamed + second_operand + written),
    ]
    moved = 2 * passes * v.tokens * v.width * v.count * population.act_bits
    none = np.zeros_like(moved)
    macs_high, macs_low, buffer_bits, weight_bits, activation_bits = population.totals(
        np.concatenate(of_gemms), np.concatenate([none, none, moved, none, none])
    )
    picojoules = (
        macs_high * _mac_pj(population.high_bits, constants)
        + macs_low * _mac_pj(population.low_bits, constants)
        + buffer_bits / 8 * constants.buffer_pj_per_byte
        + (-(-weight_bits // 8) + activation_bits / 8) * constants.ddr_pj_per_byte
    )
    return np.asarray(picojoules * 1e-9 + constants.static_w * latency_ms)


def _mac_pj(bits: int, constants: EnergyConstants) -> float:
    return constants.mac_4bit_pj if bits <= NARROW_BITS else constants.mac_8bit_pj
