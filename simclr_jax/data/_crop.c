/* The hot loops of the host's input path, plain functions of pointers, called through ctypes.

   crop_resize gives the bits of TensorFlow's kernel on every processor: no sum depends on the width of the vectors,
   and the build forbids the contraction of a product and a sum (-ffp-contract=off). */

#include <math.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#if defined(__x86_64__) && defined(__GLIBC__) && defined(__GNUC__) && !defined(__clang__)
#define VECTORIZED __attribute__((target_clones("arch=x86-64-v4", "arch=x86-64-v3", "default")))
#else
#define VECTORIZED
#endif

/* Indices are of the width of a pointer: Python builds with -fwrapv, and where a narrower one may wrap
   around, gcc does not vectorize. */
enum { CUBIC_TABLE = 1024, MARGIN = 6 };

/* Changed with every signature and every result below and in _jpeg.c: crop.py takes no other build. */
int crop_version(void) { return 4; }

/* Keys' cubic, a = -0.5, at entry `offset` of TensorFlow's table: the inner or the outer tap. */
static float cubic(int offset, int is_outer) {
    const double a = -0.5;
    float x = (float)((double)offset / CUBIC_TABLE);
    if (!is_outer) return (float)(((a + 2) * x - (a + 3)) * x * x + 1);
    x += 1.0f;
    return (float)(((a * x - 5 * a) * x + 8 * a) * x - 4 * a);
}

/* The first of four taps, from -2 on, and the four weights of each target pixel, half-pixel centres. As in
   TensorFlow's kernel, taps beyond the border weigh nothing and the others are scaled to sum to one. */
static void set_taps(int size, int target, int is_flipped, int *first, float *weights) {
    const float scale = (float)size / (float)target;
    for (int i = 0; i < target; i++) {
        const float at = ((float)i + 0.5f) * scale - 0.5f;
        const int below = (int)floorf(at);
        const int offset = (int)lrintf((at - (float)below) * CUBIC_TABLE);
        const float table[4] = {cubic(offset, 1), cubic(offset, 0), cubic(CUBIC_TABLE - offset, 0),
                                cubic(CUBIC_TABLE - offset, 1)};
        const int out = is_flipped ? target - 1 - i : i;
        float sum = 0.0f, *to = weights + 4 * out;
        for (int k = 0; k < 4; k++) {
            const int tap = below - 1 + k;
            to[k] = tap >= 0 && tap < size ? table[k] : 0.0f;
            sum += to[k];
        }
        for (int k = 0; k < 4; k++) to[k] *= 1.0f / sum;
        first[out] = below - 1;
    }
}

VECTORIZED static void mix_rows(const uint8_t *restrict a, const uint8_t *restrict b,
                                const uint8_t *restrict c, const uint8_t *restrict d,
                                const float *weights, float *restrict out, ptrdiff_t n) {
    const float wa = weights[0], wb = weights[1], wc = weights[2], wd = weights[3];
    for (ptrdiff_t i = 0; i < n; i++) out[i] = wa * a[i] + wb * b[i] + wc * c[i] + wd * d[i];
}

/* `row` and `out` hold pixels of three floats; both are read or written one float beyond their end. */
VECTORIZED static void mix_columns(const float *restrict row, const int *first, const float *weights,
                                   float *restrict out, ptrdiff_t n) {
    typedef float pixel __attribute__((vector_size(16)));
    for (ptrdiff_t i = 0; i < n; i++, weights += 4, out += 3) {
        const float *at = row + 3 * (ptrdiff_t)first[i];
        pixel a, b, c, d;
        memcpy(&a, at, sizeof a);
        memcpy(&b, at + 3, sizeof b);
        memcpy(&c, at + 6, sizeof c);
        memcpy(&d, at + 9, sizeof d);
        a = a * weights[0] + b * weights[1] + c * weights[2] + d * weights[3];
        memcpy(out, &a, sizeof a);
    }
}

/* Rounds to even after a clip to [0, 255], as rint does: adding 1.5 * 2^23 leaves no fraction bits. */
static inline uint8_t to_byte(float x) {
    x = x < 0.0f ? 0.0f : x > 255.0f ? 255.0f : x;
    return (uint8_t)(int)((x + 12582912.0f) - 12582912.0f);
}

VECTORIZED static void round_row(const float *restrict row, uint8_t *restrict out, ptrdiff_t n) {
    for (ptrdiff_t i = 0; i < n; i++) out[i] = to_byte(row[i]);
}

