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

from hwmodel.accelerator import NARROW_BITS
from hwmodel.cycles import VECTOR_TIMING, GemmTerms
from hwmodel.device import EnergyConstants


def energy_mj(terms: GemmTerms, constants: EnergyConstants, latency_ms: NDArray[np.float64]) -> NDArray[np.float64]:
    """Energy of each workload of the population of `terms` on their (one) accelerator.

    Args:
        terms: the terms of the cycle model for the population.
        constants: the energies of the device.
        latency_ms: shape (N,).

    Returns:
        Millijoules, shape (N,).
    """
    population = terms.population
    g, v = population.gemms, population.vectors
    loads, rows = g.inputs * g.count, g.rows_high + g.rows_low
    columns, results = g.tokens * loads, g.tokens * g.count * rows
    passes = np.array([VECTOR_TIMING[kind][0] for kind in v.kinds], dtype=np.int64)
    moved_by_vectors = 2 * passes * v.tokens * v.width * v.count
    # Whole numbers, so that they add up exactly in whatever order; codes have `act_bits`, sums 32 bits.
    macs_high, macs_low, moved_codes, second_operand_codes, moved_sums, weight_bits = population.gemm_totals(
        np.concatenate(
            [
                columns * g.rows_high,
                columns * g.rows_low,
                columns * (terms.high.tiles + terms.low.tiles) + results,
                loads * rows * ~g.stored,
                2 * results * terms.k_tiles,
                g.weight_bits(high_bits=population.high_bits, low_bits=population.low_bits),
            ]
        )
    )
    vector_codes = population.vector_totals(moved_by_vectors[0])
    buffer_bits = (moved_codes + vector_codes) * population.act_bits + 32 * moved_sums
    activation_bits = terms.accelerator.ddr_activations * (moved_codes + second_operand_codes) * population.act_bits
    memory_bytes = -(-weight_bits // 8) + activation_bits / 8
    picojoules = (
        macs_high * _mac_pj(population.high_bits, constants)
        + macs_low * _mac_pj(population.low_bits, constants)
        + buffer_bits / 8 * constants.buffer_pj_per_byte
        + memory_bytes * constants.ddr_pj_per_byte
    )
    return np.asarray(picojoules * 1e-9 + constants.static_w * latency_ms)


def _mac_pj(bits: int, constants: EnergyConstants) -> float:
    return constants.mac_4bit_pj if bits <= NARROW_BITS else constants.mac_8bit_pj
