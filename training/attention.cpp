// Causal self-attention and its gradient in bf16, a head at a time, without ever holding T x T numbers for more than
// one head per thread (Dao et al. 2022's recomputation, for caches instead of SRAM): see fused.py.
//
// Of the products only those of tiles in which some token sees another are taken: half of them in plain texts, far
// fewer where several documents share a row. Sums, softmax and the gradients' differences are float.

#include <algorithm>
#include <vector>

#include "tiles.h"

namespace {

const int64_t WHOLE = 96;  // tokens come in tiles of 12 and panels of 32

inline int64_t up(int64_t n, int64_t unit) { return (n + unit - 1) / unit * unit; }

inline uint32_t pair(bf16 first, bf16 second) { return uint32_t(first.bits) | uint32_t(second.bits) << 16; }

inline void write(const v16 (&sums)[2], bf16* to, int64_t channels) {
    float row[COLUMNS];
    std::memcpy(row, sums, sizeof row);
    if (channels == COLUMNS) {
#pragma omp simd
        for (int64_t c = 0; c < COLUMNS; c++) store(to[c], row[c]);
    } else {
        for (int64_t c = 0; c < channels; c++) store(to[c], row[c]);
    }
}

// One head's q, k, v or dy: T tokens of `wide` channels, zeros beyond what there is.
struct Side {
    int64_t time, wide;        // whole tiles and panels
    std::vector<bf16> rows;    // (time, wide)
    std::vector<bf16> across;  // panels of tokens, (time / 32, wide / 2, 32, 2), for products over channels
    std::vector<bf16> along;   // panels of channels, (wide / 32, time / 2, 32, 2), for products over tokens

    Side(int64_t time, int64_t wide)
        : time(time), wide(wide), rows(time * wide), across(time * wide), along(time * wide) {}

    void read(const bf16* from, int64_t stride, int64_t tokens, int64_t width) {
        for (int64_t t = 0; t < tokens; t++)
            for (int64_t c = 0; c < width; c++) rows[t * wide + c] = from[t * stride + c];
    }
    void read_across() {
        const auto from = reinterpret_cast<const uint32_t*>(rows.data());
        const auto to = reinterpret_cast<uint32_t*>(across.data());
        const int64_t half = wide / 2;
        for (int64_t panel = 0; panel < time / COLUMNS; panel++)
            for (int64_t t = 0; t < COLUMNS; t++)
                for (int64_t c = 0; c < half; c++)
                    to[(panel * half + c) * COLUMNS + t] = from[(panel * COLUMNS + t) * half + c];
    }
    void read_along() {
        const auto to = reinterpret_cast<uint32_t*>(along.data());
        for (int64_t panel = 0; panel < wide / COLUMNS; panel++)
            for (int64_t t = 0; t < time; t += 2) {
                const bf16 *first = &rows[t * wide + panel * COLUMNS], *second = first + wide;
                uint32_t* pairs = to + (panel * time + t) / 2 * COLUMNS;
#pragma omp simd
                for (int64_t c = 0; c < COLUMNS; c++) pairs[c] = pair(first[c], second[c]);
            }
    }
    const bf16* tokens(int64_t panel) const { return &across[panel * wide * COLUMNS]; }
    // The panel of channels from `first` tokens on.
    const bf16* channels(int64_t panel, int64_t first) const { return &along[(panel * time + first) * COLUMNS]; }
};

// Which tokens look at which: at those of their own number that stand before them, and at themselves.
struct Sight {
    std::vector<int32_t> number;       // (time), below 0 where there is no token
    std::vector<int64_t> first, last;  // (time): the first a token looks at, and the last that looks at it
    int64_t tokens;
    bool parted = false;  // several documents: not every tile before another is seen

    Sight(int64_t time, int64_t tokens) : number(time, -1), first(time, tokens), last(time, -1), tokens(tokens) {}

