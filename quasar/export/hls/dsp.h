// The DSPs of the array: one product of 27 x 9 bits multiplies several weight codes by the same activation.
//
// dual: two codes of 8 bits, 18 bits apart, or three of 4 bits, 11 bits apart; their products are taken out of every
// product and added up in the fabric. atomic: two atoms of 4 bits, 22 bits apart, which are two codes of 4 bits or the
// halves of one of 8; products add up in the cascade, and sums are taken out at its end.
// Row j * ARRAY_ROWS + p of a weight tile is code j of the DSPs in row p. A field is its bits plus the bit below,
// which gives back what a negative sum below has borrowed.
#pragma once
#include "types.h"

constexpr int CODES_HIGH = DUAL ? 2 : 1, CODES_LOW = DUAL ? 3 : 2;
constexpr int ROWS_HIGH = CODES_HIGH * ARRAY_ROWS, ROWS_LOW = CODES_LOW * ARRAY_ROWS;

template <int LOW, int W> Int<W> field(Int<48> value) {
    const Int<48> below = LOW ? Int<48>(value >> (LOW ? LOW - 1 : 0)) : Int<48>(0);
    return truncated<W>((value >> LOW) + (below & 1));
}

/// A code of a weight tile, whose bytes are in the order of the stream.
inline Int<8> code_of(const uint8_t* tile, bool high, int row, int input) {
#pragma HLS INLINE
    if (high) return Int<8>(int8_t(tile[input * ROWS_HIGH + row]));
    const int nibble = input * ROWS_LOW + row;
    return truncated<4>(nibble % 2 ? tile[nibble / 2] >> 4 : tile[nibble / 2]);
}

/// The port of 27 bits of DSP (p, input).
inline Int<27> packed_codes(const uint8_t* tile, bool high, int p, int input) {
#pragma HLS INLINE
    const Int<27> code0 = code_of(tile, high, p, input);
    if (!DUAL && high) return (code0 >> 4) * (1 << 22) + (code0 & 15);
    const Int<27> code1 = code_of(tile, high, ARRAY_ROWS + p, input);
    if (!DUAL) return code1 * (1 << 22) + code0;
    if (high) return code1 * (1 << 18) + code0;
    return code_of(tile, high, 2 * ARRAY_ROWS + p, input) * (1 << 22) + code1 * (1 << 11) + code0;
}

/// Sums over the inputs of a tile, for the rows that one row of DSPs holds.
inline void multiply(const Int<27> weights[ARRAY_INPUTS], const Int<9> activations[ARRAY_INPUTS], bool high,
                     Int<32> sums[CODES_LOW]) {
#pragma HLS INLINE
    Int<48> cascade = 0;
    for (int j = 0; j < CODES_LOW; j++) sums[j] = 0;
    for (int k = 0; k < ARRAY_INPUTS; k++) {
#pragma HLS UNROLL
        const Int<36> both = product<27, 9>(weights[k], activations[k]);
#pragma HLS BIND_OP variable = both op = mul impl = dsp
        if (!DUAL) {
            cascade += both;
        } else if (high) {
            sums[0] += field<0, 18>(both);
            sums[1] += field<18, 18>(both);
        } else {
            sums[0] += field<0, 11>(both);
            sums[1] += field<11, 11>(both);
            sums[CODES_LOW - 1] += field<22, 11>(both);
        }
    }
    if (DUAL) return;
    const Int<32> lower = field<0, 22>(cascade), upper = field<22, 22>(cascade);
    sums[0] = high ? Int<32>(16 * upper + lower) : lower;
    sums[1] = upper;
}
