// The matrix engine: row tiles of 8 bits, then of 4 bits; in each of them all k tiles; in each of those all tokens.
//
// A row tile is two processes: products (the weights of the next k tile load while the present one computes) and the
// drain, which turns the sums of one row tile into codes while the next one computes.
#pragma once
#include "descriptors_layout.h"
#include "dsp.h"
#include "trace.h"

constexpr int ROW_BYTES = 7;  // of a row's parameters: bias int32, mantissa uint16, shift uint8
constexpr int GROUP_BYTES = whole(ROW_BYTES * LANES, BEAT_BYTES);
constexpr int GROUPS_HIGH = ceil_div(ROWS_HIGH, LANES), GROUPS_LOW = ceil_div(ROWS_LOW, LANES);
constexpr int TILE_BYTES_HIGH = whole(ROWS_HIGH * ARRAY_INPUTS, BEAT_BYTES);
constexpr int TILE_BYTES_LOW = whole(ceil_div(ROWS_LOW * ARRAY_INPUTS, 2), BEAT_BYTES);
constexpr int TILE_BYTES = TILE_BYTES_HIGH > TILE_BYTES_LOW ? TILE_BYTES_HIGH : TILE_BYTES_LOW;
constexpr int CHANNEL_BYTES = whole(2 * MOST_ROWS, WORD_BYTES);

/// Which rows a row tile holds, and where it begins in weights.bin.
struct RowTile {
    bool high;
    int first, rows;
    uint32_t stream;
};

inline RowTile row_tile(const Gemm& gemm, int index) {
    const int tiles_high = ceil_div(gemm.rows_high, ROWS_HIGH), k_tiles = ceil_div(gemm.inputs, ARRAY_INPUTS);
    const int words_high = (GROUPS_HIGH * GROUP_BYTES + k_tiles * TILE_BYTES_HIGH) / WORD_BYTES;
    const int words_low = (GROUPS_LOW * GROUP_BYTES + k_tiles * TILE_BYTES_LOW) / WORD_BYTES;
    if (index < tiles_high) {
        const int first = index * ROWS_HIGH, left = gemm.rows_high - first;
        return {true, first, left < ROWS_HIGH ? left : ROWS_HIGH, gemm.stream + index * words_high};
    }
    const int from = (index - tiles_high) * ROWS_LOW, left = gemm.rows_low - from;
    return {false, gemm.rows_high + from, left < ROWS_LOW ? left : ROWS_LOW,
            gemm.stream + tiles_high * words_high + (index - tiles_high) * words_low};
}

struct Parameters {
    Int<32> bias[ROWS_LOW];
    UInt<16> mantissa[ROWS_LOW];
    UInt<6> shift[ROWS_LOW];
};

inline void read_parameters(const Gemm& gemm, const RowTile& tile, const Word* weights, Parameters& parameters) {
    for (int group = 0; group < (tile.high ? GROUPS_HIGH : GROUPS_LOW); group++) {
        uint8_t bytes[GROUP_BYTES] = {};
#pragma HLS ARRAY_PARTITION variable = bytes complete
        if (gemm.operand == STORED)
            read_words(weights + tile.stream + group * (GROUP_BYTES / WORD_BYTES), GROUP_BYTES / WORD_BYTES, bytes);
        for (int lane = 0; lane < LANES; lane++) {
#pragma HLS UNROLL
            const int row = group * LANES + lane;
            if (row < ROWS_LOW) {
                const uint8_t* record = bytes + lane * ROW_BYTES;
                const bool stored = gemm.operand == STORED;
                parameters.bias[row] = int32_t(little32(record));
                parameters.mantissa[row] = stored ? little16(record + 4) : gemm.mantissa;
                parameters.shift[row] = stored ? record[6] : gemm.shift;
            }
        }
    }
}

/// The bytes of a weight tile in the order of the stream. Keys and values take the same path, as rows of 8 bits;
/// what lies beyond theirs is zero.
inline void load_tile(const Gemm& gemm, const RowTile& tile, int k_tile, const Word* weights, const CodeWord* second,
                      uint8_t bytes[TILE_BYTES]) {
#pragma HLS INLINE off
    const int first_input = k_tile * ARRAY_INPUTS;
    if (gemm.operand == STORED) {
        const int groups = tile.high ? GROUPS_HIGH : GROUPS_LOW;
        const int words = (tile.high ? TILE_BYTES_HIGH : TILE_BYTES_LOW) / WORD_BYTES;
        read_words(weights + tile.stream + groups * (GROUP_BYTES / WORD_BYTES) + k_tile * words, words, bytes);
    } else if (gemm.operand == KEYS) {  // a row is a token, an input a channel
        for (int row = 0; row < ROWS_HIGH; row++) {
#pragma HLS PIPELINE II = 1
            for (int k = 0; k < ARRAY_INPUTS; k++) {
                const bool inside = row < tile.rows && first_input + k < gemm.inputs;
                bytes[k * ROWS_HIGH + row] = inside ? second[k_tile * gemm.second_pitch + tile.first + row][k] : 0;
            }
        }
    } else {  // a row is a channel, an input a token
        for (int k = 0; k < ARRAY_INPUTS; k++) {
#pragma HLS PIPELINE II = 1
            for (int row = 0; row < ROWS_HIGH; row++) {
                const bool inside = row < tile.rows && first_input + k < gemm.inputs;
                const int channel = tile.first + row;
                const int word = channel / ARRAY_INPUTS * gemm.second_pitch + first_input + k;
                bytes[k * ROWS_HIGH + row] = inside ? second[word][channel % ARRAY_INPUTS] : 0;
            }
        }
    }
}

