/* The hot loops of the host's input path, plain functions of pointers, called through ctypes.

   crop_resize gives the same bits on every processor: no sum depends on the width of the vectors,
   and the build forbids the contraction of a product and a sum (-ffp-contract=off). */

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
enum { AT_ONCE = 4 };       /* rows that are added */

/* Changed with every signature and every result below and in _jpeg.c: compiled.py takes no other build. */
int crop_version(void) { return 5; }

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

/* Adds four rows, each times its weight, one after the other. */
VECTORIZED static void add_rows(const uint8_t *restrict a, const uint8_t *restrict b, const uint8_t *restrict c,
                                const uint8_t *restrict d, const float *weights, float *restrict out, ptrdiff_t n) {
    const float wa = weights[0], wb = weights[1], wc = weights[2], wd = weights[3];
    for (ptrdiff_t i = 0; i < n; i++) out[i] = out[i] + wa * a[i] + wb * b[i] + wc * c[i] + wd * d[i];
}

static inline __attribute__((always_inline)) void sum_taps(const float *restrict row, const int *first,
                                                           const float *weights, ptrdiff_t taps,
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

/* `row` and `out` hold pixels of three floats; both are read or written one float beyond their end. */
VECTORIZED static void sum_columns(const float *restrict row, const int *first, const float *weights, ptrdiff_t taps,
                                   float *restrict out, ptrdiff_t n) {
    if (taps == 4) sum_taps(row, first, weights, 4, out, n);        /* unrolled: a sixth of a crop's time less */
    else sum_taps(row, first, weights, taps, out, n);
}

/* `width` pixels [3] of every row from `image` on, the rows `stride` bytes apart, to [size, size, 3]: each result is
   `y_taps` rows from y_first on and `x_taps` pixels of these, all within the image. Rounded and clipped bytes, or
   floats times `scale` with the overshoot of the cubic; one of the results is NULL. Returns 0, or 1 for want of
   memory. */
int crop_resize(const uint8_t *image, int64_t stride, int width, int size, int y_taps, const int *y_first,
                const float *y_weights, int x_taps, const int *x_first, const float *x_weights, float scale,
                float *floats, uint8_t *bytes) {
    const size_t row_length = 3 * (size_t)width, out_length = 3 * (size_t)size;
    float *row = calloc(row_length + out_length + 2, sizeof(float)), *out = row + row_length + 1;
    if (!row) return 1;
    for (int y = 0; y < size; y++, y_weights += y_taps) {
        memset(row, 0, row_length * sizeof(float));
        for (int first = 0; first < y_taps; first += AT_ONCE) {
            const uint8_t *rows[AT_ONCE];
            float weights[AT_ONCE] = {0};
            for (int k = 0; k < AT_ONCE; k++) {
                const int tap = first + k < y_taps ? first + k : first;
                rows[k] = image + (y_first[y] + tap) * stride;
                if (first + k < y_taps) weights[k] = y_weights[tap];
            }
            add_rows(rows[0], rows[1], rows[2], rows[3], weights, row, (ptrdiff_t)row_length);
        }
        sum_columns(row, x_first, x_weights, x_taps, out, size);
        if (bytes) round_row(out, bytes + y * out_length, (ptrdiff_t)out_length);
        else scale_row(out, scale, floats + y * out_length, (ptrdiff_t)out_length);
    }
    free(row);
    return 0;
}