VECTORIZED static void scale_row(const float *restrict row, float scale, float *restrict out, ptrdiff_t n) {
    for (ptrdiff_t i = 0; i < n; i++) out[i] = row[i] * scale;
}

/* A box of an image uint8 [H, W, 3], whose rows are `stride` bytes apart, to [size, size, 3]: rounded and
   clipped bytes, or floats times `scale` with the overshoot of the cubic. One of the results is NULL.
   Returns 0, or 1 for want of memory. */
int crop_resize(const uint8_t *image, int64_t stride, int top, int left, int height, int width, int size,
                int is_flipped, float scale, float *floats, uint8_t *bytes) {
    const size_t row_length = 3 * (size_t)width, out_length = 3 * (size_t)size;
    const size_t padded_length = row_length + 2 * MARGIN + 1;
    int *y_first = malloc(2 * (size_t)size * sizeof(int)), *x_first = y_first + size;
    float *padded = calloc(padded_length + out_length + 1 + 8 * (size_t)size, sizeof(float));
    if (!y_first || !padded) {
        free(y_first);
        free(padded);
        return 1;
    }
    float *row = padded + MARGIN, *out = padded + padded_length;     /* zeros on both sides of the row */
    float *y_weights = out + out_length + 1, *x_weights = y_weights + 4 * size;
    set_taps(height, size, 0, y_first, y_weights);
    set_taps(width, size, is_flipped, x_first, x_weights);
    image += top * stride + 3 * (int64_t)left;
    for (int y = 0; y < size; y++) {
        const uint8_t *rows[4];
        for (ptrdiff_t k = 0; k < 4; k++) {
            const int tap = y_first[y] + k;
            rows[k] = image + (tap < 0 ? 0 : tap >= height ? height - 1 : tap) * stride;
        }
        mix_rows(rows[0], rows[1], rows[2], rows[3], y_weights + 4 * y, row, (ptrdiff_t)row_length);
        mix_columns(row, x_first, x_weights, out, size);
        if (bytes) round_row(out, bytes + y * out_length, (ptrdiff_t)out_length);
        else scale_row(out, scale, floats + y * out_length, (ptrdiff_t)out_length);
    }
    free(y_first);
    free(padded);
    return 0;
}

VECTORIZED static void add_row(const uint8_t *restrict in, float weight, float *restrict out, ptrdiff_t n) {
    for (ptrdiff_t i = 0; i < n; i++) out[i] += weight * in[i];
}

/* `row` and `out` hold pixels of three floats; both are read or written one float beyond their end. */
VECTORIZED static void sum_columns(const float *restrict row, const int *first, const float *weights, int taps,
                                   float *restrict out, ptrdiff_t n) {
    typedef float pixel __attribute__((vector_size(16)));
    for (ptrdiff_t i = 0; i < n; i++, weights += taps, out += 3) {
        const float *at = row + 3 * (ptrdiff_t)first[i];
        pixel sum = {0}, a;
        for (ptrdiff_t k = 0; k < taps; k++) {
            memcpy(&a, at + 3 * k, sizeof a);
            sum += a * weights[k];
        }
        memcpy(out, &sum, sizeof sum);
    }
}

/* `width` pixels [3] of every row from `image` on to [size, size, 3], by weights of any filter: each result is
   `y_taps` rows from y_first on and `x_taps` pixels of these, all within the image. Results as of crop_resize. */
int crop_weighted(const uint8_t *image, int64_t stride, int width, int size, int y_taps, const int *y_first,
                  const float *y_weights, int x_taps, const int *x_first, const float *x_weights, float scale,
                  float *floats, uint8_t *bytes) {
    const size_t row_length = 3 * (size_t)width, out_length = 3 * (size_t)size;
    float *row = calloc(row_length + out_length + 2, sizeof(float)), *out = row + row_length + 1;
    if (!row) return 1;
    for (int y = 0; y < size; y++) {
        memset(row, 0, row_length * sizeof(float));
        for (ptrdiff_t k = 0; k < y_taps; k++)
            add_row(image + (y_first[y] + k) * stride, y_weights[y * (ptrdiff_t)y_taps + k], row,
                    (ptrdiff_t)row_length);
        sum_columns(row, x_first, x_weights, x_taps, out, size);
        if (bytes) round_row(out, bytes + y * out_length, (ptrdiff_t)out_length);
        else scale_row(out, scale, floats + y * out_length, (ptrdiff_t)out_length);
    }
    free(row);
    return 0;
}