/// All tokens of a tile, one in each cycle.
inline void multiply_tile(const Gemm& gemm, bool high, int k_tile, const CodeWord* activations,
                          const uint8_t bytes[TILE_BYTES], Int<32> sums[ROWS_LOW][MOST_TOKENS]) {
#pragma HLS INLINE off
    Int<27> weights[ARRAY_ROWS][ARRAY_INPUTS];
#pragma HLS ARRAY_PARTITION variable = weights complete dim = 0
    for (int p = 0; p < ARRAY_ROWS; p++) {
#pragma HLS UNROLL
        for (int k = 0; k < ARRAY_INPUTS; k++) {
#pragma HLS UNROLL
            weights[p][k] = packed_codes(bytes, high, p, k);
        }
    }
    for (int f = 0; f < gemm.tokens; f++) {
#pragma HLS PIPELINE II = 1
#pragma HLS DEPENDENCE variable = sums type = inter dependent = false
        Int<9> codes[ARRAY_INPUTS];
        for (int k = 0; k < ARRAY_INPUTS; k++) {
            // Behind the last input there is what another tensor left.
            const bool inside = k_tile * ARRAY_INPUTS + k < gemm.inputs;
            const uint8_t byte = inside ? activations[k_tile * gemm.tokens + f][k] : 0;
            codes[k] = gemm.numerators ? Int<9>(byte) : Int<9>(int8_t(byte));  // numerators have no sign
        }
        for (int p = 0; p < ARRAY_ROWS; p++) {
#pragma HLS UNROLL
            Int<32> of_tile[CODES_LOW];
            multiply(weights[p], codes, high, of_tile);
            for (int j = 0; j < CODES_LOW; j++) {
                Int<32>& sum = sums[j * ARRAY_ROWS + p][f];
                sum = k_tile == 0 ? of_tile[j] : Int<32>(sum + of_tile[j]);
            }
        }
    }
}

/// The sums of a row tile and the parameters of its rows.
inline void products(const Gemm& gemm, int index, const Word* weights, const CodeWord* activations,
                     const CodeWord* second, Parameters& parameters, Int<32> sums[ROWS_LOW][MOST_TOKENS]) {
#pragma HLS INLINE off
    const RowTile tile = row_tile(gemm, index);
    const int k_tiles = ceil_div(gemm.inputs, ARRAY_INPUTS);
    read_parameters(gemm, tile, weights, parameters);
    for (int k_tile = 0; k_tile < k_tiles; k_tile++) {
#pragma HLS DATAFLOW
        uint8_t bytes[TILE_BYTES];
#pragma HLS ARRAY_PARTITION variable = bytes complete
        load_tile(gemm, tile, k_tile, weights, second, bytes);
        multiply_tile(gemm, tile.high, k_tile, activations, bytes, sums);
    }
}

/// The channel of a tensor's buffer into which row `row` of the hardware goes.
inline int channel_of(const Gemm& gemm, const uint8_t* channels, int row) {
    if (gemm.channels == NONE) return gemm.first_channel + row;
    const int channel = little16(channels + 2 * row);
    return gemm.by_head ? channel / HEAD_DIM * HEAD_PITCH + channel % HEAD_DIM : channel;
}

/// A code of 8 bits, or of 16 where outputs are wide.
inline int16_t requantized(const Gemm& gemm, Int<32> sum, UInt<16> mantissa, UInt<6> shift, const uint8_t* table) {
#pragma HLS INLINE
    const Int<64> rounded = rounding_shift(product<32, 17>(sum, Int<17>(mantissa)), int(shift));
    if (gemm.wide) return int16_t(clipped(rounded, -32768, 32767));
    const int8_t code = int8_t(clipped(rounded, gemm.table == NONE ? -127 : -128, 127));
    return gemm.table == NONE ? code : int8_t(table[uint8_t(code)]);
}

/// Rows of a row tile that follow each other in a word of a buffer, and leave the drain together.
struct Segment {
    int row, count, word, bank;
};

