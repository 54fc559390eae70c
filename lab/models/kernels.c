/* RMSNorm, SwiGLU and causal attention within documents on a CPU: forward and backward passes.

   These loops save memory traffic: a value is read, used and written once, and attention computes only pairs of
   positions of one document, up to the diagonal. The formulas are those of lab/models/decoder.py. This file includes
   itself, once for float and once for double (`REAL`).

   Arrays are row-major:
     x       [B, T, 3D]  queries, keys and values side by side; each of them holds all heads side by side
     turn    [T, K]      K/2 cosines, then K/2 sines, one for each pair of channels; K = D / H is the width of a head
     starts  [B, T]      first position of the document that a position belongs to; documents lie one after another
     logs    [B, H, T]   logarithm of the softmax's denominator
*/
#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#define CAT(a, b) a##_##b
#define NAME(a, b) CAT(a, b)
#define FN(name) NAME(name, REAL)
#define LANES (int)(sizeof(VECTOR) / sizeof(REAL))

#ifndef REAL
#ifdef __AVX512F__
#define BYTES 64
#else
#define BYTES 32
#endif
typedef float float_v __attribute__((vector_size(BYTES), aligned(4), may_alias));
typedef double double_v __attribute__((vector_size(BYTES), aligned(8), may_alias));

/* exp to 1e-7 of its value (Cephes' polynomial on what is left beside a power of two); 0 below -87. */
static inline float exp_float(float x) {
    x = x > 88.0f ? 88.0f : (x < -87.0f ? -87.0f : x); /* not a number stays what it is */
    float n = floorf(x * 1.44269504088896341f + 0.5f);
    float r = x - n * 0.693359375f;
    r = r + n * 2.12194440e-4f;
    float p = 1.9875691500e-4f;
    p = p * r + 1.3981999507e-3f;
    p = p * r + 8.3334519073e-3f;
    p = p * r + 4.1665795894e-2f;
    p = p * r + 1.6666665459e-1f;
    p = p * r + 5.0000001201e-1f;
    p = p * r * r + r + 1.0f;
    union { int32_t i; float f; } power = {.i = ((int32_t)n + 127) << 23};
    return p * power.f;
}
static inline double exp_double(double x) { return exp(x); }

/* Writes the index, counted over all rows, of each document's first position to `firsts`, and the total behind the last
   one; returns how many documents there are, and in `longest` the positions of the longest. */
static int64_t find_documents(const int32_t *restrict starts, int64_t rows, int64_t positions, int64_t *restrict firsts,
                              int64_t *restrict longest) {
    int64_t documents = 0;
    *longest = 0;
    for (int64_t row = 0; row < rows; row++)
        for (int64_t t = 0; t < positions; t++)
            if (starts[row * positions + t] == t) firsts[documents++] = row * positions + t;
    firsts[documents] = rows * positions;
    for (int64_t i = 0; i < documents; i++)
        if (firsts[i + 1] - firsts[i] > *longest) *longest = firsts[i + 1] - firsts[i];
    return documents;
}

#define REAL float
#define VECTOR float_v
#include "kernels.c"
#undef REAL
#undef VECTOR
#define REAL double
#define VECTOR double_v
#include "kernels.c"
#else

void FN(rms_norm_forward)(const REAL *restrict x, const REAL *restrict weight, REAL *restrict out, REAL *restrict inverse,
                      int64_t rows, int64_t width, double eps) {
#pragma omp parallel for schedule(static)
    for (int64_t m = 0; m < rows; m++) {
        const REAL *row = x + m * width;
        REAL *y = out + m * width, sum = 0;
#pragma omp simd reduction(+ : sum)
        for (int64_t d = 0; d < width; d++) sum += row[d] * row[d];
        REAL i = inverse[m] = (REAL)(1 / sqrt((double)sum / width + eps));
        for (int64_t d = 0; d < width; d++) y[d] = row[d] * i * weight[d];
    }
}

/* The gradient of x is added to what `of_x` holds: the residual stream's. sums [parts, D]: the weight's gradient, of one
   share of the rows each. */
