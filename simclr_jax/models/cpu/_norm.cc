/* The sums of batch normalisation over the rows of x [M, C], for XLA on a CPU, in one pass over memory.

   XLA writes the products that are to be summed to memory first. Each of S parts of the rows is summed by one
   thread, in blocks, so that rounding does not grow with M; the caller adds up the parts. */

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <vector>

#include "_loops.h"

namespace {

constexpr int64_t kBlockRows = 128;

using Matrix = ffi::Buffer<ffi::F32, 2>;
using Vector = ffi::Buffer<ffi::F32, 1>;
using Parts = ffi::Buffer<ffi::F32, 3>;

/* Adds four rows of x and of x * x. */
VECTORIZED void add_moments(const float *x, int64_t c, float *sums, float *squares) {
#pragma GCC ivdep
  for (int64_t i = 0; i < c; i++) {
    const float p = x[i], q = x[c + i], r = x[2 * c + i], s = x[3 * c + i];
    sums[i] += (p + q) + (r + s);
    squares[i] += (p * p + q * q) + (r * r + s * s);
  }
}

VECTORIZED void add_moments_of_row(const float *x, int64_t c, float *sums, float *squares) {
#pragma GCC ivdep
  for (int64_t i = 0; i < c; i++) {
    sums[i] += x[i];
    squares[i] += x[i] * x[i];
  }
}

/* What the gradient is counted by: 1, or where there is a rectifier, whether it let the value pass. */
struct Line {
  const float *mean, *slope, *offset;
};

/* Adds two rows of g and of g * (x - mean). */
template <bool is_rectified>
inline __attribute__((always_inline)) void add_products(const float *g, const float *x, const Line &line, int64_t c,
                                                        float *sums, float *products) {
  const float *mean = line.mean, *slope = line.slope, *offset = line.offset;
#pragma GCC ivdep
  for (int64_t i = 0; i < c; i++) {
    const float a = x[i] - mean[i], b = x[c + i] - mean[i];
    const float p = !is_rectified || a * slope[i] + offset[i] > 0 ? g[i] : 0.0f;
    const float q = !is_rectified || b * slope[i] + offset[i] > 0 ? g[c + i] : 0.0f;
    sums[i] += p + q;
    products[i] += p * a + q * b;
  }
}

VECTORIZED void add_all(const float *g, const float *x, const Line &line, int64_t c, float *sums, float *products) {
  add_products<false>(g, x, line, c, sums, products);
}

VECTORIZED void add_rectified(const float *g, const float *x, const Line &line, int64_t c, float *sums,
                              float *products) {
  add_products<true>(g, x, line, c, sums, products);
}

/* Sums of part `part` of the rows: sum(first, last, sums [2, C]) for a block of rows. */
template <typename Sum>
void sum_parts(ffi::ThreadPool &pool, int64_t rows, ffi::Result<Parts> &parts, const Sum &sum) {
  const int64_t count = parts->dimensions()[0], c = parts->dimensions()[2];
  parallel_for(pool, count, [&](int64_t part) {
    float *total = parts->typed_data() + part * 2 * c, *block = scratch(2, 2 * c);
    std::fill_n(total, 2 * c, 0.0f);
    const int64_t last = (part + 1) * rows / count;
    for (int64_t first = part * rows / count; first < last; first += kBlockRows) {
      std::fill_n(block, 2 * c, 0.0f);
      sum(first, std::min(first + kBlockRows, last), block);
      for (int64_t i = 0; i < 2 * c; i++) total[i] += block[i];
    }
  });
}

/* x [M, C] -> [S, 2, C]: of x and of its squares. */
ffi::Error moments(ffi::ThreadPool pool, Matrix x, ffi::Result<Parts> parts) {
  const int64_t c = x.dimensions()[1];
  const float *from = x.typed_data();
  sum_parts(pool, x.dimensions()[0], parts, [&](int64_t first, int64_t last, float *sums) {
    for (; first + 4 <= last; first += 4) add_moments(from + first * c, c, sums, sums + c);
    for (; first < last; first++) add_moments_of_row(from + first * c, c, sums, sums + c);
  });
  return ffi::Error::Success();
}

/* g, x [M, C] -> [S, 2, C]: of g and of g * (x - mean); rectified, only where (x - mean) * slope + offset > 0. */
ffi::Error gradient_sums(ffi::ThreadPool pool, Matrix g, Matrix x, Vector mean, Vector slope, Vector offset,
                         ffi::Result<Parts> parts, bool is_rectified) {
  const int64_t c = x.dimensions()[1];
  const Line line = {mean.typed_data(), slope.typed_data(), offset.typed_data()};
  sum_parts(pool, x.dimensions()[0], parts, [&](int64_t first, int64_t last, float *sums) {
    const auto add = is_rectified ? add_rectified : add_all;
    for (; first + 2 <= last; first += 2)
      add(g.typed_data() + first * c, x.typed_data() + first * c, line, c, sums, sums + c);
    if (first < last) {                         // one row is left: with another one that counts nothing
      float *padded = scratch(3, 4 * c);
      std::copy_n(g.typed_data() + first * c, c, padded);
      std::fill_n(padded + c, c, 0.0f);
      std::copy_n(x.typed_data() + first * c, c, padded + 2 * c);
      std::copy_n(line.mean, c, padded + 3 * c);
      add(padded, padded + 2 * c, line, c, sums, sums + c);
    }
  });
  return ffi::Error::Success();
}

/* x itself, in its own memory where XLA lets the result have it. */
ffi::Error keep_array(ffi::AnyBuffer x, ffi::Result<ffi::AnyBuffer> kept) {
  if (kept->untyped_data() != x.untyped_data()) std::memcpy(kept->untyped_data(), x.untyped_data(), x.size_bytes());
  return ffi::Error::Success();
}

}  // namespace

XLA_FFI_DEFINE_HANDLER_SYMBOL(keep, keep_array, ffi::Ffi::Bind().Arg<ffi::AnyBuffer>().Ret<ffi::AnyBuffer>());
XLA_FFI_DEFINE_HANDLER_SYMBOL(norm_moments, moments,
                              ffi::Ffi::Bind().Ctx<ffi::ThreadPool>().Arg<Matrix>().Ret<Parts>());
XLA_FFI_DEFINE_HANDLER_SYMBOL(norm_gradient_sums, gradient_sums, ffi::Ffi::Bind().Ctx<ffi::ThreadPool>()
                              .Arg<Matrix>().Arg<Matrix>().Arg<Vector>().Arg<Vector>().Arg<Vector>().Ret<Parts>()
                              .Attr<bool>("is_rectified"));
