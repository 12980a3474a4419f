// What the tables in descriptors.h hold. Places in weights.bin are counted in words (types.h).
#pragma once
#include <cstdint>

constexpr uint32_t NONE = 0xFFFFFFFF;

/// Where the rows of a product come from: weights.bin, the keys of a head, or its values.
enum Operand : uint8_t { STORED, KEYS, VALUES };

struct Gemm {
    Operand operand;
    bool wide;     // outputs of 16 bits, into the wide buffer
    bool by_head;  // outputs of qkv: each head's queries, keys and values begin at a word of their own
    uint16_t tokens, inputs, rows_high, rows_low;
    uint32_t stream, channels, table;  // sections of weights.bin; NONE where there is none
    uint32_t source;                   // activations are first copied from this word of the results, unless NONE
    uint32_t second;                   // keys or values are copied from this word of the results
    uint32_t target;                   // outputs go behind this word of the results, or of the wide buffer,
    uint16_t first_channel, first_token, pitch;  // from this channel and this token on
    uint16_t mantissa;                 // requantization of scores
    uint8_t shift;
};

struct LayerNorm {
    uint16_t tokens;
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
