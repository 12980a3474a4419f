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
    columns = g.tokens * g.inputs * g.count
    macs_pj = (columns * g.rows_high).sum(axis=1) * _mac_pj(population.high_bits, constants) + (
        columns * g.rows_low
    ).sum(axis=1) * _mac_pj(population.low_bits, constants)

    tiles_high, tiles_low = row_tiles(accelerator, population)
    act_bytes = population.act_bits / 8
    streamed = columns * (tiles_high + tiles_low) * act_bytes
    results = g.tokens * (g.rows_high + g.rows_low) * g.count
    sums = 8 * results * ceil_div(g.inputs, accelerator.array_inputs)
    passes = np.array([VECTOR_TIMING[kind][0] for kind in v.kinds], dtype=np.int64)
    vector_bytes = (2 * passes * v.tokens * v.width * v.count).sum(axis=1) * act_bytes
    buffer_bytes = (streamed + sums + results * act_bytes).sum(axis=1) + vector_bytes

    not_stored = ~np.array(g.stored, dtype=bool)
    second_operand = g.inputs * (g.rows_high + g.rows_low) * g.count * not_stored * act_bytes
    activation_bytes = (streamed + second_operand + results * act_bytes).sum(axis=1)
    memory_bytes = population.weight_bytes() + accelerator.ddr_activations * activation_bytes

    picojoules = macs_pj + buffer_bytes * constants.buffer_pj_per_byte + memory_bytes * constants.ddr_pj_per_byte
    return np.asarray(picojoules * 1e-9 + constants.static_w * latency_ms)


def _mac_pj(bits: int, constants: EnergyConstants) -> float:
    return constants.mac_4bit_pj if bits <= NARROW_BITS else constants.mac_8bit_pj