    void read(const int64_t* documents) {
        parted = documents;
        for (int64_t t = 0; t < tokens; t++) number[t] = documents ? int32_t(documents[t]) : 0;
        for (int64_t t = 0; t < tokens; t++)
            first[t] = t && number[t] == number[t - 1] ? first[t - 1]
                                                      : std::find(&number[0], &number[t], number[t]) - &number[0];
        for (int64_t t = tokens - 1; t >= 0; t--) {
            last[t] = t;
            if (!documents)
                last[t] = tokens - 1;
            else if (t + 1 < tokens && number[t] == number[t + 1])
                last[t] = last[t + 1];
            else
                for (int64_t later = t + 1; later < tokens; later++)
                    if (number[later] == number[t]) last[t] = later;
        }
    }
};

// y (tokens, width) and mass (tokens), the log of the sum of exp(scores), of one head.
void attend(const Side& q, const Side& k, const Side& v, const Sight& sight, float factor, std::vector<float>& scores,
            std::vector<bf16>& weights, float* mass, bf16* y, int64_t stride, int64_t width) {
    const int64_t time = q.time, wide = q.wide;
    for (int64_t i = 0; i < sight.tokens; i += ROWS) {
        const int64_t rows = std::min(ROWS, sight.tokens - i);
        const int64_t from = *std::min_element(&sight.first[i], &sight.first[i] + rows) / COLUMNS;
        const int64_t upto = (i + rows - 1) / COLUMNS + 1, begin = from * COLUMNS, end = upto * COLUMNS;
        for (int64_t panel = from; panel < upto; panel++) {
            v16 sums[1][ROWS][2];
            products<ROWS, 1>(k.tokens(panel), 0, &q.rows[i * wide], wide, wide, sums);
            for (int64_t r = 0; r < ROWS; r++)
                std::memcpy(&scores[r * time + panel * COLUMNS], sums[0][r], sizeof sums[0][r]);
        }
        for (int64_t r = 0; r < rows; r++) {
            const int32_t *number = &sight.number[begin], own = sight.number[i + r];
            const int32_t seen = i + r - begin, length = end - begin;
            float *s = &scores[r * time + begin], highest = -INFINITY, total = 0;
#pragma omp simd reduction(max : highest)
            for (int32_t j = 0; j < length; j++) {
                s[j] = (j <= seen) & (number[j] == own) ? s[j] * factor : -INFINITY;
                highest = s[j] > highest ? s[j] : highest;
            }
#pragma omp simd reduction(+ : total)
            for (int32_t j = 0; j < length; j++) {
                s[j] = s[j] == -INFINITY ? 0.0f : exponential(s[j] - highest);
                total += s[j];
            }
            mass[i + r] = highest + std::log(total);
            const float share = 1.0f / total;
            bf16* w = &weights[r * time + begin];
#pragma omp simd
            for (int32_t j = 0; j < length; j++) store(w[j], s[j] * share);
        }
        for (int64_t panel = 0; panel < wide / COLUMNS; panel++) {
            v16 sums[1][ROWS][2];
            products<ROWS, 1>(v.channels(panel, begin), 0, &weights[begin], time, end - begin, sums);
            const int64_t channels = std::min(COLUMNS, width - panel * COLUMNS);
            for (int64_t r = 0; r < rows; r++) write(sums[0][r], y + (i + r) * stride + panel * COLUMNS, channels);
        }
    }
}

// Room for one head's gradient.
struct Slopes {
    std::vector<bf16> weights, slopes;  // (12, time) of a tile of keys: d(values), d(keys) are products with these
    std::vector<bf16> pairs;            // slopes of all scores in panels of queries, (time / 32, time / 2, 32, 2)
    std::vector<bf16> keys;             // k (wide, time)
    std::vector<int64_t> from, upto;    // keys that panel of queries saw