void FN(rms_norm_backward)(const REAL *restrict x, const REAL *restrict weight, const REAL *restrict inverse,
                           const REAL *restrict upstream, REAL *restrict of_x, REAL *restrict sums, int64_t rows,
                           int64_t width, int64_t parts) {
#pragma omp parallel for schedule(static)
    for (int64_t part = 0; part < parts; part++) {
        REAL *sum = sums + part * width;
        for (int64_t d = 0; d < width; d++) sum[d] = 0;
        for (int64_t m = rows * part / parts; m < rows * (part + 1) / parts; m++) {
            const REAL *row = x + m * width, *g = upstream + m * width;
            REAL *y = of_x + m * width, i = inverse[m], along = 0;
            for (int64_t d = 0; d < width; d++) along += g[d] * weight[d] * row[d];
            along *= i * i * i / width;
            for (int64_t d = 0; d < width; d++) {
                y[d] += g[d] * weight[d] * i - row[d] * along;
                sum[d] += g[d] * row[d] * i;
            }
        }
    }
}

void FN(swiglu_forward)(const REAL *restrict x, REAL *restrict out, int64_t rows, int64_t width) {
#pragma omp parallel for schedule(static)
    for (int64_t m = 0; m < rows; m++) {
        const REAL *gate = x + 2 * m * width, *value = gate + width;
        REAL *y = out + m * width;
#pragma omp simd
        for (int64_t f = 0; f < width; f++) y[f] = gate[f] / (1 + NAME(exp, REAL)(-gate[f])) * value[f];
    }
}

/* `out` is the forward pass's result once more: what follows needs it, and to keep it would take more time. */
void FN(swiglu_backward)(const REAL *restrict x, const REAL *restrict upstream, REAL *restrict of_x, REAL *restrict out,
                         int64_t rows, int64_t width) {
#pragma omp parallel for schedule(static)
    for (int64_t m = 0; m < rows; m++) {
        const REAL *gate = x + 2 * m * width, *value = gate + width, *g = upstream + m * width;
        REAL *of_gate = of_x + 2 * m * width, *of_value = of_gate + width, *y = out + m * width;
#pragma omp simd
        for (int64_t f = 0; f < width; f++) {
            REAL sigmoid = 1 / (1 + NAME(exp, REAL)(-gate[f])), silu = gate[f] * sigmoid;
            y[f] = silu * value[f];
            of_value[f] = g[f] * silu;
            of_gate[f] = g[f] * value[f] * (sigmoid + silu * (1 - sigmoid));
        }
    }
}

/* out[i, n] = sum over k in [first, last) of a(i, k) b[k, n], for four i and two vectors of n. */
static inline __attribute__((always_inline)) void FN(tile)(const REAL *a, int64_t by_i, int64_t by_k, const REAL *b,
                                                           int64_t ldb, int64_t first, int64_t last, REAL *out,
                                                           int64_t ldo) {
    VECTOR sums[4][2] = {{{0}}};
    for (int64_t k = first; k < last; k++) {
        VECTOR left = *(const VECTOR *)(b + k * ldb), right = *(const VECTOR *)(b + k * ldb + LANES);
#pragma GCC unroll 4
        for (int r = 0; r < 4; r++) {
            REAL each = a[r * by_i + k * by_k];
            sums[r][0] += each * left;
            sums[r][1] += each * right;
        }
    }
#pragma GCC unroll 4
    for (int r = 0; r < 4; r++) {
        *(VECTOR *)(out + r * ldo) = sums[r][0];
        *(VECTOR *)(out + r * ldo + LANES) = sums[r][1];
    }
}

/* [L, N] products of which only part is wanted. `kind`: 0 all of k, and columns up to the diagonal; 1 k up to the
   diagonal; 2 k from the diagonal on. Rows and columns are padded to 4 and 2 vectors. */
static inline __attribute__((always_inline)) void FN(product)(int kind, int64_t rows, int64_t columns, int64_t inner,
                                                              const REAL *a, int64_t by_i, int64_t by_k, const REAL *b,
                                                              int64_t ldb, REAL *out, int64_t ldo) {
    for (int64_t i = 0; i < rows; i += 4)
        for (int64_t n = 0; n < columns && (kind || n < i + 4); n += 2 * LANES) {
            int64_t first = kind == 2 ? i : 0, last = kind == 1 && i + 4 < inner ? i + 4 : inner;
            FN(tile)(a + i * by_i, by_i, by_k, b + n, ldb, first, last, out + i * ldo + n, ldo);
        }
}

/* A document's queries or keys, rotated to their positions: [L, K], first channels of all pairs first (products of
   queries and keys do not depend on the order). */
static void FN(rotate)(const REAL *restrict x, int64_t stride, const REAL *restrict turn, int64_t length, int64_t width,
                       REAL scale, REAL *restrict out, int64_t ldo) {
    for (int64_t t = 0; t < length; t++, x += stride, turn += width, out += ldo)
#pragma omp simd
        for (int64_t pair = 0; pair < width / 2; pair++) {
            REAL a = x[2 * pair], b = x[2 * pair + 1], cosine = turn[pair], sine = turn[width / 2 + pair];
            out[pair] = (a * cosine - b * sine) * scale;
            out[width / 2 + pair] = (a * sine + b * cosine) * scale;
        }
}

