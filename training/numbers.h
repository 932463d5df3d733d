// Numbers and functions that all kernels share.

#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

namespace {

struct bf16 {
    uint16_t bits;
};

inline float bits_to_float(uint32_t bits) {
    float value;
    std::memcpy(&value, &bits, 4);
    return value;
}

inline float load(float value) { return value; }
inline float load(bf16 value) { return bits_to_float(uint32_t(value.bits) << 16); }
inline void store(float& to, float value) { to = value; }
inline void store(bf16& to, float value) {  // to the nearest, ties to even
    uint32_t bits;
    std::memcpy(&bits, &value, 4);
    to.bits = uint16_t((bits + 0x7fff + ((bits >> 16) & 1)) >> 16);
}

// e^x to 2 units in the last place: 2^n e^r with r in [-ln 2 / 2, ln 2 / 2] and Cephes' polynomial for e^r. A NaN stays
// one. Adding 1.5 x 2^23 rounds to an integer, which then stands in the low bits.
inline float exponential(float x) {
    x = -87.0f > x ? -87.0f : x;
    x = 88.0f < x ? 88.0f : x;
    const float shifted = x * 1.44269504f + 12582912.0f, n = shifted - 12582912.0f;
    const float r = (x - n * 0.693359375f) + n * 2.12194440e-4f;
    float p = 1.9875691500e-4f;
    p = p * r + 1.3981999507e-3f;
    p = p * r + 8.3334519073e-3f;
    p = p * r + 4.1665795894e-2f;
    p = p * r + 1.6666665459e-1f;
    p = p * r + 5.0000001201e-1f;
    uint32_t bits;
    std::memcpy(&bits, &shifted, 4);
    return (p * r * r + r + 1.0f) * bits_to_float((bits - 0x4b400000u + 127u) << 23);
}

}  // namespace