    Slopes(int64_t time, int64_t wide)
        : weights(ROWS * time), slopes(ROWS * time), pairs(time * time), keys(wide * time), from(time / COLUMNS),
          upto(time / COLUMNS) {}
};

// dq, dk, dv (tokens, width) of one head, `stride` apart; along (tokens) = sum of dy y.
void attend_backward(const Side& q, const Side& k, const Side& v, const Side& dy, const Sight& sight, float factor,
                     const float* mass, const float* along, Slopes& room, bf16* dq, bf16* dk, bf16* dv, int64_t stride,
                     int64_t width) {
    const int64_t time = q.time, wide = q.wide, panels = up(sight.tokens, COLUMNS) / COLUMNS;
    std::fill(room.from.begin(), room.from.end(), time);
    std::fill(room.upto.begin(), room.upto.end(), 0);
    if (sight.parted) std::memset(static_cast<void*>(room.pairs.data()), 0, room.pairs.size() * sizeof(bf16));
    for (int64_t j = 0; j < sight.tokens; j += ROWS) {
        const int64_t rows = std::min(ROWS, sight.tokens - j), from = j / COLUMNS;
        const int64_t upto = *std::max_element(&sight.last[j], &sight.last[j] + rows) / COLUMNS + 1;
        const int64_t begin = from * COLUMNS, end = upto * COLUMNS;
        for (int64_t panel = from; panel < upto; panel++) {
            v16 scores[1][ROWS][2], gains[1][ROWS][2];
            products<ROWS, 1>(q.tokens(panel), 0, &k.rows[j * wide], wide, wide, scores);
            products<ROWS, 1>(dy.tokens(panel), 0, &v.rows[j * wide], wide, wide, gains);
            float s[ROWS][COLUMNS], g[ROWS][COLUMNS];
            std::memcpy(s, scores, sizeof s);
            std::memcpy(g, gains, sizeof g);
            const int64_t first = panel * COLUMNS;
            const int32_t* number = &sight.number[first];
            const float *m = mass + first, *a = along + first;
            for (int64_t r = 0; r < ROWS; r++) {
                const int32_t own = r < rows ? sight.number[j + r] : -2, place = j + r - first;
                bf16 *w = &room.weights[r * time + first], *d = &room.slopes[r * time + first];
#pragma omp simd
                for (int32_t c = 0; c < int32_t(COLUMNS); c++) {
                    const float sees = (place <= c) & (number[c] == own) ? 1.0f : 0.0f;
                    const float weight = sees * exponential(s[r][c] * factor - m[c]);
                    store(w[c], weight);
                    store(d[c], weight * (g[r][c] - a[c]) * factor);
                }
            }
            const auto to = reinterpret_cast<uint32_t*>(&room.pairs[(panel * time + j) * COLUMNS]);
            for (int64_t r = 0; r < ROWS; r += 2) {
                const bf16 *one = &room.slopes[r * time + first], *two = one + time;
#pragma omp simd
                for (int64_t c = 0; c < COLUMNS; c++) to[r / 2 * COLUMNS + c] = pair(one[c], two[c]);
            }
            room.from[panel] = std::min(room.from[panel], j);
            room.upto[panel] = j + ROWS;
        }
        for (int64_t panel = 0; panel < wide / COLUMNS; panel++) {
            v16 of_keys[1][ROWS][2], of_values[1][ROWS][2];
            products<ROWS, 1>(q.channels(panel, begin), 0, &room.slopes[begin], time, end - begin, of_keys);
            products<ROWS, 1>(dy.channels(panel, begin), 0, &room.weights[begin], time, end - begin, of_values);
            const int64_t channels = std::min(COLUMNS, width - panel * COLUMNS);
            for (int64_t r = 0; r < rows; r++) {
                const int64_t at = (j + r) * stride + panel * COLUMNS;
                write(of_keys[0][r], dk + at, channels);
                write(of_values[0][r], dv + at, channels);
            }
        }
    }
    for (int64_t c = 0; c < wide; c++)
        for (int64_t t = 0; t < time; t++) room.keys[c * time + t] = k.rows[t * wide + c];
    const int EIGHT = 8;
    for (int64_t panel = 0; panel < panels; panel++) {
        const int64_t from = room.from[panel], depth = room.upto[panel] - from;
        const int64_t queries = std::min(COLUMNS, sight.tokens - panel * COLUMNS);
        for (int64_t c = 0; c < width; c += EIGHT) {
            v16 sums[1][EIGHT][2];
            products<EIGHT, 1>(&room.pairs[(panel * time + from) * COLUMNS], 0, &room.keys[c * time + from], time, depth,
                               sums);
            const int64_t channels = std::min<int64_t>(EIGHT, width - c);
            float turned[EIGHT][COLUMNS];
            std::memcpy(turned, sums, sizeof turned);
            for (int64_t i = 0; i < queries; i++)
                for (int64_t r = 0; r < channels; r++)
                    store(dq[(panel * COLUMNS + i) * stride + c + r], turned[r][i]);
        }
    }
}

}  // namespace

