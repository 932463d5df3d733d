// What a GPT does between its matrix products, for CPUs: see kernels.py. T is float or bf16; sums are taken in float.
// Work is split by rows into parts that do not depend on the number of threads, so neither does any bit of a result.

#include <algorithm>
#include <vector>

#include "numbers.h"

namespace {

const int64_t PARTS = 16;  // of the rows, where sums run over rows

// GPT-2's GELU x s(2u), with s the logistic function and u = sqrt(2 / pi) (x + 0.044715 x^3), and its slope.
template <class T>
void gelu(const T* x, T* y, T* slope, int64_t n) {
    const float twice = 1.5957691216f, cubic = 0.044715f;
    const int64_t block = 4096;
#pragma omp parallel for schedule(static)
    for (int64_t first = 0; first < n; first += block) {
        const int64_t length = std::min(block, n - first);
        const T* from = x + first;
        T *to = y + first, *d = slope + first;
#pragma omp simd
        for (int64_t i = 0; i < length; i++) {
            const float v = load(from[i]), square = cubic * v * v;
            const float s = 1.0f / (1.0f + exponential(-twice * v * (1.0f + square)));
            store(to[i], v * s);
            store(d[i], s + v * s * (1.0f - s) * twice * (1.0f + 3.0f * square));
        }
    }
}

// sum = x + delta (delta null: sum is x and not written); y = LayerNorm(sum) weight + bias.
template <class T>
void add_norm(const float* x, const T* delta, const float* weight, const float* bias, float* sum, T* y, float* mean,
              float* scale, int64_t rows, int64_t width) {
#pragma omp parallel for schedule(static)
    for (int64_t r = 0; r < rows; r++) {
        const float* v = x + r * width;
        if (delta) {
            float* to = sum + r * width;
            const T* d = delta + r * width;
#pragma omp simd
            for (int64_t c = 0; c < width; c++) to[c] = v[c] + load(d[c]);
            v = to;
        }
        float total = 0, squares = 0;
#pragma omp simd reduction(+ : total)
        for (int64_t c = 0; c < width; c++) total += v[c];
        const float m = total / width;
#pragma omp simd reduction(+ : squares)
        for (int64_t c = 0; c < width; c++) squares += (v[c] - m) * (v[c] - m);
        const float s = 1.0f / std::sqrt(squares / width + 1e-5f);
        T* out = y + r * width;
#pragma omp simd
        for (int64_t c = 0; c < width; c++) store(out[c], (v[c] - m) * s * weight[c] + bias[c]);
        mean[r] = m;
        scale[r] = s;
    }
}

// From dy and the gradient dsum that reaches the sum by other ways (may be null): dx = d(x) = d(delta), the latter in T
// (may be null). parts (PARTS, 2, width) takes the gradients of weight and bias, part by part of the rows.
template <class T>
void add_norm_backward(const T* dy, const float* dsum, const float* sum, const float* mean, const float* scale,
                       const float* weight, float* dx, T* ddelta, float* parts, int64_t rows, int64_t width) {
#pragma omp parallel for schedule(static)
    for (int64_t part = 0; part < PARTS; part++) {
        float *dweight = parts + part * 2 * width, *dbias = dweight + width;
        std::fill(dweight, dweight + 2 * width, 0.0f);
        for (int64_t r = rows * part / PARTS; r < rows * (part + 1) / PARTS; r++) {
            const float *v = sum + r * width, *other = dsum ? dsum + r * width : nullptr, m = mean[r], s = scale[r];
            const T* g = dy + r * width;
            float along = 0, total = 0;
#pragma omp simd reduction(+ : along, total)
            for (int64_t c = 0; c < width; c++) {
                const float normal = (v[c] - m) * s, d = load(g[c]);
                dweight[c] += d * normal;
                dbias[c] += d;
                along += d * weight[c] * normal;
                total += d * weight[c];
            }
            along /= width;
            total /= width;
            float* to = dx + r * width;
#pragma omp simd
            for (int64_t c = 0; c < width; c++)
                to[c] = s * (load(g[c]) * weight[c] - total - (v[c] - m) * s * along);
            if (other) {
#pragma omp simd
                for (int64_t c = 0; c < width; c++) to[c] += other[c];
            }
            if (ddelta) {
                T* d = ddelta + r * width;
#pragma omp simd
                for (int64_t c = 0; c < width; c++) store(d[c], to[c]);
            }
        }
    }
}

// loss[r] = log sum exp(logits[r]) - logits[r, target]; with `learn`, logits become d loss / d logits in place. Rows lie
// `stride` apart, and what is past `width` becomes 0.
template <class T>
void cross_entropy(T* logits, const int64_t* targets, float* loss, int64_t rows, int64_t width, int64_t stride, bool learn) {
#pragma omp parallel
    {
        std::vector<float> e(width);
#pragma omp for schedule(static)
        for (int64_t r = 0; r < rows; r++) {
            T* l = logits + r * stride;
            float highest = -INFINITY, total = 0;
#pragma omp simd reduction(max : highest)
            for (int64_t c = 0; c < width; c++) {
                const float v = load(l[c]);
                highest = v > highest ? v : highest;
            }
            float* to = e.data();
#pragma omp simd reduction(+ : total)
            for (int64_t c = 0; c < width; c++) {
                to[c] = exponential(load(l[c]) - highest);
                total += to[c];
            }
            const int64_t target = targets[r];
            loss[r] = std::log(total) + highest - load(l[target]);
            if (learn) {
                const float share = 1.0f / total;
                to[target] -= total;
#pragma omp simd
                for (int64_t c = 0; c < width; c++) store(l[c], to[c] * share);
                std::memset(static_cast<void*>(l + width), 0, sizeof(T) * (stride - width));
            }
        }
    }
}

}  // namespace

#define KERNELS(T, name)                                                                                              \
    extern "C" void gelu_##name(const T* x, T* y, T* slope, int64_t n) { gelu(x, y, slope, n); }                      \
    extern "C" void add_norm_##name(const float* x, const T* delta, const float* weight, const float* bias,           \
                                    float* sum, T* y, float* mean, float* scale, int64_t rows, int64_t width) {       \
        add_norm(x, delta, weight, bias, sum, y, mean, scale, rows, width);                                           \
    }                                                                                                                 \
    extern "C" void add_norm_backward_##name(const T* dy, const float* dsum, const float* sum, const float* mean,     \
                                             const float* scale, const float* weight, float* dx, T* ddelta,           \
                                             float* parts, int64_t rows, int64_t width) {                             \
        add_norm_backward(dy, dsum, sum, mean, scale, weight, dx, ddelta, parts, rows, width);                        \
    }                                                                                                                 \
    extern "C" void cross_entropy_##name(T* logits, const int64_t* targets, float* loss, int64_t rows, int64_t width, \
                                         int64_t stride, bool learn) {                                                \
        cross_entropy(logits, targets, loss, rows, width, stride, learn);                                             \
    }

KERNELS(float, fp32)
KERNELS(bf16, bf16)
