/* The two hot loops of the host's input path, as plain functions of pointers, called through ctypes.

   Every result is the same on every processor: no sum depends on the width of the vectors, and the build
   forbids the contraction of a product and a sum (-ffp-contract=off). `crop_resize` gives the bits of
   TensorFlow's kernel; the colour operations are those of augment_ops.py in closed form. */

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
enum { CUBIC_TABLE = 1024, LANES = 16, BLOCK = 32, MARGIN = 6 };

/* Changed with every signature and every result below: kernels.py takes no other build. */
int kernels_version(void) { return 1; }

/* ---- crop and bicubic resize ---------------------------------------------------------------------- */

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

/* ---- colour ---------------------------------------------------------------------------------------- */

/* What happens to an image, in this order; the meaning of each field is in kernels.py. */
typedef struct {
    int order[4];
    float multiply, add, contrast, saturation, hue;
    int is_grey;
    float sigma;
    int radius;
    float threshold;
} Colour;

static inline float clip(float x) { return x < 0.0f ? 0.0f : x > 1.0f ? 1.0f : x; }
static inline float largest(float a, float b) { return a > b ? a : b; }
static inline float least(float a, float b) { return a < b ? a : b; }

VECTORIZED static void brighten(float *restrict x, ptrdiff_t n, float multiply, float add) {
    for (ptrdiff_t i = 0; i < n; i++) x[i] = clip(x[i] * multiply + add);
}

/* Of one channel, about its mean. The partial sums are of a fixed number, whatever the vectors' width. */
VECTORIZED static void change_contrast(float *restrict x, ptrdiff_t n, float factor) {
    float sums[LANES] = {0};
    double total = 0.0;
    ptrdiff_t i = 0;
    for (; i + LANES <= n; i += LANES)
        for (ptrdiff_t k = 0; k < LANES; k++) sums[k] += x[i + k];
    for (; i < n; i++) total += x[i];
    for (ptrdiff_t k = 0; k < LANES; k++) total += sums[k];
    const float mean = (float)(total / n);
    for (i = 0; i < n; i++) x[i] = clip((x[i] - mean) * factor + mean);
}

/* HSV saturation times `factor` and at most 1, in closed form. */
VECTORIZED static void saturate(float *restrict r, float *restrict g, float *restrict b, ptrdiff_t n,
                                float factor) {
    for (ptrdiff_t i = 0; i < n; i++) {
        const float value = largest(r[i], largest(g[i], b[i]));
        const float range = value - least(r[i], least(g[i], b[i]));
        const float keep = least(factor, value / largest(range, 1e-30f));
        r[i] = clip(value - (value - r[i]) * keep);
        g[i] = clip(value - (value - g[i]) * keep);
        b[i] = clip(value - (value - b[i]) * keep);
    }
}

/* The channel whose hue, in sixths of the circle from -4 up to 12, is `hue`. */
static inline float channel_of_hue(float hue, float low, float range) {
    hue = hue < 0.0f ? hue + 6.0f : hue;
    hue = hue >= 6.0f ? hue - 6.0f : hue;
    return clip(low + range * clip(fabsf(hue - 3.0f) - 1.0f));
}

VECTORIZED static void turn_hue(float *restrict r, float *restrict g, float *restrict b, ptrdiff_t n,
                                float turn) {
    for (ptrdiff_t i = 0; i < n; i++) {
        const float value = largest(r[i], largest(g[i], b[i]));
        const float low = least(r[i], least(g[i], b[i]));
        const float range = value - low, scale = 1.0f / largest(range, 1e-30f);
        const float of_red = (g[i] - b[i]) * scale, of_green = 2.0f + (b[i] - r[i]) * scale;
        const float of_blue = 4.0f + (r[i] - g[i]) * scale;
        const float hue = (value == r[i] ? of_red : value == g[i] ? of_green : of_blue) + 6.0f * turn;
        r[i] = channel_of_hue(hue, low, range);
        g[i] = channel_of_hue(hue + 4.0f, low, range);
        b[i] = channel_of_hue(hue + 2.0f, low, range);
    }
}

VECTORIZED static void make_grey(float *restrict r, float *restrict g, float *restrict b, ptrdiff_t n) {
    for (ptrdiff_t i = 0; i < n; i++) r[i] = g[i] = b[i] = 0.2989f * r[i] + 0.587f * g[i] + 0.114f * b[i];
}

/* out[x] = sum of weights[k] * in[x + k * step]; n is a multiple of BLOCK. */
VECTORIZED static void convolve(const float *restrict in, ptrdiff_t step, const float *restrict weights,
                                ptrdiff_t count, float *restrict out, ptrdiff_t n) {
    for (ptrdiff_t x = 0; x < n; x += BLOCK) {
        float sums[BLOCK] = {0};
        for (ptrdiff_t k = 0; k < count; k++)
            for (ptrdiff_t j = 0; j < BLOCK; j++) sums[j] += weights[k] * in[x + j + k * step];
        memcpy(out + x, sums, sizeof sums);
    }
}

/* The radius beyond which weights are below 1e-9, which no float32 sum of pixels feels. Smaller ones would
   soon be denormal, and those take a processor ten times as long. */
static int reach(float sigma, int radius) {
    while (radius > 0 && exp(-radius * radius / (2.0 * sigma * sigma)) < 1e-9) radius--;
    return radius;
}

