// A step of decoding, the whole network in one call, and the choice of a token: see decode.py and sampling.py. T, float
// or bf16, is the format of the blocks' products and of the cache; sums, the residual stream, LayerNorm and the logits
// are float.
//
// What a row gets never depends on its neighbours, on their number, or on the number of threads: its sums run over the
// same terms in the same order. So a text is the same to the last bit, alone or among others.

#include <omp.h>

#include <algorithm>
#include <vector>

#include "tiles.h"

namespace {

inline float total_of(v16 v) {
    typedef float v8 __attribute__((vector_size(32)));
    typedef float v4 __attribute__((vector_size(16)));
    const v8 eight = __builtin_shufflevector(v, v, 0, 1, 2, 3, 4, 5, 6, 7) +
                     __builtin_shufflevector(v, v, 8, 9, 10, 11, 12, 13, 14, 15);
    const v4 four = __builtin_shufflevector(eight, eight, 0, 1, 2, 3) + __builtin_shufflevector(eight, eight, 4, 5, 6, 7);
    return (four[0] + four[2]) + (four[1] + four[3]);
}

// y (rows, outputs) = x (rows, depth) W^T + bias; `outputs` is whole panels, bias may be null.
template <class T>
struct Linear {
    const T* panels;
    const float* bias;
    int64_t depth, outputs;
};

// GPT-2's GELU is x s(2u) with s the logistic function and u = sqrt(2 / pi) (x + 0.044715 x^3).
inline float gelu_of(float v) {
    return v / (1.0f + exponential(-1.5957691216f * v * (1.0f + 0.044715f * v * v)));
}

// What becomes of a sum: kept, added to the residual stream, or sent through GELU.
struct Keep {
    float* y;
    void operator()(int64_t at, float value) const { y[at] = value; }
};
struct Add {
    float* x;
    void operator()(int64_t at, float value) const { x[at] += value; }
};
template <class T>
struct Gelu {
    T* y;
    void operator()(int64_t at, float value) const { store(y[at], gelu_of(value)); }
};

// P panels from `panel` on, for at most R rows from `row` on.
template <int R, int P, class T, class Then>
void tile(const Linear<T>& linear, const T* x, int64_t row, int64_t rows, int64_t panel, const Then& then) {
    if constexpr (R > 1)
        if (rows < R) return tile<R - 1, P>(linear, x, row, rows, panel, then);
    v16 sums[P][R][2];
    const int64_t depth = linear.depth, apart = depth * COLUMNS;
    products<R, P>(linear.panels + panel * apart, apart, x + row * depth, depth, depth, sums);
    for (int p = 0; p < P; p++)
        for (int r = 0; r < R; r++) {
            const int64_t column = (panel + p) * COLUMNS, at = (row + r) * linear.outputs + column;
            float y[COLUMNS];
            std::memcpy(y, sums[p][r], sizeof y);
#pragma omp simd
            for (int64_t c = 0; c < COLUMNS; c++) then(at + c, y[c] + (linear.bias ? linear.bias[column + c] : 0.0f));
        }
}

// This thread's share of a product: some of the panels, for all rows.
template <class T, class Then>
void multiply(const Linear<T>& linear, const T* x, int64_t rows, const Then& then) {
    const int64_t panels = linear.outputs / COLUMNS, thread = omp_get_thread_num(), threads = omp_get_num_threads();
    int64_t panel = panels * thread / threads;
    const int64_t last = panels * (thread + 1) / threads, blocks = (rows + ROWS - 1) / ROWS;
    if (rows <= 2)  // several panels at once, or each sum would wait for its last term
        for (; panel + 4 <= last; panel += 4) tile<2, 4>(linear, x, 0, rows, panel, then);
    for (; panel < last; panel++)
        for (int64_t b = 0; b < blocks; b++)
            tile<ROWS, 1>(linear, x, rows * b / blocks, rows * (b + 1) / blocks - rows * b / blocks, panel, then);
}

template <class To>
void norm(const float* x, const float* weight, const float* bias, To* y, int64_t width) {
    float total = 0, squares = 0;
#pragma omp simd reduction(+ : total)
    for (int64_t c = 0; c < width; c++) total += x[c];
    const float mean = total / width;
#pragma omp simd reduction(+ : squares)
    for (int64_t c = 0; c < width; c++) squares += (x[c] - mean) * (x[c] - mean);
    const float scale = 1.0f / std::sqrt(squares / width + 1e-5f);
#pragma omp simd
    for (int64_t c = 0; c < width; c++) store(y[c], (x[c] - mean) * scale * weight[c] + bias[c]);
}

// One head of one row, VECTORS x 16 wide: q, k, v of the newest token, which joins keys and values (length, width) at
// `at`; e is room for at + 1 numbers. VECTORS = 0 leaves the width, at most 256, to `vectors`.
template <int VECTORS, class T>
void attend(const float* q, const float* k, const float* v, T* keys, T* values, int64_t at, int64_t vectors, float* e,
            T* y, const T* next) {
    if (VECTORS) vectors = VECTORS;
    const int64_t width = 16 * vectors;
    for (int64_t c = 0; c < width; c++) {
        store(keys[at * width + c], k[c]);
        store(values[at * width + c], v[c]);
    }
    const float factor = 1.0f / std::sqrt(float(width));
    v16 query[VECTORS ? VECTORS : 16], sums[VECTORS ? VECTORS : 16];
    for (int64_t i = 0; i < vectors; i++) query[i] = vector(q + 16 * i) * factor, sums[i] = v16{};
    for (int64_t j = 0; j <= at; j++) {  // keys and values lie in no near cache: each is asked for one loop ahead
        v16 along = {};
        for (int64_t i = 0; i < vectors; i++) {
            __builtin_prefetch(values + j * width + 16 * i);
            along += query[i] * vector(keys + j * width + 16 * i);
        }
        e[j] = total_of(along);
    }
    float highest = -INFINITY, total = 0;
#pragma omp simd reduction(max : highest)
    for (int64_t j = 0; j <= at; j++) highest = e[j] > highest ? e[j] : highest;
#pragma omp simd reduction(+ : total)
    for (int64_t j = 0; j <= at; j++) {
        e[j] = exponential(e[j] - highest);
        total += e[j];
    }
    for (int64_t j = 0; j <= at; j++) {
        for (int64_t i = 0; i < vectors; i++) {
            __builtin_prefetch(next + j * width + 16 * i);
            sums[i] += vector(values + j * width + 16 * i) * e[j];
        }
    }
    for (int64_t c = 0; c < width; c++) store(y[c], sums[c / 16][c % 16] / total);
}

template <class T>
struct Layer {  // as decode.py lists the addresses
    const float *norm_1, *norm_1_bias;
    const T* attention;
    const float* attention_bias;
    const T* projection;
    const float *projection_bias, *norm_2, *norm_2_bias;
    const T* up;
    const float* up_bias;
    const T* down;
    const float* down_bias;
};

template <class T>
struct Network {  // the same
    int64_t layers, width, heads, words, length, rows;  // words: whole panels; length, rows: of the cache
    const float *tokens, *positions, *norm, *norm_bias, *head;
    T* cache;                    // (layers, 2, rows, heads, length, width / heads)
    float *x, *qkv, *normed;     // room for (rows, width), (rows, 3 width), (rows, width)
    T *input, *answer, *hidden;  // room for (rows, width), (rows, width), (rows, 4 width)
};

// One token for each of n rows, at places `at`: logits (n, words).
template <class T>
void decode(const Network<T>& net, const Layer<T>* layers, const int64_t* tokens, const int64_t* at, float* logits,
            int64_t n, int64_t threads) {
    const int64_t width = net.width, heads = net.heads, wide = width / heads;
#pragma omp parallel num_threads(threads)
    {
        std::vector<float> scores(net.length);
#pragma omp for schedule(static)
        for (int64_t r = 0; r < n; r++) {
            const float *token = net.tokens + tokens[r] * width, *place = net.positions + at[r] * width;
            for (int64_t c = 0; c < width; c++) net.x[r * width + c] = token[c] + place[c];
            norm(net.x + r * width, layers->norm_1, layers->norm_1_bias, net.input + r * width, width);
        }
        for (int64_t l = 0; l < net.layers; l++) {
            const Layer<T>& layer = layers[l];
            multiply(Linear<T>{layer.attention, layer.attention_bias, width, 3 * width}, net.input, n, Keep{net.qkv});
#pragma omp barrier
            const int64_t line = net.length * wide, kind = net.rows * heads * line;
            T *keys = net.cache + 2 * l * kind, *values = keys + kind;
#pragma omp for collapse(2) schedule(static)
            for (int64_t r = 0; r < n; r++)
                for (int64_t h = 0; h < heads; h++) {
                    const float* q = net.qkv + r * 3 * width + h * wide;
                    T *ks = keys + (r * heads + h) * line, *vs = values + (r * heads + h) * line;
                    T* y = net.answer + r * width + h * wide;
                    const auto head = wide == 64 ? attend<4, T> : wide == 32 ? attend<2, T> : attend<0, T>;
                    head(q, q + width, q + 2 * width, ks, vs, at[r], wide / 16, scores.data(), y, ks + line);
                }
            multiply(Linear<T>{layer.projection, layer.projection_bias, width, width}, net.answer, n, Add{net.x});
#pragma omp barrier
#pragma omp for schedule(static)
            for (int64_t r = 0; r < n; r++)
                norm(net.x + r * width, layer.norm_2, layer.norm_2_bias, net.input + r * width, width);
            multiply(Linear<T>{layer.up, layer.up_bias, width, 4 * width}, net.input, n, Gelu<T>{net.hidden});
#pragma omp barrier
            multiply(Linear<T>{layer.down, layer.down_bias, 4 * width, width}, net.hidden, n, Add{net.x});
#pragma omp barrier
#pragma omp for schedule(static)
            for (int64_t r = 0; r < n; r++) {
                const float* x = net.x + r * width;
                if (l + 1 < net.layers)
                    norm(x, layers[l + 1].norm_1, layers[l + 1].norm_1_bias, net.input + r * width, width);
                else
                    norm(x, net.norm, net.norm_bias, net.normed + r * width, width);
            }
        }
        multiply(Linear<float>{net.head, nullptr, width, net.words}, net.normed, n, Keep{logits});
    }
}

const int64_t CHUNK = 64;  // as sampling.py's draw

// Tokens and their log-probabilities (n,) from logits (n, words) that lie `stride` apart: sampling.py's choose without
// filters.
void choose(const float* logits, int64_t stride, int64_t words, const double* uniforms, const float* temperatures,
            int64_t* tokens, float* logprobs, int64_t n, int64_t threads) {
#pragma omp parallel num_threads(threads)
    {
        const int64_t chunks = (words + CHUNK - 1) / CHUNK;
        std::vector<float> shares(chunks * CHUNK, 0.0f), masses(chunks);
#pragma omp for schedule(static)
        for (int64_t r = 0; r < n; r++) {
            const float *l = logits + r * stride, t = temperatures[r] > 0 ? temperatures[r] : 1.0f;
            float *e = shares.data(), highest = -INFINITY;
#pragma omp simd reduction(max : highest)
            for (int64_t c = 0; c < words; c++) highest = l[c] > highest ? l[c] : highest;
#pragma omp simd
            for (int64_t c = 0; c < words; c++) {
                const float x = (l[c] - highest) / t;
                e[c] = x < -87.0f ? 0.0f : exponential(x);  // below, exponential is not 0
            }
            double total = 0;
            for (int64_t k = 0; k < chunks; k++) {
                float mass = 0;
#pragma omp simd reduction(+ : mass)
                for (int64_t c = 0; c < CHUNK; c++) mass += e[k * CHUNK + c];
                masses[k] = mass;
                total += mass;
            }
            int64_t token;
            if (temperatures[r] > 0) {
                const double target = std::min(uniforms[r] * total, total * (1 - 1e-12));
                double before = 0, upto = masses[0];
                int64_t k = 0;
                while (k + 1 < chunks && upto <= target) before = upto, upto += masses[++k];
                double whole = 0, inner = 0;
                for (int64_t c = 0; c < CHUNK; c++) whole += e[k * CHUNK + c];
                const double rest = std::min(target - before, whole * (1 - 1e-12));
                token = k * CHUNK - 1;
                do inner += e[++token];
                while (inner <= rest);
            } else {
                token = std::max_element(l, l + words) - l;
            }
            tokens[r] = token;
            logprobs[r] = float((l[token] - highest) / t - std::log(total));
        }
    }
}

}  // namespace

extern "C" {
#ifdef __AVX512BF16__
extern const bool has_bf16 = true;
#else
extern const bool has_bf16 = false;
#endif
void decode_fp32(const Network<float>* net, const Layer<float>* layers, const int64_t* tokens, const int64_t* at,
                 float* logits, int64_t n, int64_t threads) {
    decode(*net, layers, tokens, at, logits, n, threads);
}
void decode_bf16(const Network<bf16>* net, const Layer<bf16>* layers, const int64_t* tokens, const int64_t* at,
                 float* logits, int64_t n, int64_t threads) {
    decode(*net, layers, tokens, at, logits, n, threads);
}
void choose_fp32(const float* logits, int64_t stride, int64_t words, const double* uniforms, const float* temperatures,
                 int64_t* tokens, float* logprobs, int64_t n, int64_t threads) {
    choose(logits, stride, words, uniforms, temperatures, tokens, logprobs, n, threads);
}
}