/* The gradient of `rotate`. */
static void FN(rotate_back)(const REAL *restrict g, int64_t ldg, const REAL *restrict turn, int64_t length,
                            int64_t width, REAL scale, REAL *restrict of_x, int64_t stride) {
    for (int64_t t = 0; t < length; t++, g += ldg, turn += width, of_x += stride)
#pragma omp simd
        for (int64_t pair = 0; pair < width / 2; pair++) {
            REAL a = g[pair] * scale, b = g[width / 2 + pair] * scale, cosine = turn[pair];
            REAL sine = turn[width / 2 + pair];
            of_x[2 * pair] = a * cosine + b * sine;
            of_x[2 * pair + 1] = b * cosine - a * sine;
        }
}

static void FN(transpose)(const REAL *restrict x, int64_t ldx, int64_t length, int64_t width, REAL *restrict out,
                          int64_t ldo) {
    for (int64_t c = 0; c < width; c++)
        for (int64_t t = 0; t < length; t++) out[c * ldo + t] = x[t * ldx + c];
}

static inline int64_t FN(padded)(int64_t number) { return (number + 2 * LANES - 1) / (2 * LANES) * (2 * LANES); }

int FN(attention_forward)(const REAL *restrict x, const REAL *restrict turn, const int32_t *restrict starts,
                       REAL *restrict out, REAL *restrict logs, int64_t rows, int64_t positions, int64_t heads,
                       int64_t width) {
    const int64_t wide = FN(padded)(width), stride = 3 * heads * width;
    const REAL scale = (REAL)(1 / sqrt((double)width));
    int64_t longest, *firsts = malloc((rows * positions + 1) * sizeof(int64_t));
    if (!firsts) return 1;
    const int64_t documents = find_documents(starts, rows, positions, firsts, &longest), most = FN(padded)(longest);
    int failed = 0;
#pragma omp parallel
    {
        REAL *scratch = calloc(most * (5 * wide + most), sizeof(REAL));
        if (!scratch) failed = 1;
#pragma omp for schedule(static)
        for (int64_t pair = 0; pair < documents * heads; pair++) {
            if (!scratch) continue;
            const int64_t document = pair / heads, head = pair % heads;
            const int64_t row = firsts[document] / positions, first = firsts[document] % positions;
            const int64_t length = firsts[document + 1] - firsts[document], side = FN(padded)(length);
            REAL *q = scratch, *k = q + side * wide, *kt = k + side * wide, *v = kt + side * wide;
            REAL *mixed = v + side * wide, *s = mixed + side * wide;
            const REAL *from = x + (row * positions + first) * stride + head * width;
            memset(q, 0, sizeof(REAL) * 4 * side * wide);
            FN(rotate)(from, stride, turn + first * width, length, width, scale, q, wide);
            FN(rotate)(from + heads * width, stride, turn + first * width, length, width, 1, k, wide);
            FN(transpose)(k, wide, length, width, kt, side);
            for (int64_t t = 0; t < length; t++)
                memcpy(v + t * wide, from + t * stride + 2 * heads * width, sizeof(REAL) * width);
            FN(product)(0, length, side, width, q, wide, 1, kt, side, s, side);
            REAL *logsum = logs + (row * heads + head) * positions + first;
            for (int64_t i = 0; i < length; i++) {
                REAL *line = s + i * side, sum = 0, tops[2 * LANES], top;
                const int64_t seen = FN(padded)(i + 1);
                for (int64_t j = i + 1; j < seen; j++) line[j] = -INFINITY;
                for (int64_t l = 0; l < 2 * LANES; l++) tops[l] = line[l];
                for (int64_t j = 2 * LANES; j < seen; j += 2 * LANES)
                    for (int64_t l = 0; l < 2 * LANES; l++) tops[l] = line[j + l] > tops[l] ? line[j + l] : tops[l];
                top = tops[0];
                for (int64_t l = 1; l < 2 * LANES; l++) top = tops[l] > top ? tops[l] : top;
                for (int64_t j = 0; j < seen; j++) line[j] = NAME(exp, REAL)(line[j] - top);
                for (int64_t j = i + 1; j < seen; j++) line[j] = 0;
                for (int64_t j = 0; j < seen; j++) sum += line[j];
                logsum[i] = top + (REAL)log((double)sum);
                const REAL share = 1 / sum;
                for (int64_t j = 0; j < seen; j++) line[j] *= share;
            }
            for (int64_t i = length; i < ((length + 3) & ~3); i++) memset(s + i * side, 0, sizeof(REAL) * side);
            FN(product)(1, length, wide, length, s, side, 1, v, wide, mixed, wide);
            for (int64_t t = 0; t < length; t++)
                memcpy(out + ((row * positions + first + t) * heads + head) * width, mixed + t * wide,
                       sizeof(REAL) * width);
        }
        free(scratch);
    }
    free(firsts);
    return failed;
}