static void set_gaussian(float sigma, int radius, float *weights) {
    double sum = 0.0;
    for (int k = -radius; k <= radius; k++) sum += exp(-k * k / (2.0 * sigma * sigma));
    for (int k = -radius; k <= radius; k++)
        weights[k + radius] = (float)(exp(-k * k / (2.0 * sigma * sigma)) / sum);
}

/* Separable Gaussian of one channel [size, size] with zeros beyond the border. `padded` has room for
   (size + 2 radius) rows of `pitch`, which is size rounded up to BLOCK, and `line` for 2 (pitch + radius). */
static void blur(float *plane, int size, const float *weights, int radius, float *padded, int pitch,
                 float *line) {
    const int count = 2 * radius + 1;
    float *out = line + pitch + 2 * radius;
    memset(padded, 0, (size_t)pitch * (size + 2 * radius) * sizeof(float));
    memset(line, 0, (pitch + 2 * radius) * sizeof(float));
    for (int y = 0; y < size; y++)
        memcpy(padded + (size_t)(y + radius) * pitch, plane + (size_t)y * size, size * sizeof(float));
    for (int y = 0; y < size; y++) {
        convolve(padded + (size_t)y * pitch, pitch, weights, count, line + radius, pitch);
        convolve(line, 1, weights, count, out, pitch);
        memcpy(plane + (size_t)y * size, out, size * sizeof(float));
    }
}

VECTORIZED static void split(const float *restrict image, float *restrict r, float *restrict g,
                             float *restrict b, ptrdiff_t n) {
    for (ptrdiff_t i = 0; i < n; i++) {
        r[i] = image[3 * i];
        g[i] = image[3 * i + 1];
        b[i] = image[3 * i + 2];
    }
}

VECTORIZED static void clip_and_solarize(float *restrict x, ptrdiff_t n, float threshold) {
    for (ptrdiff_t i = 0; i < n; i++) {
        const float value = clip(x[i]);
        x[i] = value >= threshold ? 1.0f - value : value;
    }
}

VECTORIZED static void join(const float *restrict r, const float *restrict g, const float *restrict b,
                            float *restrict floats, ptrdiff_t n) {
    for (ptrdiff_t i = 0; i < n; i++) {
        floats[3 * i] = r[i];
        floats[3 * i + 1] = g[i];
        floats[3 * i + 2] = b[i];
    }
}

VECTORIZED static void join_rounded(const float *restrict r, const float *restrict g, const float *restrict b,
                                    uint8_t *restrict bytes, ptrdiff_t n) {
    for (ptrdiff_t i = 0; i < n; i++) {
        bytes[3 * i] = to_byte(255.0f * r[i]);
        bytes[3 * i + 1] = to_byte(255.0f * g[i]);
        bytes[3 * i + 2] = to_byte(255.0f * b[i]);
    }
}

static void jitter(float *planes, ptrdiff_t n, const Colour *colour) {
    float *r = planes, *g = planes + n, *b = planes + 2 * n;
    for (int turn = 0; turn < 4; turn++) {
        if (colour->order[turn] == 0) brighten(planes, 3 * n, colour->multiply, colour->add);
        if (colour->order[turn] == 1)
            for (int c = 0; c < 3; c++) change_contrast(planes + c * n, n, colour->contrast);
        if (colour->order[turn] == 2) saturate(r, g, b, n, colour->saturation);
        if (colour->order[turn] == 3) turn_hue(r, g, b, n, colour->hue);
        if (colour->order[turn] == 4) brighten(planes, 3 * n, 1.0f, 0.0f);
    }
}

/* Colour, blur and solarize of an image float32 [size, size, 3] about [0, 1], to floats of the same shape
   in [0, 1] or to 255 times that, rounded. One of the results is NULL. Returns 0, or 1 for want of memory. */
int change_colour(const float *image, int size, const Colour *colour, float *floats, uint8_t *bytes) {
    const ptrdiff_t n = (ptrdiff_t)size * size;
    const int radius = colour->sigma > 0 ? reach(colour->sigma, colour->radius) : 0, count = 2 * radius + 1;
    const int pitch = (size + BLOCK - 1) / BLOCK * BLOCK;
    const size_t padded_length = radius ? (size_t)pitch * (size + 2 * radius) : 0;
    const size_t length = 3 * (size_t)n + count + 2 * (size_t)(pitch + radius) + padded_length;
    float *planes = malloc(length * sizeof(float));
    if (!planes) return 1;
    float *r = planes, *g = planes + n, *b = planes + 2 * n;
    split(image, r, g, b, n);
    jitter(planes, n, colour);
    if (colour->is_grey) make_grey(r, g, b, n);
    if (radius) {
        float *weights = planes + 3 * n, *line = weights + count;
        float *padded = line + 2 * (pitch + radius);
        set_gaussian(colour->sigma, radius, weights);
        clip_and_solarize(planes, 3 * n, INFINITY);
        for (int c = 0; c < 3; c++) blur(planes + c * n, size, weights, radius, padded, pitch, line);
    }
    clip_and_solarize(planes, 3 * n, colour->threshold);
    if (bytes) join_rounded(r, g, b, bytes, n);
    else join(r, g, b, floats, n);
    free(planes);
    return 0;
}
