/* Convolutions of stride 1 with 3x3 kernels by Winograd's F(2x2, 3x3) (Lavin & Gray, arXiv:1509.09308): 16 products
   of matrices make tiles of 2x2 pixels, where the sum itself takes 36. Sums run in an order that depends on the shapes
   alone. See _convolution.cc. */

#ifndef SIMCLR_JAX_WINOGRAD_H_
#define SIMCLR_JAX_WINOGRAD_H_

#include "_tiles.h"

namespace {

constexpr int64_t kWinogradChannels = 32;       // of images and output, at least: below, the transforms cost more
constexpr int64_t kTiles = 48;                  // transformed together: they stay in L2
constexpr int kProducts = 16;                   // of a tile, 4x4

bool is_winograd(const Phase &p) {
  return p.kernel_height == 3 && p.kernel_width == 3 && p.step == 1 && p.source_step == 1 && p.rows % 2 == 0
         && p.columns % 2 == 0 && std::min(p.channels, p.features) >= kWinogradChannels;
}

int64_t tiles_of_image(const Phase &p) { return p.rows / 2 * (p.columns / 2); }

/* The first destination pixel of a tile. */
struct Tile {
  int64_t image, row, column;
  Tile(const Phase &p, int64_t index)
      : image(index / tiles_of_image(p)), row(index % tiles_of_image(p) / (p.columns / 2) * 2),
        column(index % (p.columns / 2) * 2) {}
};

/* B' x B of 4x4 pixels, each of c floats, to to[16][stride]. */
VECTORIZED void transform_pixels(const float *const (&pixels)[4][4], int64_t c, float *to, int64_t stride) {
#pragma GCC ivdep
  for (int64_t i = 0; i < c; i++) {
    float t[4][4];
    for (int j = 0; j < 4; j++) {
      const float p = pixels[0][j][i], q = pixels[1][j][i], r = pixels[2][j][i], s = pixels[3][j][i];
      t[0][j] = p - r, t[1][j] = q + r, t[2][j] = r - q, t[3][j] = q - s;
    }
    for (int j = 0; j < 4; j++) {
      to[(4 * j) * stride + i] = t[j][0] - t[j][2];
      to[(4 * j + 1) * stride + i] = t[j][1] + t[j][2];
      to[(4 * j + 2) * stride + i] = t[j][2] - t[j][1];
      to[(4 * j + 3) * stride + i] = t[j][1] - t[j][3];
    }
  }
}

/* A' m A of products m[16][stride] to 2x2 pixels of c floats. */
VECTORIZED void transform_products(const float *from, int64_t stride, int64_t c, float *const (&to)[2][2]) {
#pragma GCC ivdep
  for (int64_t i = 0; i < c; i++) {
    float t[2][4];
    for (int j = 0; j < 4; j++) {
      const float p = from[j * stride + i], q = from[(4 + j) * stride + i], r = from[(8 + j) * stride + i],
                  s = from[(12 + j) * stride + i];
      t[0][j] = p + q + r, t[1][j] = q - r - s;
    }
    for (int j = 0; j < 2; j++) {
      to[j][0][i] = t[j][0] + t[j][1] + t[j][2];
      to[j][1][i] = t[j][1] - t[j][2] - t[j][3];
    }
  }
}

/* A g A' of the gradient of 2x2 pixels of c floats, to to[16][stride]. */
VECTORIZED void transform_gradient(const float *const (&pixels)[2][2], int64_t c, float *to, int64_t stride) {
#pragma GCC ivdep
  for (int64_t i = 0; i < c; i++) {
    float t[4][2];
    for (int j = 0; j < 2; j++) {
      const float p = pixels[0][j][i], q = pixels[1][j][i];
      t[0][j] = p, t[1][j] = p + q, t[2][j] = p - q, t[3][j] = -q;
    }
    for (int j = 0; j < 4; j++) {
      to[(4 * j) * stride + i] = t[j][0];
      to[(4 * j + 1) * stride + i] = t[j][0] + t[j][1];
      to[(4 * j + 2) * stride + i] = t[j][0] - t[j][1];
      to[(4 * j + 3) * stride + i] = -t[j][1];
    }
  }
}

/* G w G' of weights w[9][c], to to[16][stride]. */
VECTORIZED void transform_weights(const float *weights, int64_t c, float *to, int64_t stride) {
#pragma GCC ivdep
  for (int64_t i = 0; i < c; i++) {
    float t[4][3];
    for (int j = 0; j < 3; j++) {
      const float p = weights[j * c + i], q = weights[(3 + j) * c + i], r = weights[(6 + j) * c + i];
      t[0][j] = p, t[1][j] = (p + q + r) * 0.5f, t[2][j] = (p - q + r) * 0.5f, t[3][j] = r;
    }
    for (int j = 0; j < 4; j++) {
      to[(4 * j) * stride + i] = t[j][0];
      to[(4 * j + 1) * stride + i] = (t[j][0] + t[j][1] + t[j][2]) * 0.5f;
      to[(4 * j + 2) * stride + i] = (t[j][0] - t[j][1] + t[j][2]) * 0.5f;
      to[(4 * j + 3) * stride + i] = t[j][2];
    }
  }
}

/* G' m G of sums m[16][stride] of c floats, to to[9][to_stride]. */
VECTORIZED void transform_sums(const float *from, int64_t stride, int64_t c, float *to, int64_t to_stride) {
#pragma GCC ivdep
  for (int64_t i = 0; i < c; i++) {
    float t[3][4];
    for (int j = 0; j < 4; j++) {
      const float p = from[j * stride + i], q = from[(4 + j) * stride + i] * 0.5f,
                  r = from[(8 + j) * stride + i] * 0.5f, s = from[(12 + j) * stride + i];
      t[0][j] = p + q + r, t[1][j] = q - r, t[2][j] = q + r + s;
    }
    for (int j = 0; j < 3; j++) {
      to[(3 * j) * to_stride + i] = t[j][0] + (t[j][1] + t[j][2]) * 0.5f;
      to[(3 * j + 1) * to_stride + i] = (t[j][1] - t[j][2]) * 0.5f;
      to[(3 * j + 2) * to_stride + i] = (t[j][1] + t[j][2]) * 0.5f + t[j][3];
    }
  }
}

/* The tiles [first, first + count) as to[16][kTiles][channels]: what `transform_pixels` makes of the `channels` that
   they see from `channel` on. */
void transform_source(const Phase &p, const float *source, int64_t first, int64_t count, int64_t channel,
                      int64_t channels, float *to) {
  thread_local std::vector<float> zeros;
  if ((int64_t)zeros.size() < channels) zeros.assign(channels, 0.0f);
  for (int64_t i = 0; i < count; i++) {
    const Tile tile(p, first + i);
    const float *pixels[4][4];
    for (int64_t j = 0; j < 4; j++)
      for (int64_t k = 0; k < 4; k++) {
        const int64_t y = p.shift_row + tile.row + j, x = p.shift_column + tile.column + k;
        const bool is_inside = y >= 0 && y < p.source_height && x >= 0 && x < p.source_width;
        const int64_t pixel = (tile.image * p.source_height + y) * p.source_width + x;
        pixels[j][k] = is_inside ? source + pixel * p.channels + channel : zeros.data();
      }
    transform_pixels(pixels, channels, to + i * channels, kTiles * channels);
  }
}

/* 2x2 pixels of a tile in an array of the destination's shape, from a feature on. */
template <typename T>
void tile_pixels_of(const Phase &p, int64_t index, T *base, T *(&pixels)[2][2]) {
  const Tile tile(p, index);
  for (int64_t j = 0; j < 2; j++)
    for (int64_t k = 0; k < 2; k++)
      pixels[j][k] = base + ((tile.image * p.height + tile.row + j) * p.width + tile.column + k) * p.features;
}

/* Rows of a matrix, one for each tile, for the loops of _tiles.h. */
void use_tiles(int64_t count, int64_t source_step, int64_t destination_step, Block &block) {
  block.row_stride = 0;
  block.source_offsets.resize(count);
  block.destination_offsets.resize(count);
  for (int64_t i = 0; i < count; i++) {
    block.source_offsets[i] = i * source_step;
    block.destination_offsets[i] = i * destination_step;
  }
}

}  // namespace

#endif