int FN(attention_backward)(const REAL *restrict x, const REAL *restrict turn, const int32_t *restrict starts,
                        const REAL *restrict out, const REAL *restrict logs, const REAL *restrict upstream,
                        REAL *restrict of_x, int64_t rows, int64_t positions, int64_t heads, int64_t width) {
    const int64_t wide = FN(padded)(width), stride = 3 * heads * width;
    const REAL scale = (REAL)(1 / sqrt((double)width));
    int64_t longest, *firsts = malloc((rows * positions + 1) * sizeof(int64_t));
    if (!firsts) return 1;
    const int64_t documents = find_documents(starts, rows, positions, firsts, &longest), most = FN(padded)(longest);
    int failed = 0;
#pragma omp parallel
    {
        REAL *scratch = calloc(most * (7 * wide + 2 * most), sizeof(REAL));
        if (!scratch) failed = 1;
#pragma omp for schedule(static)
        for (int64_t pair = 0; pair < documents * heads; pair++) {
            if (!scratch) continue;
            const int64_t document = pair / heads, head = pair % heads;
            const int64_t row = firsts[document] / positions, first = firsts[document] % positions;
            const int64_t length = firsts[document + 1] - firsts[document], side = FN(padded)(length), area = side * wide;
            REAL *q = scratch, *k = q + area, *kt = k + area, *vt = kt + area, *g = vt + area, *gradient = g + area;
            REAL *p = gradient + area, *d = p + side * side;
            const REAL *from = x + (row * positions + first) * stride + head * width;
            const REAL *turns = turn + first * width;
            memset(q, 0, sizeof(REAL) * 5 * area);
            FN(rotate)(from, stride, turns, length, width, scale, q, wide);
            FN(rotate)(from + heads * width, stride, turns, length, width, 1, k, wide);
            FN(transpose)(k, wide, length, width, kt, side);
            FN(transpose)(from + 2 * heads * width, stride, length, width, vt, side);
            for (int64_t t = 0; t < length; t++)
                memcpy(g + t * wide, upstream + ((row * positions + first + t) * heads + head) * width,
                       sizeof(REAL) * width);
            FN(product)(0, length, side, width, q, wide, 1, kt, side, p, side);
            FN(product)(0, length, side, width, g, wide, 1, vt, side, d, side);
            const REAL *logsum = logs + (row * heads + head) * positions + first;
            for (int64_t i = 0; i < length; i++) {
                REAL *line = p + i * side, *slope = d + i * side, along = 0, minus = logsum[i];
                const REAL *y = out + ((row * positions + first + i) * heads + head) * width;
                for (int64_t c = 0; c < width; c++) along += y[c] * g[i * wide + c];
                for (int64_t j = 0; j <= i; j++) {
                    line[j] = NAME(exp, REAL)(line[j] - minus);
                    slope[j] = line[j] * (slope[j] - along);
                }
                for (int64_t j = i + 1; j < ((i | 3) + 1); j++) line[j] = slope[j] = 0;
            }
            for (int64_t i = length; i < ((length + 3) & ~3); i++) {
                memset(p + i * side, 0, sizeof(REAL) * side);
                memset(d + i * side, 0, sizeof(REAL) * side);
            }
            REAL *to = of_x + (row * positions + first) * stride + head * width;
            FN(product)(1, length, wide, length, d, side, 1, k, wide, gradient, wide);
            FN(rotate_back)(gradient, wide, turns, length, width, scale, to, stride);
            FN(product)(2, length, wide, length, d, 1, side, q, wide, gradient, wide);
            FN(rotate_back)(gradient, wide, turns, length, width, 1, to + heads * width, stride);
            FN(product)(2, length, wide, length, p, 1, side, g, wide, gradient, wide);
            for (int64_t t = 0; t < length; t++)
                memcpy(to + t * stride + 2 * heads * width, gradient + t * wide, sizeof(REAL) * width);
        }
        free(scratch);
    }
    free(firsts);
    return failed;
}
#endif
