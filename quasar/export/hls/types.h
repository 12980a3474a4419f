// Integers of a given width, words of the memory, and how numbers lie in them.
//
// With Vitis' headers a width is exact. Without them it is that of the next wider integer of C++; nothing here relies
// on a number being cut, except through `truncated`.
#pragma once
#include <cstdint>
#include <type_traits>

#include "config.h"

#if __has_include(<ap_int.h>)
#include <ap_int.h>
template <int W> using Int = ap_int<W>;
template <int W> using UInt = ap_uint<W>;
/// a * b, exact: a multiplier with ports of these widths.
template <int A, int B> Int<A + B> product(Int<A> a, Int<B> b) { return a * b; }
#else
template <int W, typename T8, typename T16, typename T32, typename T64>
using AtLeast = std::conditional_t<W <= 16, std::conditional_t<W <= 8, T8, T16>, std::conditional_t<W <= 32, T32, T64>>;
template <int W> using Int = AtLeast<W, int8_t, int16_t, int32_t, int64_t>;
template <int W> using UInt = AtLeast<W, uint8_t, uint16_t, uint32_t, uint64_t>;
template <int A, int B> Int<A + B> product(Int<A> a, Int<B> b) { return Int<A + B>(a) * Int<A + B>(b); }
#endif

/// The lower W bits as a signed number.
template <int W> Int<W> truncated(Int<64> value) {
    return Int<W>(int64_t(uint64_t(int64_t(value)) << (64 - W)) >> (64 - W));
}

/// value / 2^shift, a half rounded up; shift is at least 1.
inline Int<64> rounding_shift(Int<64> value, int shift) { return (value + (Int<64>(1) << (shift - 1))) >> shift; }

inline Int<64> clipped(Int<64> value, Int<64> least, Int<64> most) {
    return value < least ? least : value > most ? most : value;
}

constexpr int ceil_div(int a, int b) { return (a + b - 1) / b; }
constexpr int whole(int size, int unit) { return unit * ceil_div(size, unit); }

/// What one access of weights.bin brings: the largest power of two that divides a beat and the alignment of sections.
struct Word {
    uint8_t bytes[WORD_BYTES];
};

inline void read_words(const Word* from, int words, uint8_t* bytes) {
    for (int w = 0; w < words; w++) {
#pragma HLS PIPELINE II = 1
        for (int b = 0; b < WORD_BYTES; b++) bytes[w * WORD_BYTES + b] = from[w].bytes[b];
    }
}

inline uint16_t little16(const uint8_t* bytes) { return uint16_t(bytes[0] | bytes[1] << 8); }
inline uint32_t little32(const uint8_t* bytes) { return little16(bytes) | uint32_t(little16(bytes + 2)) << 16; }

/// Every buffer has words of one code for each input of the array. Channel c of token f of a tensor lies in word
/// (c / ARRAY_INPUTS) * pitch + f, where the pitch is the number of tokens: the order in which the array reads.
using CodeWord = uint8_t[ARRAY_INPUTS];
using WideWord = int16_t[ARRAY_INPUTS];

/// Requantization factors of tokens, which a softmax gives: mantissa * 2^-shift.
struct TokenFactors {
    UInt<16> mantissa[TOKENS];
    UInt<6> shift[TOKENS];
};