// q, k, v, y (rows, tokens, heads, width), the first three `stride` numbers from token to token; documents (rows,
// tokens) or null; mass (rows, heads, tokens).
extern "C" void attention_bf16(const bf16* q, const bf16* k, const bf16* v, int64_t stride, const int64_t* documents,
                               bf16* y, float* mass, int64_t rows, int64_t tokens, int64_t heads, int64_t width) {
    const int64_t time = up(tokens, WHOLE), wide = up(width, COLUMNS);
#pragma omp parallel
    {
        Side queries(time, wide), keys(time, wide), values(time, wide);
        Sight sight(time, tokens);
        std::vector<float> scores(ROWS * time);
        std::vector<bf16> weights(ROWS * time);
#pragma omp for collapse(2) schedule(static)
        for (int64_t row = 0; row < rows; row++)
            for (int64_t head = 0; head < heads; head++) {
                const int64_t at = row * tokens * stride + head * width;
                queries.read(q + at, stride, tokens, width);
                keys.read(k + at, stride, tokens, width);
                values.read(v + at, stride, tokens, width);
                keys.read_across();
                values.read_along();
                sight.read(documents ? documents + row * tokens : nullptr);
                attend(queries, keys, values, sight, 1.0f / std::sqrt(float(width)), scores, weights,
                       mass + (row * heads + head) * tokens, y + (row * tokens * heads + head) * width, heads * width,
                       width);
            }
    }
}

// From dy, laid like y, its gradients: dq, dk, dv lie `dstride` numbers from token to token.
extern "C" void attention_backward_bf16(const bf16* q, const bf16* k, const bf16* v, int64_t stride,
                                        const int64_t* documents, const bf16* y, const float* mass, const bf16* dy,
                                        bf16* dq, bf16* dk, bf16* dv, int64_t dstride, int64_t rows, int64_t tokens,
                                        int64_t heads, int64_t width) {
    const int64_t time = up(tokens, WHOLE), wide = up(width, COLUMNS);
#pragma omp parallel
    {
        Side queries(time, wide), keys(time, wide), values(time, wide), slopes(time, wide);
        Sight sight(time, tokens);
        Slopes room(time, wide);
        std::vector<float> along(time), masses(time);
#pragma omp for collapse(2) schedule(static)
        for (int64_t row = 0; row < rows; row++)
            for (int64_t head = 0; head < heads; head++) {
                const int64_t at = row * tokens * stride + head * width, to = row * tokens * dstride + head * width;
                const int64_t out = (row * tokens * heads + head) * width;
                queries.read(q + at, stride, tokens, width);
                keys.read(k + at, stride, tokens, width);
                values.read(v + at, stride, tokens, width);
                slopes.read(dy + out, heads * width, tokens, width);
                queries.read_across();
                queries.read_along();
                slopes.read_across();
                slopes.read_along();
                sight.read(documents ? documents + row * tokens : nullptr);
                std::copy_n(mass + (row * heads + head) * tokens, tokens, masses.begin());
                for (int64_t t = 0; t < tokens; t++) {
                    const bf16 *a = y + out + t * heads * width, *b = dy + out + t * heads * width;
                    float sum = 0;
#pragma omp simd reduction(+ : sum)
                    for (int64_t c = 0; c < width; c++) sum += load(a[c]) * load(b[c]);
                    along[t] = sum;
                }
                attend_backward(queries, keys, values, slopes, sight, 1.0f / std::sqrt(float(width)), masses.data(),
                                along.data(), room, dq + to, dk + to, dv + to, dstride, width);
            }
    }
}
