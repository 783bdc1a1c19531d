/* The inner loops of the convolutions: blocks of source pixels, and products of a block with weights or with
   gradients, for each vector unit. See _convolution.cc. */

#ifndef SIMCLR_JAX_TILES_H_
#define SIMCLR_JAX_TILES_H_

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <vector>

#include "_loops.h"

#define INLINE inline __attribute__((always_inline))

namespace {

constexpr int64_t kMargin = 64;                 // floats behind a block, read and not used

/* Destination pixels (first + step * i) of all images see the source from pixel (shift + source_step * i) on. */
struct Phase {
  int64_t images, source_height, source_width, channels;
  int64_t height, width, features;              // of the destination
  int64_t rows, columns, first_row, first_column, step;
  int64_t source_step, shift_row, shift_column;
  int64_t kernel_height, kernel_width;

  int64_t run() const { return kernel_width * channels; }
  int64_t block_rows(int64_t pixels) const {
    return std::min(rows, std::max<int64_t>(1, pixels / std::max<int64_t>(columns, 1)));
  }
  int64_t block_images(int64_t pixels) const {
    const int64_t image = std::max<int64_t>(rows * columns, 1);
    return block_rows(pixels) < rows ? 1 : std::clamp<int64_t>(pixels / image, 1, std::max<int64_t>(images, 1));
  }
};

/* ---- blocks of pixels ------------------------------------------------------------------------------- */

/* Source pixels with zeros around them, and where in them each destination pixel begins. */
struct Block {
  const float *source;
  int64_t row_stride;
  std::vector<int64_t> source_offsets, destination_offsets;
};

/* is_copied: what lies behind the last pixel will be read too, though not used. */
inline void load_block(const Phase &p, const float *source, int64_t image, int64_t images, int64_t row, int64_t rows,
                bool is_copied, Block &block) {
  const int64_t c = p.channels;
  const int64_t height = (rows - 1) * p.source_step + p.kernel_height;
  const int64_t width = (p.columns - 1) * p.source_step + p.kernel_width;
  const int64_t top = p.shift_row + row * p.source_step, left = p.shift_column;
  int64_t image_stride = p.source_height * p.source_width * c;
  const float *base = source + image * image_stride;
  block.row_stride = p.source_width * c;
  if (!is_copied && top >= 0 && left >= 0 && top + height <= p.source_height && left + width <= p.source_width) {
    block.source = base + top * block.row_stride + left * c;
  } else {
    float *to = scratch(0, images * height * width * c + kMargin);
    block.source = to;
    const int64_t before = std::clamp<int64_t>(-left, 0, width);
    const int64_t inside = std::clamp<int64_t>(p.source_width - std::max<int64_t>(left, 0), 0, width - before);
    for (int64_t n = 0; n < images; n++, base += image_stride) {
      for (int64_t y = top; y < top + height; y++, to += width * c) {
        const bool is_row = y >= 0 && y < p.source_height;
        const int64_t head = is_row ? before : width, body = is_row ? inside : 0;
        std::fill_n(to, head * c, 0.0f);
        if (body) std::memcpy(to + head * c, base + (y * p.source_width + std::max<int64_t>(left, 0)) * c,
                              body * c * sizeof(float));
        std::fill_n(to + (head + body) * c, (width - head - body) * c, 0.0f);
      }
    }
    block.row_stride = width * c;
    image_stride = height * width * c;
  }
  block.source_offsets.resize(images * rows * p.columns);
  block.destination_offsets.resize(images * rows * p.columns);
  int64_t *from = block.source_offsets.data(), *to = block.destination_offsets.data();
  for (int64_t n = 0; n < images; n++) {
    for (int64_t i = 0; i < rows; i++, from += p.columns, to += p.columns) {
      const int64_t y = p.first_row + p.step * (row + i), source_step = p.source_step * c;
      const int64_t source_row = n * image_stride + i * p.source_step * block.row_stride;
      const int64_t row_start = (((image + n) * p.height + y) * p.width + p.first_column) * p.features;
      for (int64_t j = 0; j < p.columns; j++) {
        from[j] = source_row + j * source_step;
        to[j] = row_start + j * p.step * p.features;
      }
    }
  }
}

/* ---- inner loops: V floats a vector, Q vectors of features side by side ------------------------------ */

template <int V> struct Vector {
  typedef float type __attribute__((vector_size(V * sizeof(float)), aligned(4), may_alias));
};

constexpr int tile_pixels(int V, int Q) { return Q == 4 ? 6 : V == 8 && Q == 2 ? 6 : 8; }
constexpr int tile_rows(int V, int Q) { return V == 8 ? (Q == 1 ? 8 : 6) : Q == 1 ? 16 : Q == 2 ? 12 : Q == 3 ? 8 : 6; }

/* destination[p][0:lanes] (+)= sum over t, r of source[p][t * row_stride + r] * weights[t, r]. */
template <int V, int P, int Q>
INLINE void multiply_tile(const float *const *source, int64_t row_stride, int64_t rows, int64_t run,
                          const float *weights, float *const *destination, int64_t lanes, bool is_first) {
  typedef typename Vector<V>::type Vec;
  Vec sums[P][Q];
  float spill[P][Q * V];
  const bool is_full = lanes == Q * V;
  if (is_first) {
#pragma GCC unroll 16
    for (int p = 0; p < P; p++)
#pragma GCC unroll 4
      for (int q = 0; q < Q; q++) sums[p][q] = Vec{};
  } else {
    if (!is_full)
      for (int p = 0; p < P; p++) std::memcpy(spill[p], destination[p], lanes * sizeof(float));
#pragma GCC unroll 16
    for (int p = 0; p < P; p++)
#pragma GCC unroll 4
      for (int q = 0; q < Q; q++)
        sums[p][q] = *(const Vec *)((is_full ? destination[p] : spill[p]) + q * V);
  }
  for (int64_t t = 0; t < rows; t++) {
    const float *from[P];
#pragma GCC unroll 16
    for (int p = 0; p < P; p++) from[p] = source[p] + t * row_stride;
    for (int64_t r = 0; r < run; r++, weights += Q * V) {
      Vec w[Q];
#pragma GCC unroll 4
      for (int q = 0; q < Q; q++) w[q] = *(const Vec *)(weights + q * V);
#pragma GCC unroll 16
      for (int p = 0; p < P; p++) {
        const float x = from[p][r];
#pragma GCC unroll 4
        for (int q = 0; q < Q; q++) sums[p][q] += x * w[q];
      }
    }
  }
#pragma GCC unroll 16
  for (int p = 0; p < P; p++)
#pragma GCC unroll 4
    for (int q = 0; q < Q; q++) *(Vec *)((is_full ? destination[p] : spill[p]) + q * V) = sums[p][q];
  if (!is_full)
    for (int p = 0; p < P; p++) std::memcpy(destination[p], spill[p], lanes * sizeof(float));
}

/* One pass of a block's pixels over rows [t0, t0 + rows), columns [r0, r0 + run) of the weights. */
template <int V, int Q>
INLINE void multiply_block(const Block &block, int64_t t0, int64_t rows, int64_t r0, int64_t run,
                           const float *weights, float *destination, int64_t lanes, bool is_first) {
  constexpr int P = tile_pixels(V, Q);
  const int64_t count = block.source_offsets.size();
  const float *base = block.source + t0 * block.row_stride + r0;
  for (int64_t i = 0; i < count; i += P) {
    const float *from[P];
    float *to[P], unused[P][Q * V];
    for (int p = 0; p < P; p++) {
      const bool is_pixel = i + p < count;
      from[p] = base + block.source_offsets[is_pixel ? i + p : i];
      to[p] = is_pixel ? destination + block.destination_offsets[i + p] : unused[p];
    }
    multiply_tile<V, P, Q>(from, block.row_stride, rows, run, weights, to, lanes, is_first);
  }
}

/* sums[R][Q * V] += sum over pixels of source[offset + r] * gradient[pixel]. */
template <int V, int R, int Q>
INLINE void outer_tile(const float *source, const int64_t *offsets, const float *gradient, int64_t count,
                       float *sums) {
  typedef typename Vector<V>::type Vec;
  Vec s[R][Q];
#pragma GCC unroll 16
  for (int r = 0; r < R; r++)
#pragma GCC unroll 4
    for (int q = 0; q < Q; q++) s[r][q] = *(const Vec *)(sums + (r * Q + q) * V);
  for (int64_t i = 0; i < count; i++, gradient += Q * V) {
    const float *x = source + offsets[i];
    Vec g[Q];
#pragma GCC unroll 4
    for (int q = 0; q < Q; q++) g[q] = *(const Vec *)(gradient + q * V);
#pragma GCC unroll 16
    for (int r = 0; r < R; r++)
#pragma GCC unroll 4
      for (int q = 0; q < Q; q++) s[r][q] += x[r] * g[q];
  }
#pragma GCC unroll 16
  for (int r = 0; r < R; r++)
#pragma GCC unroll 4
    for (int q = 0; q < Q; q++) *(Vec *)(sums + (r * Q + q) * V) = s[r][q];
}

/* `rows` of the kernel, each of `run` floats; from one tile of a row to the next are `step` floats. */
template <int V, int Q>
INLINE void outer_block(const Block &block, int64_t rows, int64_t run, int64_t step, const float *gradient,
                        float *sums) {
  constexpr int R = tile_rows(V, Q);
  for (int64_t t = 0; t < rows; t++) {
    const float *from = block.source + t * block.row_stride;
    for (int64_t r = 0; r < run; r += R, from += step, sums += R * Q * V)
      outer_tile<V, R, Q>(from, block.source_offsets.data(), gradient, block.source_offsets.size(), sums);
  }
}

/* What every pixel of a block sees from `start` on, a tile of all pixels after the other; zeros end the last tile. */
template <int V, int Q>
INLINE void pack_block(const Block &block, int64_t start, int64_t run, float *to) {
  constexpr int R = tile_rows(V, Q);
  const int64_t count = block.source_offsets.size();
  for (int64_t i = 0; i < count; i++) {
    const float *from = block.source + block.source_offsets[i] + start;
    float *tile = to + i * R;
    int64_t r = 0;
    for (; r + R <= run; r += R, tile += count * R) std::memcpy(tile, from + r, R * sizeof(float));
    if (r == run) continue;
    std::fill_n(tile, R, 0.0f);
    std::memcpy(tile, from + r, (run - r) * sizeof(float));
  }
}

/* ---- the same loops for each processor --------------------------------------------------------------- */

struct Loops {
  int lanes, most;              // floats of a vector; vectors of features side by side
  int (*tile_rows)(int q);
  void (*multiply)(int q, const Block &, int64_t t0, int64_t rows, int64_t r0, int64_t run, const float *weights,
                   float *destination, int64_t lanes, bool is_first);
  void (*outer)(int q, const Block &, int64_t rows, int64_t run, int64_t step, const float *gradient, float *sums);
  void (*pack)(int q, const Block &, int64_t start, int64_t run, float *to);
};

#define LOOPS(NAME, TARGET, V, MOST)                                                                         \
  TARGET void multiply_##NAME(int q, const Block &block, int64_t t0, int64_t rows, int64_t r0, int64_t run,  \
                              const float *weights, float *destination, int64_t lanes, bool is_first) {      \
    if (q == 1) multiply_block<V, 1>(block, t0, rows, r0, run, weights, destination, lanes, is_first);       \
    if (q == 2) multiply_block<V, 2>(block, t0, rows, r0, run, weights, destination, lanes, is_first);       \
    if (q == 3 && MOST > 2) multiply_block<V, 3>(block, t0, rows, r0, run, weights, destination, lanes, is_first); \
    if (q == 4 && MOST > 2) multiply_block<V, 4>(block, t0, rows, r0, run, weights, destination, lanes, is_first); \
  }                                                                                                          \
  TARGET void outer_##NAME(int q, const Block &block, int64_t rows, int64_t run, int64_t step,               \
                           const float *gradient, float *sums) {                                             \
    if (q == 1) outer_block<V, 1>(block, rows, run, step, gradient, sums);                                   \
    if (q == 2) outer_block<V, 2>(block, rows, run, step, gradient, sums);                                   \
    if (q == 3 && MOST > 2) outer_block<V, 3>(block, rows, run, step, gradient, sums);                       \
    if (q == 4 && MOST > 2) outer_block<V, 4>(block, rows, run, step, gradient, sums);                       \
  }                                                                                                          \
  TARGET void pack_##NAME(int q, const Block &block, int64_t start, int64_t run, float *to) {                \
    if (q == 1) pack_block<V, 1>(block, start, run, to);                                                     \
    if (q == 2) pack_block<V, 2>(block, start, run, to);                                                     \
    if (q == 3 && MOST > 2) pack_block<V, 3>(block, start, run, to);                                         \
    if (q == 4 && MOST > 2) pack_block<V, 4>(block, start, run, to);                                         \
  }                                                                                                          \
  const Loops NAME = {V, MOST, [](int q) { return q == 1 ? tile_rows(V, 1) : q == 2 ? tile_rows(V, 2)        \
                                                : q == 3 ? tile_rows(V, 3) : tile_rows(V, 4); },             \
                      multiply_##NAME, outer_##NAME, pack_##NAME};

#if defined(__x86_64__)
LOOPS(avx512, __attribute__((target("avx512f,avx512vl,avx2,fma"), flatten)), 16, 4)
LOOPS(avx2, __attribute__((target("avx2,fma"), flatten)), 8, 2)
const Loops *find_loops() {
  __builtin_cpu_init();
  if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512vl")) return &avx512;
  return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") ? &avx2 : nullptr;
}
#elif defined(__aarch64__)
LOOPS(neon, __attribute__((flatten)), 4, 4)
const Loops *find_loops() { return &neon; }
#else
const Loops *find_loops() { return nullptr; }
#endif

const Loops *loops() {
  static const Loops *found = find_loops();
  return found;
}

}  // namespace

#endif
