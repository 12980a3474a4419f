// What the tables in descriptors.h hold. Places in weights.bin are counted in words (types.h).
#pragma once
#include <cstdint>

constexpr uint32_t NONE = 0xFFFFFFFF;

/// Where the rows of a product come from: weights.bin, or a tensor in the results, of which a row of the product is a
/// token (keys; of a context, a row) or a channel (values).
enum Operand : uint8_t { STORED, KEYS, VALUES };

struct Gemm {
    Operand operand;
    bool wide;     // outputs of 16 bits, into the wide buffer
    bool by_head;  // outputs of qkv: each head's queries, keys and values begin at a word of their own
    bool numerators;  // activations are numerators of a softmax, which has given the factors of the tokens, too
    bool transposed;  // of the tensor at `source`, a token of the product is a channel
    uint16_t tokens, inputs, rows_high, rows_low;
    uint32_t stream, channels, table;  // sections of weights.bin; NONE where there is none
    uint32_t source;                   // activations are first copied from this word of the results, unless NONE
    uint32_t second;                   // the rows are copied from this word of the results,
    uint16_t second_pitch;             // in which the tensor has so many tokens
    uint32_t target;                   // outputs go behind this word of the results, or of the wide buffer,
    uint16_t first_channel, first_token, pitch;  // from this channel and this token on
    uint16_t mantissa;                 // requantization of scores
    uint8_t shift;
};

struct LayerNorm {
    uint16_t tokens, width;
    uint32_t source;      // rows are codes of the results, from this word on, and stay there; NONE: the residual stream
    uint16_t heads;       // of the results; the next one begins
    uint32_t head_words;  // so many words further on
    uint32_t parameters;  // section of weights.bin
    uint64_t epsilon;
    uint32_t mean_factor;
    uint8_t mean_shift, out_shift;
};

struct Softmax {
    uint32_t table;   // section of weights.bin
    uint32_t source;  // the scores in the results
    uint16_t numerator;
    uint8_t exponent;
};

enum Unit : uint8_t { GEMM, LAYERNORM, SOFTMAX, RESIDUAL };

/// One operation: its unit, and the number of its descriptor in the table of that unit.
struct Step {
    Unit unit;
    uint16_t index;
};
