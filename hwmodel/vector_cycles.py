"""Cycles of the operations of the vector unit in closed form; `hwmodel/rtl/quasar_vector.sv` takes exactly these.

For R rows of `width` elements on `lanes` lanes, parameters streamed with PW bits per cycle, all streams never pausing:

    B  = ceil(width / lanes)                        beats of a row
    H  = ceil(48 * lanes / PW)                      beats of a group of gains and biases: 6 bytes a channel
    LV = ceil(log2 lanes)                           levels of a tree over the lanes, a register each

    residual     R * B + 3
    softmax      (R + 1) * B + 29 + 2 * LV
    layernorm    max(2 * B + 62 + LV, H * B + 2) + (R - 1) * B + 7

counted from the cycle that takes the command to the one that hands over the last output, both included. The next
command is taken in the cycle after that: cycles of operations add up.

How they come about. The command takes one cycle, then a beat is taken in every cycle.

Residual: 2 registers (sum, clip) behind a beat.

Softmax: a row is read again once its maximum is known, the next row arriving meanwhile, so that the unit is busy for
R * B cycles after the B of the first row. From the last beat of a row to its first output there are 29 + 2 * LV
cycles: mask 1, tree LV, row maximum 1; memory 1, distance 1, exponential 1; tree LV, row sum 1, normalisation of the
sum 5, quotient 17, factor 1. The outputs are delayed to the last of these, so that the factors of all rows are written
when the operation is over.

LayerNorm: the same, with 57 + LV cycles from the last beat of a row to its read address (mask 1, square 1, tree LV, row
sums 1, variance 5, root 26, its normalisation 5, quotient 17, row constants 1), and 12 from there to the output (memory
1, difference 1, product and rounding 2, shift 2, clip and gain 1, product and bias 2, shift 2, clip 1). The gain and
bias of a beat are read 6 of the 12 cycles after its address: those of the first row's last beat in cycle
B + 57 + LV + (B - 1) + 6 = 2 * B + 62 + LV after the command. The last group has come in cycle H * B, and can be read 2
cycles later. A group that is late holds up everything behind it, and as groups come every H >= 1 cycles, the last one
decides: hence the maximum. Then 6 more cycles to the output, (R - 1) * B for the other rows, and 1 because the
command's own cycle counts.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from hwmodel.errors import UsageError

IntLike = NDArray[np.int64] | int

KINDS = ("residual", "softmax", "layernorm")
CHANNEL_BITS = 48


def clog2(values: IntLike) -> IntLike:
    """ceil(log2 values) of whole numbers from 1 on: the bits of values - 1."""
    if isinstance(values, int):  # much faster than an array of one
        return (values - 1).bit_length()
    return np.asarray(np.frexp(values - 1.0)[1], dtype=np.int64)


def vector_operation_cycles(
    kinds: Sequence[str], rows: IntLike, width: IntLike, lanes: IntLike, stream_bits: IntLike
) -> NDArray[np.int64]:
    """Cycles of V operations, one execution of each.

    Args:
        kinds: of each operation, V of `KINDS`.
        rows, width: whole numbers of at least 1, or arrays (..., V).
        lanes, stream_bits: of one unit, or arrays (..., 1) of several.

    Raises:
        UsageError: a kind is unknown.
    """
    unknown = set(kinds).difference(KINDS)
    if unknown:
        raise UsageError(f"vector operation '{min(unknown)}' is unknown; known: {', '.join(KINDS)}")
    numbers = np.array(list(map(KINDS.index, kinds)), dtype=np.int64)
    softmax, layernorm = numbers == 1, numbers == 2
    beats = (width + lanes - 1) // lanes
    levels = clog2(lanes)
    group_beats = (CHANNEL_BITS * lanes + stream_bits - 1) // stream_bits
    first_row = np.maximum(2 * beats + 62 + levels, group_beats * beats + 2)
    around = np.where(softmax, beats + 29 + 2 * levels, np.where(layernorm, first_row - beats + 7, 3))
    return np.asarray(rows * beats + around, dtype=np.int64)
