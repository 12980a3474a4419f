// The vector unit: LayerNorm, softmax with deferred normalisation, and the residual addition.
//
// Each takes one pass over all rows after the other, so that the division and the root of a row wait for no other.
#pragma once
#include "descriptors_layout.h"
#include "trace.h"
#include "types.h"

constexpr int MEAN_FRACTION_BITS = 8, SUM_BITS = 24, ROOT_BITS = 26, WIDTH_BITS = 11;
constexpr int NORM_GROUP_BYTES = whole(6 * VECTOR_LANES, BEAT_BYTES);  // gain int16 and bias int32 of each channel

/// The left shift that makes `value` a number of exactly `bits` bits; it must be from 1 to 2^bits - 1.
inline int leading_zeros(Int<64> value, int bits) {
    int zeros = 0;
    for (int bit = 0; bit < bits; bit++) {
#pragma HLS UNROLL
        if (value >> bit) zeros = bits - 1 - bit;
    }
    return zeros;
}

/// Floor of the square root of a number below 2^52, a bit of it after the other.
inline Int<27> integer_root(Int<53> value) {
    Int<53> root = 0;
    for (int bit = ROOT_BITS - 1; bit >= 0; bit--) {
#pragma HLS UNROLL
        const Int<53> more = root + (Int<53>(1) << bit);
        if (more * more <= value) root = more;
    }
    return Int<27>(root);
}

struct NormParameters {
    Int<16> gain[whole(MOST_WIDTH, VECTOR_LANES)];
    Int<32> bias[whole(MOST_WIDTH, VECTOR_LANES)];
};

/// An element of a row: of the residual stream, or with a code of the results in its upper byte.
inline Int<32> element(const LayerNorm& norm, const WideWord* stream, const CodeWord* results, int head, int f, int c) {
#pragma HLS INLINE
    const int word = c / ARRAY_INPUTS * TOKENS + f;
    if (norm.source == NONE) return stream[word][c % ARRAY_INPUTS];
    return int8_t(results[norm.source + head * norm.head_words + word][c % ARRAY_INPUTS]) * 256;
}

/// Where the code of an element goes.
inline uint8_t& normalised(const LayerNorm& norm, CodeWord* activations, CodeWord* results, int head, int f, int c) {
#pragma HLS INLINE
    if (norm.source == NONE) return activations[c / ARRAY_INPUTS * norm.tokens + f][c % ARRAY_INPUTS];
    return results[norm.source + head * norm.head_words + c / ARRAY_INPUTS * TOKENS + f][c % ARRAY_INPUTS];
}

/// Rows as codes of 8 bits: of the residual stream into the activations, or those of all heads where they are.
inline void run_layernorm(const LayerNorm& norm, const Word* weights, const WideWord* stream, CodeWord* activations,
                          CodeWord* results) {
#pragma HLS INLINE off
    NormParameters parameters;
    for (int group = 0; group < ceil_div(norm.width, VECTOR_LANES); group++) {
        uint8_t bytes[NORM_GROUP_BYTES];
        const int words = NORM_GROUP_BYTES / WORD_BYTES;
        read_words(weights + norm.parameters + group * words, words, bytes);
        for (int lane = 0; lane < VECTOR_LANES; lane++) {
#pragma HLS UNROLL
            parameters.gain[group * VECTOR_LANES + lane] = int16_t(little16(bytes + 6 * lane));
            parameters.bias[group * VECTOR_LANES + lane] = int32_t(little32(bytes + 6 * lane + 2));
        }
    }
    for (int head = 0; head < norm.heads; head++) {
        Int<64> total[TOKENS], squares[TOKENS], mean[TOKENS], inverse[TOKENS];
        int shift[TOKENS];
        for (int f = 0; f < norm.tokens; f++) {
            total[f] = squares[f] = 0;
            for (int c = 0; c < norm.width; c++) {
#pragma HLS PIPELINE
#pragma HLS UNROLL factor = VECTOR_LANES
                const Int<32> x = element(norm, stream, results, head, f, c);
                total[f] += x;
                squares[f] += x * x;
            }
        }
        for (int f = 0; f < norm.tokens; f++) {
#pragma HLS PIPELINE
            const Int<64> spread = norm.width * squares[f] - total[f] * total[f];
            const Int<64> root = integer_root(spread + Int<64>(norm.epsilon));
            const int z = leading_zeros(root, ROOT_BITS), zn = leading_zeros(norm.width, WIDTH_BITS);
            mean[f] = rounding_shift(total[f] * norm.mean_factor, norm.mean_shift);
            inverse[f] = (Int<64>(norm.width) << (zn + 31)) / (root << z);
            shift[f] = 27 + zn - z;
        }
        for (int f = 0; f < norm.tokens; f++) {
            for (int c = 0; c < norm.width; c++) {
#pragma HLS PIPELINE
#pragma HLS UNROLL factor = VECTOR_LANES
                const Int<64> x = element(norm, stream, results, head, f, c);
                const Int<64> centred = x * (1 << MEAN_FRACTION_BITS) - mean[f];
                const Int<64> zeta = clipped(rounding_shift(centred * inverse[f], shift[f]), -131072, 131071);
                const Int<64> scaled = rounding_shift(zeta * parameters.gain[c] + parameters.bias[c], norm.out_shift);
                normalised(norm, activations, results, head, f, c) = uint8_t(clipped(scaled, -127, 127));
            }
        }
    }
#ifndef __SYNTHESIS__
    trace("int8", norm.heads * norm.tokens, norm.width, [&](int row, int c) {
        return int(int8_t(normalised(norm, activations, results, row / norm.tokens, row % norm.tokens, c)));
    });
#endif
}

