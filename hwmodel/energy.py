"""Energy of one image, an ESTIMATE that ranks designs and does not predict a power meter.

    energy = sum of MACs * energy by lane (up to 4 bits, up to 8 bits)
           + bytes moved in buffers and in memory * energy per byte of the level
           + static power * latency

Bytes, for a product of F tokens, K inputs, M rows in T row tiles and KT k tiles:

    buffers   F * K * T activations read, 8 * F * M * KT of 32-bit sums read and written, F * M outputs written;
              of a vector operation, per element: residual two of 16 bits read, one written; softmax a code read and
              one written; LayerNorm 16 bits read and a code written; the last two also write their row to a FIFO of
              the unit and read it again
    memory    the weights once, packed at their own bits; with activations in memory also F * K * T read, the
              second operand of attention read, and F * M written

Every constant belongs to the device, with its source. Left out: clock tree, routing, control, processors, the board.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np

from hwmodel.accelerator import NARROW_BITS
from hwmodel.cycles import GemmTerms
from hwmodel.device import EnergyConstants
from hwmodel.workload import IntArray

#: bits that a vector operation moves for an element
VECTOR_BITS = {"residual": 3 * 16, "softmax": 4 * 8, "layernorm": 3 * 16 + 8}


def energy_counts(terms: GemmTerms) -> tuple[IntArray, IntArray]:
    """What takes energy in each layer, as whole numbers that add up exactly, in whatever order.

    Returns:
        For the products (6, G): MACs of high and of low rows; codes (of `act_bits`) read and written; codes read as the
        second operand of attention; 32-bit sums read and written; bits of stored weights. For the vector operations
        (1, V): bits read and written.
    """
    population = terms.population
    g, v = population.gemms, population.vectors
    loads, rows = g.inputs * g.count, g.rows_high + g.rows_low
    columns, results = g.tokens * loads, g.tokens * g.count * rows
    of_gemms = [
        columns * g.rows_high,
        columns * g.rows_low,
        columns * (terms.high.tiles + terms.low.tiles) + results,
        loads * rows * ~g.stored,
        2 * results * terms.k_tiles,
        g.weight_bits(high_bits=population.high_bits, low_bits=population.low_bits),
    ]
    bits = np.array(list(map(VECTOR_BITS.__getitem__, v.kinds)), dtype=np.int64)
    return np.concatenate(of_gemms), bits * v.tokens * v.width * v.count


def energy_mj(
    terms: GemmTerms, of_gemms: Iterable[Any], vector_bits: Any, constants: EnergyConstants, latency_ms: Any
) -> Any:
    """Energy in millijoules of networks on the one accelerator of `terms`.

    Args:
        terms: the terms of the cycle model for these networks.
        of_gemms: the six counts of products by `energy_counts`, added up: whole numbers of one network, or of N
            networks as arrays (N,).
        vector_bits: the count of vector operations likewise.
        constants: the energies of the device.
        latency_ms: likewise a number, or an array (N,).

    Returns:
        A number, or an array (N,).
    """
    population = terms.population
    macs_high, macs_low, moved_codes, second_operand_codes, moved_sums, weight_bits = of_gemms
    buffer_bits = moved_codes * population.act_bits + vector_bits + 32 * moved_sums
    activation_bits = terms.accelerator.ddr_activations * (moved_codes + second_operand_codes) * population.act_bits
    memory_bytes = -(-weight_bits // 8) + activation_bits / 8
    picojoules = (
        macs_high * _mac_pj(population.high_bits, constants)
        + macs_low * _mac_pj(population.low_bits, constants)
        + buffer_bits / 8 * constants.buffer_pj_per_byte
        + memory_bytes * constants.ddr_pj_per_byte
    )
    return picojoules * 1e-9 + constants.static_w * latency_ms


def _mac_pj(bits: int, constants: EnergyConstants) -> float:
    return constants.mac_4bit_pj if bits <= NARROW_BITS else constants.mac_8bit_pj
