/* Threefry-2x32 of 20 rounds (Salmon et al. 2011), the hash behind jax.random: the same bits as JAX's. */

#include <algorithm>
#include <cstdint>

#include "_loops.h"

namespace {

using Words = ffi::Buffer<ffi::U32, 1>;
using Result = ffi::Result<Words>;

constexpr int64_t kBlock = 4096;        // words of a lone key that a thread makes at a time
constexpr int kRotations[2][4] = {{13, 15, 26, 6}, {17, 29, 16, 24}};

/* By one key: words `first` to `last` of its counts. */
VECTORIZED void hash(uint32_t key1, uint32_t key2, const uint32_t *count1, const uint32_t *count2, uint32_t *out1,
                     uint32_t *out2, int64_t first, int64_t last) {
  const uint32_t keys[3] = {key1, key2, key1 ^ key2 ^ 0x1BD11BDA};
#pragma GCC ivdep
  for (int64_t i = first; i < last; i++) {
    uint32_t x = count1[i] + key1, y = count2[i] + key2;
#pragma GCC unroll 5
    for (int group = 0; group < 5; group++) {
#pragma GCC unroll 4
      for (int turn = 0; turn < 4; turn++) {
        const int rotation = kRotations[group % 2][turn];
        x += y;
        y = (y << rotation | y >> (32 - rotation)) ^ x;
      }
      x += keys[(group + 1) % 3];
      y += keys[(group + 2) % 3] + group + 1;
    }
    out1[i] = x;
    out2[i] = y;
  }
}

/* Keys [K]; counts [C], which all keys share, or [K], one for each -> two words [K C] or [K]. */
ffi::Error threefry_2x32(ffi::ThreadPool pool, Words key1, Words key2, Words count1, Words count2, Result out1,
                         Result out2) {
  const int64_t keys = key1.dimensions()[0], counts = out1->dimensions()[0] / std::max<int64_t>(keys, 1);
  const int64_t step = count1.dimensions()[0] != counts, blocks = (counts + kBlock - 1) / kBlock;
  parallel_for(pool, keys > 1 ? 1 : blocks, [&](int64_t block) {
    const int64_t first = block * kBlock, last = keys > 1 ? counts : std::min(counts, first + kBlock);
    for (int64_t k = 0; k < keys; k++)
      hash(key1.typed_data()[k], key2.typed_data()[k], count1.typed_data() + k * step, count2.typed_data() + k * step,
           out1->typed_data() + k * counts, out2->typed_data() + k * counts, first, last);
  });
  return ffi::Error::Success();
}

}  // namespace

XLA_FFI_DEFINE_HANDLER_SYMBOL(threefry, threefry_2x32, ffi::Ffi::Bind().Ctx<ffi::ThreadPool>()
                              .Arg<Words>().Arg<Words>().Arg<Words>().Arg<Words>().Ret<Words>().Ret<Words>());