/// Codes of all sums of a row tile, up to LANES of one token in each cycle.
inline void drain(const Gemm& gemm, int index, const Parameters& parameters, const Int<32> sums[ROWS_LOW][MOST_TOKENS],
                  const uint8_t* channels, const uint8_t* table, const TokenFactors& factors, CodeWord* results,
                  WideWord* wide) {
#pragma HLS INLINE off
    const RowTile tile = row_tile(gemm, index);
    Segment segments[ROWS_LOW];
    int count = 0, before = 0;
    for (int row = 0; row < tile.rows; row++) {
        const int channel = channel_of(gemm, channels, tile.first + row);
        const int bank = channel % ARRAY_INPUTS;
        if (row == 0 || channel != before + 1 || bank == 0 || segments[count - 1].count == LANES)
            segments[count++] = {row, 0, int(gemm.target) + channel / ARRAY_INPUTS * gemm.pitch, bank};
        segments[count - 1].count++;
        before = channel;
    }
    for (int s = 0; s < count; s++) {
        const Segment segment = segments[s];
        for (int f = 0; f < gemm.tokens; f++) {
#pragma HLS PIPELINE II = 1
            int16_t codes[LANES] = {};
            for (int lane = 0; lane < LANES; lane++) {
#pragma HLS UNROLL
                if (lane < segment.count) {
                    const int row = segment.row + lane;
                    const bool of_token = gemm.numerators;
                    codes[lane] = requantized(gemm, sums[row][f] + parameters.bias[row],
                                              of_token ? factors.mantissa[f] : parameters.mantissa[row],
                                              of_token ? factors.shift[f] : parameters.shift[row], table);
                }
            }
            const int word = segment.word + gemm.first_token + f;
            for (int bank = 0; bank < ARRAY_INPUTS; bank++) {
#pragma HLS UNROLL
                const int lane = bank - segment.bank;
                if (lane >= 0 && lane < segment.count) {
                    if (gemm.wide) wide[word][bank] = codes[lane];
                    else results[word][bank] = uint8_t(codes[lane]);
                }
            }
        }
    }
}

inline void copy_words(const CodeWord* from, int words, CodeWord* to) {
    for (int w = 0; w < words; w++) {
#pragma HLS PIPELINE II = 1
        for (int k = 0; k < ARRAY_INPUTS; k++) to[w][k] = from[w][k];
    }
}

/// The channels of a tensor in the results as the tokens of a product.
inline void copy_transposed(const Gemm& gemm, const CodeWord* results, CodeWord* activations) {
    for (int f = 0; f < gemm.tokens; f++) {
        for (int k = 0; k < gemm.inputs; k++) {
#pragma HLS PIPELINE II = 1
            activations[k / ARRAY_INPUTS * gemm.tokens + f][k % ARRAY_INPUTS] =
                results[gemm.source + f / ARRAY_INPUTS * gemm.inputs + k][f % ARRAY_INPUTS];
        }
    }
}

/// One product: activations (tokens, inputs) by rows, into the results or the wide buffer.
inline void run_gemm(const Gemm& gemm, const Word* weights, CodeWord* activations, CodeWord* second,
                     const TokenFactors& factors, CodeWord* results, WideWord* wide) {
#pragma HLS INLINE off
    uint8_t channels[CHANNEL_BYTES], table[256];
#pragma HLS ARRAY_PARTITION variable = table complete
    const int rows = gemm.rows_high + gemm.rows_low;
    if (gemm.channels != NONE) read_words(weights + gemm.channels, ceil_div(2 * rows, WORD_BYTES), channels);
    if (gemm.table != NONE) read_words(weights + gemm.table, 256 / WORD_BYTES, table);
    if (gemm.source != NONE && gemm.transposed)
        copy_transposed(gemm, results, activations);
    else if (gemm.source != NONE)
        copy_words(results + gemm.source, ceil_div(gemm.inputs, ARRAY_INPUTS) * gemm.tokens, activations);
    if (gemm.operand != STORED) copy_words(results + gemm.second, HEAD_PITCH / ARRAY_INPUTS * gemm.second_pitch, second);

    const int tiles = ceil_div(gemm.rows_high, ROWS_HIGH) + ceil_div(gemm.rows_low, ROWS_LOW);
    for (int index = 0; index < tiles; index++) {
#pragma HLS DATAFLOW
        Parameters parameters;
#pragma HLS ARRAY_PARTITION variable = parameters.bias complete
#pragma HLS ARRAY_PARTITION variable = parameters.mantissa complete
#pragma HLS ARRAY_PARTITION variable = parameters.shift complete
        Int<32> sums[ROWS_LOW][MOST_TOKENS];
#pragma HLS ARRAY_PARTITION variable = sums complete dim = 1
        products(gemm, index, weights, activations, second, parameters, sums);
        drain(gemm, index, parameters, sums, channels, table, factors, results, wide);
    }
#ifndef __SYNTHESIS__
    trace(gemm.wide ? "int16" : "int8", gemm.tokens, rows, [&](int f, int row) {
        const int channel = channel_of(gemm, channels, row);
        const int word = int(gemm.target) + channel / ARRAY_INPUTS * gemm.pitch + gemm.first_token + f;
        const int bank = channel % ARRAY_INPUTS;
        return gemm.wide ? int(wide[word][bank]) : int(int8_t(results[word][bank]));
    });
#endif
}