/// Numerators of the scores into the activations, and the requantization factors of the tokens: n * 2^-e / sum.
inline void run_softmax(const Softmax& softmax, const Word* weights, const CodeWord* results, CodeWord* activations,
                        TokenFactors& factors) {
#pragma HLS INLINE off
    uint8_t table[256];
    read_words(weights + softmax.table, 256 / WORD_BYTES, table);
    int most[TOKENS];
    Int<64> sum[TOKENS];
    for (int f = 0; f < TOKENS; f++) {
        most[f] = -128;
        for (int c = 0; c < TOKENS; c++) {
#pragma HLS PIPELINE
#pragma HLS UNROLL factor = VECTOR_LANES
            const int score = int8_t(results[softmax.source + c / ARRAY_INPUTS * TOKENS + f][c % ARRAY_INPUTS]);
            if (score > most[f]) most[f] = score;
        }
    }
    for (int f = 0; f < TOKENS; f++) {
        sum[f] = 0;
        for (int c = 0; c < TOKENS; c++) {
#pragma HLS PIPELINE
#pragma HLS UNROLL factor = VECTOR_LANES
            const int word = c / ARRAY_INPUTS * TOKENS + f;
            const uint8_t numerator = table[most[f] - int8_t(results[softmax.source + word][c % ARRAY_INPUTS])];
            activations[word][c % ARRAY_INPUTS] = numerator;
            sum[f] += numerator;
        }
    }
    for (int f = 0; f < TOKENS; f++) {
#pragma HLS PIPELINE
        const int z = leading_zeros(sum[f], SUM_BITS);
        const Int<64> g = (Int<64>(softmax.numerator) << SUM_BITS) / (sum[f] << z);
        const bool large = g >= 1 << 16;
        factors.mantissa[f] = large ? Int<64>(g >> 1) : g;
        factors.shift[f] = softmax.exponent + 24 - z - large;
    }
#ifndef __SYNTHESIS__
    trace("uint8", TOKENS, TOKENS, [&](int f, int c) {
        return int(activations[c / ARRAY_INPUTS * TOKENS + f][c % ARRAY_INPUTS]);
    });
    trace("factor", TOKENS, 2, [&](int f, int c) { return c ? int(factors.shift[f]) : int(factors.mantissa[f]); });
#endif
}

/// Adds what the wide buffer holds to the residual stream.
inline void run_residual(const WideWord* wide, WideWord* stream) {
#pragma HLS INLINE off
    for (int word = 0; word < STREAM_WORDS; word++) {
        for (int k = 0; k < ARRAY_INPUTS; k++) {
#pragma HLS PIPELINE
#pragma HLS UNROLL factor = VECTOR_LANES
            stream[word][k] = int16_t(clipped(Int<64>(stream[word][k]) + wide[word][k], -32768, 32767));
        }
    }
#ifndef __SYNTHESIS__
    trace("int16", TOKENS, WIDTH, [&](int f, int c) {
        return int(stream[c / ARRAY_INPUTS * TOKENS + f][c % ARRAY_INPUTS]);
    });
#endif
}
