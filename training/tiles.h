// Products of a few rows with a panel of 32 columns, sums in registers: what decode.cpp and attention.cpp are built on.

#pragma once

#include "numbers.h"
#ifdef __AVX512BF16__
#include <immintrin.h>
#endif

namespace {

typedef float v16 __attribute__((vector_size(64)));
typedef uint16_t u16x16 __attribute__((vector_size(32)));
typedef uint32_t u32x16 __attribute__((vector_size(64)));

const int64_t COLUMNS = 32;  // of a panel
const int64_t ROWS = 12;     // of a tile: 24 sums of 16, two vectors of a panel and an input fill the registers

inline v16 vector(const float* from) {
    v16 value;
    std::memcpy(&value, from, 64);
    return value;
}
inline v16 vector(const bf16* from) {
    u16x16 bits;
    std::memcpy(&bits, from, 32);
    return (v16)(__builtin_convertvector(bits, u32x16) << 16);
}

// sums[p][r] = the 32 products of row r with panel p: x (R, depth), rows `stride` apart, times P panels (depth,
// COLUMNS) that lie `apart` numbers from each other.
template <int R, int P>
__attribute__((noinline)) void products(const float* panels, int64_t apart, const float* x, int64_t stride, int64_t depth,
                     v16 (&out)[P][R][2]) {
    v16 sums[P][R][2] = {};  // not `out` itself: the compiler keeps in registers what no address is taken of
    for (int64_t k = 0; k < depth; k++)
#pragma GCC unroll 16
        for (int p = 0; p < P; p++) {
            const float* w = panels + p * apart + k * COLUMNS;
            const v16 left = vector(w), right = vector(w + 16);
#pragma GCC unroll 16
            for (int r = 0; r < R; r++) {
                const float input = x[r * stride + k];
                sums[p][r][0] += left * input;
                sums[p][r][1] += right * input;
            }
        }
#pragma GCC unroll 16
    for (int p = 0; p < P; p++)
#pragma GCC unroll 16
        for (int r = 0; r < R; r++) out[p][r][0] = sums[p][r][0], out[p][r][1] = sums[p][r][1];
}

// The same in bf16, where panels (depth / 2, COLUMNS, 2) hold two steps of the depth side by side.
template <int R, int P>
__attribute__((noinline)) void products(const bf16* panels, int64_t apart, const bf16* x, int64_t stride, int64_t depth,
                     v16 (&out)[P][R][2]) {
#ifdef __AVX512BF16__
    v16 sums[P][R][2] = {};
    for (int64_t k = 0; k < depth; k += 2)
#pragma GCC unroll 16
        for (int p = 0; p < P; p++) {
            const bf16* w = panels + p * apart + k * COLUMNS;
            const __m512bh left = (__m512bh)_mm512_loadu_si512(w), right = (__m512bh)_mm512_loadu_si512(w + COLUMNS);
#pragma GCC unroll 16
            for (int r = 0; r < R; r++) {
                int32_t pair;
                std::memcpy(&pair, x + r * stride + k, 4);
                const __m512bh input = (__m512bh)_mm512_set1_epi32(pair);
                sums[p][r][0] = (v16)_mm512_dpbf16_ps((__m512)sums[p][r][0], input, left);
                sums[p][r][1] = (v16)_mm512_dpbf16_ps((__m512)sums[p][r][1], input, right);
            }
        }
#pragma GCC unroll 16
    for (int p = 0; p < P; p++)
#pragma GCC unroll 16
        for (int r = 0; r < R; r++) out[p][r][0] = sums[p][r][0], out[p][r][1] = sums[p][r][1];
#endif
}

}  // namespace
