/* Convolutions and their two gradients for XLA on a CPU, at the speed of a matrix product.

   Images are [N, H, W, C], kernels [KH, KW, C, D], both float32 and dense. A block of images is copied with its
   padding into a buffer that fits a cache; there, what one row of the kernel sees from a pixel lies side by
   side, KW * C floats. So a convolution is KH products of a gathered matrix, without the copies of im2col.
   The gradient in the input is the same loop over the output's gradient: stride * stride of them, one for
   each phase of the pixels. 3x3 kernels of stride 1 with many channels go by _winograd.h. Sums run in an order that
   depends on the shapes alone, never on the threads. */

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <vector>

#include "_winograd.h"

namespace {

constexpr int64_t kBlockPixels = 512;           // of a block of the gathered product
constexpr int64_t kWeightBytes = 256 << 10;     // of weights that one pass over a block's pixels uses
// Of a kernel's gradient:
constexpr int64_t kGradientFloats = 8192;       // of a block of features in a block of pixels: they stay in L1
constexpr int64_t kPixels = 200;                // of such a block, at most: one map of 14x14
constexpr int64_t kChunk = 144;                 // floats of a row that are packed together: a multiple of all tile_rows
constexpr int64_t kLeastFeatures = 64, kMostFeatures = 256;     // that read the same packed or transformed pixels

int64_t divided_up(int64_t size, int64_t by) { return (size + by - 1) / by; }
int64_t round_up(int64_t size, int64_t to) { return divided_up(size, to) * to; }

/* How `features` are cut into `count` blocks of `q` vectors; the last one may be partly empty. */
struct Cut {
  int64_t features, q, lanes, count;
  explicit Cut(int64_t features) : features(features) {
    const int64_t vectors = std::max<int64_t>((features + loops()->lanes - 1) / loops()->lanes, 1);
    count = (vectors + loops()->most - 1) / loops()->most;
    q = (vectors + count - 1) / count;
    lanes = q * loops()->lanes;
    count = (vectors + q - 1) / q;
  }
  int64_t used(int64_t block) const { return std::min(lanes, features - block * lanes); }
};

/* ---- a gathered product ------------------------------------------------------------------------------ */

/* A phase and where its weights lie: weight [t, i, c, f] is base[t * row + i * column + c * channel + f * feature]. */
struct Product {
  Phase phase;
  const float *base;
  int64_t row, column, channel, feature;
  int64_t packed;               // where its packed weights begin: [block of features, t, i, c, lanes]
  int64_t first_task, bands, groups;
};

void pack(const Product &product, const Cut &cut, int64_t block, float *to) {
  const Phase &p = product.phase;
  const int64_t used = cut.used(block);
  to += product.packed + block * p.kernel_height * p.run() * cut.lanes;
  for (int64_t t = 0; t < p.kernel_height; t++)
    for (int64_t i = 0; i < p.kernel_width; i++)
      for (int64_t c = 0; c < p.channels; c++, to += cut.lanes) {
        const float *from = product.base + t * product.row + i * product.column + c * product.channel
                            + block * cut.lanes * product.feature;
        for (int64_t f = 0; f < used; f++) to[f] = from[f * product.feature];
        std::fill_n(to + used, cut.lanes - used, 0.0f);
      }
}

void multiply(const Product &product, const Cut &cut, int64_t task, const float *source, const float *packed,
              float *destination) {
  const Phase &p = product.phase;
  thread_local Block block;
  const int64_t rows = p.block_rows(kBlockPixels), images = p.block_images(kBlockPixels);
  const int64_t row = task % product.bands * rows, image = task / product.bands * images;
  load_block(p, source, image, std::min(images, p.images - image), row, std::min(rows, p.rows - row), false,
             block);
  const int64_t run = p.run(), size = p.kernel_height * run;
  const bool fits = size * cut.lanes * (int64_t)sizeof(float) <= kWeightBytes;
  const int64_t step = std::max<int64_t>(kWeightBytes / (int64_t)sizeof(float) / cut.lanes, 1);
  for (int64_t b = 0; b < cut.count; b++) {
    const float *weights = packed + product.packed + b * size * cut.lanes;
    float *to = destination + b * cut.lanes;
    if (fits) {
      loops()->multiply(cut.q, block, 0, p.kernel_height, 0, run, weights, to, cut.used(b), true);
      continue;
    }
    for (int64_t t = 0; t < p.kernel_height; t++)
      for (int64_t r = 0; r < run; r += step)
        loops()->multiply(cut.q, block, t, 1, r, std::min(step, run - r), weights + (t * run + r) * cut.lanes, to,
                          cut.used(b), t == 0 && r == 0);
  }
}

/* packed: [block of features, 16, C, lanes]. */
void multiply_winograd(ffi::ThreadPool &pool, const Product &product, const float *source, float *destination) {
  const Phase &p = product.phase;
  const Cut cut(p.features);
  const int64_t weights = p.channels * cut.lanes, tiles = p.images * tiles_of_image(p);
  float *packed = scratch(1, cut.count * kProducts * weights);
  parallel_for(pool, cut.count, [&](int64_t b) {
    float *taps = scratch(2, 9 * cut.lanes), *to = packed + b * kProducts * weights;
    std::fill_n(taps, 9 * cut.lanes, 0.0f);
    for (int64_t c = 0; c < p.channels; c++) {
      for (int64_t tap = 0; tap < 9; tap++)
        for (int64_t f = 0; f < cut.used(b); f++)
          taps[tap * cut.lanes + f] = product.base[tap / 3 * product.row + tap % 3 * product.column
                                                   + c * product.channel + (b * cut.lanes + f) * product.feature];
      transform_weights(taps, cut.lanes, to + c * cut.lanes, weights);
    }
  });
  parallel_for(pool, (tiles + kTiles - 1) / kTiles, [&](int64_t task) {
    const int64_t first = task * kTiles, count = std::min(kTiles, tiles - first);
    float *pixels = scratch(2, kProducts * kTiles * p.channels), *products = scratch(3, kProducts * kTiles * cut.lanes);
    transform_source(p, source, first, count, 0, p.channels, pixels);
    thread_local Block block;
    use_tiles(count, p.channels, cut.lanes, block);
    for (int64_t b = 0; b < cut.count; b++) {
      for (int64_t k = 0; k < kProducts; k++) {
        block.source = pixels + k * kTiles * p.channels;
        loops()->multiply(cut.q, block, 0, 1, 0, p.channels, packed + (b * kProducts + k) * weights,
                          products + k * kTiles * cut.lanes, cut.lanes, true);
      }
      for (int64_t i = 0; i < count; i++) {
        float *to[2][2];
        tile_pixels_of(p, first + i, destination + b * cut.lanes, to);
        transform_products(products + i * cut.lanes, kTiles * cut.lanes, cut.used(b), to);
      }
    }
  });
}

void multiply_all(ffi::ThreadPool &pool, std::vector<Product> &products, const float *source, float *destination) {
  if (products.size() == 1 && is_winograd(products[0].phase))
    return multiply_winograd(pool, products[0], source, destination);
  const Cut cut(products[0].phase.features);
  int64_t size = 0, tasks = 0;
  for (Product &product : products) {
    const Phase &p = product.phase;
    product.packed = size;
    size += cut.count * p.kernel_height * p.run() * cut.lanes;
    const int64_t rows = p.block_rows(kBlockPixels), images = p.block_images(kBlockPixels);
    product.bands = (p.rows + std::max<int64_t>(rows, 1) - 1) / std::max<int64_t>(rows, 1);
    product.groups = (p.images + images - 1) / images;
    product.first_task = tasks;
    tasks += p.columns ? product.bands * product.groups : 0;
  }
  float *packed = scratch(1, size);
  const int64_t count = products.size();
  parallel_for(pool, count * cut.count,
               [&](int64_t i) { pack(products[i / cut.count], cut, i % cut.count, packed); });
  parallel_for(pool, tasks, [&](int64_t task) {
    int64_t i = count - 1;
    while (products[i].first_task > task) i--;
    multiply(products[i], cut, task - products[i].first_task, source, packed, destination);
  });
}

/* ---- what XLA calls ---------------------------------------------------------------------------------- */

using Array = ffi::Buffer<ffi::F32, 4>;
using Parts = ffi::Buffer<ffi::F32, 5>;

/* The forward phase: x [N, H, W, C] seen from y [N, h, w, D] through a kernel [KH, KW, C, D]. */
Phase forward_phase(ffi::Span<const int64_t> x, ffi::Span<const int64_t> y, int64_t kernel_height,
                    int64_t kernel_width, int64_t stride, int64_t top, int64_t left) {
  return {x[0], x[1], x[2], x[3], y[1], y[2], y[3], y[1], y[2], 0, 0, 1, stride, -top, -left, kernel_height,
          kernel_width};
}

ffi::Error forward(ffi::RunId run, ffi::ThreadPool pool, Array x, Array kernel, ffi::Result<Array> y, int64_t stride,
                   int64_t top, int64_t left) {
  const auto k = kernel.dimensions();
  const int64_t c = k[2], d = k[3];
  if (!y->element_count()) return ffi::Error::Success();
  ask_for_huge_pages(run, y->untyped_data(), y->size_bytes());
  std::vector<Product> products(1);
  products[0] = {forward_phase(x.dimensions(), y->dimensions(), k[0], k[1], stride, top, left),
                 kernel.typed_data(), k[1] * c * d, c * d, d, 1, 0, 0, 0, 0};
  multiply_all(pool, products, x.typed_data(), y->typed_data());
  return ffi::Error::Success();
}

/* Of one axis: the pixels first, first + stride, ... of x are seen by kernel taps tap, tap + stride, ... alone. */
struct AxisPhase {
  int64_t count, taps, tap, shift;
  AxisPhase(int64_t size, int64_t kernel, int64_t stride, int64_t padding, int64_t first) {
    count = first < size ? (size - first + stride - 1) / stride : 0;
    tap = (first + padding) % stride;
    taps = tap < kernel ? (kernel - tap + stride - 1) / stride : 0;
    shift = (first + padding - tap) / stride - (taps - 1);      // of the last tap, the first in the gradient
  }
};

ffi::Error input_gradient(ffi::ThreadPool pool, Array gradient, Array kernel, ffi::Result<Array> x, int64_t stride,
                          int64_t top, int64_t left) {
  const auto k = kernel.dimensions(), g = gradient.dimensions(), s = x->dimensions();
  if (!x->element_count()) return ffi::Error::Success();
  const int64_t c = k[2], d = k[3];
  std::vector<Product> products;
  for (int64_t i = 0; i < stride; i++)
    for (int64_t j = 0; j < stride; j++) {
      const AxisPhase rows(s[1], k[0], stride, top, i), columns(s[2], k[1], stride, left, j);
      if (!rows.count || !columns.count) continue;
      const bool is_seen = rows.taps && columns.taps;
      const Phase phase = {g[0], g[1], g[2], d, s[1], s[2], c, rows.count, columns.count, i, j, stride, 1,
                           is_seen ? rows.shift : 0, is_seen ? columns.shift : 0,
                           is_seen ? rows.taps : 0, is_seen ? columns.taps : 0};
      const float *last = kernel.typed_data() + ((rows.tap + stride * (rows.taps - 1)) * k[1]
                                                 + columns.tap + stride * (columns.taps - 1)) * c * d;
      products.push_back({phase, last, -stride * k[1] * c * d, -stride * c * d, 1, d, 0, 0, 0, 0});
    }
  multiply_all(pool, products, gradient.typed_data(), x->typed_data());
  return ffi::Error::Success();
}

/* What one task makes of a kernel's gradient: sums over the images [first, last), of rows [t0, t1) of the kernel, of
   floats [r0, r1) of what each row sees of a pixel, and of blocks [b0, b1) of features. */
struct Share {
  int64_t first, last, t0, t1, r0, r1, b0, b1;
  int64_t rows() const { return t1 - t0; }
  int64_t run() const { return r1 - r0; }
  int64_t blocks() const { return b1 - b0; }
};

/* The share's features of the output's gradient at some pixels as [block][pixel][lanes]; zeros follow the last one. */
const float *gather_gradient(const Block &pixels, const Cut &cut, const Share &share, const float *gradient) {
  const int64_t count = pixels.destination_offsets.size(), size = count * cut.lanes;
  float *gathered = scratch(3, share.blocks() * size);
  for (int64_t i = 0; i < count; i++)
    for (int64_t b = share.b0; b < share.b1; b++) {
      float *to = gathered + (b - share.b0) * size + i * cut.lanes;
      std::memcpy(to, gradient + pixels.destination_offsets[i] + b * cut.lanes, cut.used(b) * sizeof(float));
      std::fill_n(to + cut.used(b), cut.lanes - cut.used(b), 0.0f);
    }
  return gathered;
}

/* Of one block of features: the pixels are read where they lie. */
void add_narrow(const Phase &p, const Cut &cut, const Share &share, Block &pixels, const float *gradient,
                float *sums) {
  const float *dense = p.features == cut.lanes ? gradient + pixels.destination_offsets[0]
                                               : gather_gradient(pixels, cut, share, gradient);
  pixels.source += share.t0 * pixels.row_stride;
  loops()->outer(cut.q, pixels, share.rows(), share.run(), loops()->tile_rows(cut.q), dense, sums);
}

/* Of many blocks: what they all read is packed first, kChunk floats of a row at a time, to stay in L2. Where it lies,
   pixels are a power of two apart, for the most part, and would share a few lines of L1. */
void add_wide(const Cut &cut, const Share &share, const Block &pixels, const float *gradient, float *sums) {
  const int64_t tile = loops()->tile_rows(cut.q), count = pixels.source_offsets.size();
  const int64_t padded = round_up(share.run(), tile), size = share.rows() * padded * cut.lanes;
  const float *gathered = gather_gradient(pixels, cut, share, gradient);
  thread_local Block tiles;
  tiles.source_offsets.resize(count);
  for (int64_t i = 0; i < count; i++) tiles.source_offsets[i] = i * tile;
  for (int64_t t = 0; t < share.rows(); t++)
    for (int64_t r = 0; r < share.run(); r += kChunk) {
      const int64_t run = std::min(kChunk, share.run() - r);
      float *packed = scratch(1, round_up(run, tile) * count);
      loops()->pack(cut.q, pixels, (share.t0 + t) * pixels.row_stride + share.r0 + r, run, packed);
      tiles.source = packed;
      for (int64_t b = 0; b < share.blocks(); b++)
        loops()->outer(cut.q, tiles, 1, run, tile * count, gathered + b * count * cut.lanes,
                       sums + b * size + (t * padded + r) * cut.lanes);
    }
}

void kernel_gradient_task(const Phase &p, const Cut &cut, const Share &share, const float *x, const float *gradient,
                          float *to) {
  const bool is_wide = cut.count > 1;
  const int64_t padded = round_up(share.run(), loops()->tile_rows(cut.q)), size = share.rows() * padded * cut.lanes;
  float *sums = scratch(2, share.blocks() * size);
  std::fill_n(sums, share.blocks() * size, 0.0f);
  thread_local Block pixels;
  const int64_t fitting = kGradientFloats / cut.lanes, most = is_wide ? std::min(kPixels, fitting) : fitting;
  const int64_t rows = p.block_rows(most), images = p.block_images(most);
  for (int64_t n = share.first; n < share.last; n += images)
    for (int64_t row = 0; row < p.rows; row += rows) {
      load_block(p, x, n, std::min(images, share.last - n), row, std::min(rows, p.rows - row),
                 !is_wide && padded > share.run(), pixels);
      if (is_wide) add_wide(cut, share, pixels, gradient, sums);
      else add_narrow(p, cut, share, pixels, gradient, sums);
    }
  for (int64_t b = 0; b < share.blocks(); b++)
    for (int64_t t = 0; t < share.rows(); t++)
      for (int64_t r = 0; r < share.run(); r++)
        std::memcpy(to + ((share.t0 + t) * p.run() + share.r0 + r) * p.features + (share.b0 + b) * cut.lanes,
                    sums + b * size + (t * padded + r) * cut.lanes, cut.used(share.b0 + b) * sizeof(float));
}

/* The same by Winograd's products, all rows of the kernel; [r0, r1) are channels. */
void winograd_gradient_task(const Phase &p, const Cut &cut, const Share &share, const float *x, const float *gradient,
                            float *to) {
  const int64_t tile = loops()->tile_rows(cut.q), channels = share.run(), size = round_up(channels, tile) * cut.lanes;
  float *sums = scratch(2, share.blocks() * kProducts * size),
        *pixels = scratch(0, kProducts * kTiles * channels + kMargin),
        *gradients = scratch(3, share.blocks() * kProducts * kTiles * cut.lanes);
  std::fill_n(sums, share.blocks() * kProducts * size, 0.0f);
  std::fill_n(gradients, share.blocks() * kProducts * kTiles * cut.lanes, 0.0f);
  thread_local Block rows;
  const int64_t end = share.last * tiles_of_image(p);
  for (int64_t start = share.first * tiles_of_image(p); start < end; start += kTiles) {
    const int64_t count = std::min(kTiles, end - start);
    transform_source(p, x, start, count, share.r0, channels, pixels);
    for (int64_t i = 0; i < count; i++)
      for (int64_t b = 0; b < share.blocks(); b++) {
        const float *from[2][2];
        tile_pixels_of(p, start + i, gradient + (share.b0 + b) * cut.lanes, from);
        transform_gradient(from, cut.used(share.b0 + b), gradients + (b * kProducts * kTiles + i) * cut.lanes,
                           kTiles * cut.lanes);
      }
    use_tiles(count, channels, 0, rows);
    for (int64_t k = 0; k < kProducts; k++) {
      rows.source = pixels + k * kTiles * channels;
      for (int64_t b = 0; b < share.blocks(); b++)
        loops()->outer(cut.q, rows, 1, channels, tile, gradients + (b * kProducts + k) * kTiles * cut.lanes,
                       sums + (b * kProducts + k) * size);
    }
  }
  for (int64_t b = 0; b < share.blocks(); b++)
    for (int64_t c = 0; c < channels; c++)
      transform_sums(sums + b * kProducts * size + c * cut.lanes, size, cut.used(share.b0 + b),
                     to + (share.r0 + c) * p.features + (share.b0 + b) * cut.lanes, p.channels * p.features);
}

/* partial [S, KH, KW, C, D]: of S parts of the images, for the caller to sum. */
ffi::Error kernel_gradient(ffi::ThreadPool pool, Array x, Array gradient, ffi::Result<Parts> partial,
                           int64_t stride, int64_t top, int64_t left) {
  const auto k = partial->dimensions();
  const Phase p = forward_phase(x.dimensions(), gradient.dimensions(), k[1], k[2], stride, top, left);
  const Cut cut(k[4]);
  const bool by_winograd = is_winograd(p);
  const int64_t parts = k[0], run = by_winograd ? p.channels : p.run();
  // Tasks for all threads, if it can be cut so; the results do not depend on the cuts.
  const int64_t tasks = pool.num_threads(), lanes = cut.lanes;
  const int64_t features = by_winograd ? kLeastFeatures
                                       : std::clamp(parts * cut.count * lanes / tasks, kLeastFeatures, kMostFeatures);
  const int64_t blocks = std::max<int64_t>(features / lanes, 1), groups = divided_up(cut.count, blocks);
  const int64_t wanted = divided_up(tasks, parts * groups), rows = by_winograd || wanted == 1 ? k[1] : 1;
  const int64_t row_cuts = k[1] / rows, chunks = divided_up(divided_up(run, kChunk), divided_up(wanted, row_cuts));
  const int64_t chunk = by_winograd ? kChunk : cut.count > 1 ? kChunk * chunks : run, run_cuts = divided_up(run, chunk);
  parallel_for(pool, parts * groups * row_cuts * run_cuts, [&](int64_t task) {
    const int64_t r = task % run_cuts, t = task / run_cuts % row_cuts, group = task / run_cuts / row_cuts % groups,
                  part = task / run_cuts / row_cuts / groups;
    const Share share = {part * p.images / parts, (part + 1) * p.images / parts, t * rows, (t + 1) * rows,
                         r * chunk, std::min((r + 1) * chunk, run), group * blocks,
                         std::min((group + 1) * blocks, cut.count)};
    float *to = partial->typed_data() + part * k[1] * k[2] * k[3] * k[4];
    (by_winograd ? winograd_gradient_task : kernel_gradient_task)(p, cut, share, x.typed_data(),
                                                                  gradient.typed_data(), to);
  });
  return ffi::Error::Success();
}

auto bind() {
  return ffi::Ffi::Bind().Ctx<ffi::ThreadPool>().Arg<Array>().Arg<Array>();
}

}  // namespace

/* Whether this processor has one of the vector units above. */
extern "C" int convolution_is_supported() { return loops() != nullptr; }

XLA_FFI_DEFINE_HANDLER_SYMBOL(convolution_forward, forward, ffi::Ffi::Bind().Ctx<ffi::RunId>().Ctx<ffi::ThreadPool>()
                              .Arg<Array>().Arg<Array>().Ret<Array>().Attr<int64_t>("stride").Attr<int64_t>("top")
                              .Attr<int64_t>("left"));
XLA_FFI_DEFINE_HANDLER_SYMBOL(convolution_input_gradient, input_gradient, bind().Ret<Array>()
                              .Attr<int64_t>("stride").Attr<int64_t>("top").Attr<int64_t>("left"));
XLA_FFI_DEFINE_HANDLER_SYMBOL(convolution_kernel_gradient, kernel_gradient, bind()
                              .Ret<Parts>().Attr<int64_t>("stride").Attr<int64_t>("top")
                              .Attr<int64_t>("left"));
