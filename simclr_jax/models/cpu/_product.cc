/* Products of rows with rows, A [M, K] times B [N, K] transposed, for one thread: the caller shares out the rows
   of A among threads. B is packed once and read many times, as the convolutions' weights are. */

#include <algorithm>
#include <cstdint>

#include "_tiles.h"

namespace {

constexpr int64_t kDepth = 512;                 // columns of A and B in one pass: A's rows and a block of B stay in L2
constexpr int64_t kLine = 16;                   // floats of a cache line

int64_t block_rows() { return loops()->lanes * loops()->most; }

}  // namespace

/* packed [blocks of rows, K, rows of a block]: the rows of B, each times its scale; the last block ends in zeros.
   All blocks have 64 rows or a divisor of them. */
extern "C" void product_pack(const float *b, const float *scale, int64_t n, int64_t k, float *packed) {
  const int64_t lanes = block_rows();
  for (int64_t first = 0; first < n; first += lanes, packed += lanes * k) {
    const int64_t used = std::min(lanes, n - first);
    for (int64_t start = 0; start < k; start += kLine) {
      const int64_t end = std::min(start + kLine, k);
      for (int64_t i = 0; i < used; i++)
        for (int64_t c = start; c < end; c++) packed[c * lanes + i] = b[(first + i) * k + c] * scale[first + i];
      for (int64_t c = start; c < end; c++) std::fill_n(packed + c * lanes + used, lanes - used, 0.0f);
    }
  }
}

/* out [M, N], of A and the packed B. */
extern "C" void product_multiply(const float *a, const float *packed, int64_t m, int64_t n, int64_t k, float *out) {
  const int64_t lanes = block_rows();
  Block block;
  block.source = a;
  block.row_stride = 0;
  for (int64_t i = 0; i < m; i++) {
    block.source_offsets.push_back(i * k);
    block.destination_offsets.push_back(i * n);
  }
  for (int64_t start = 0; start < k; start += kDepth)
    for (int64_t first = 0; first < n; first += lanes)
      loops()->multiply(loops()->most, block, 0, 1, start, std::min(kDepth, k - start), packed + first * k + start * lanes,
                        out + first, std::min(lanes, n - first), start == 0);
}
