/* What the compiled loops share: XLA's own threads, and buffers that a thread keeps. */

#ifndef SIMCLR_JAX_LOOPS_H_
#define SIMCLR_JAX_LOOPS_H_

#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <cstdio>
#include <fstream>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#if defined(__linux__)
#include <sys/mman.h>
#endif

#include "xla/ffi/api/ffi.h"

namespace ffi = xla::ffi;

/* For loops that the compiler makes vectors of: one form for each vector unit. */
#if defined(__x86_64__) && defined(__GLIBC__) && defined(__GNUC__) && !defined(__clang__)
#define VECTORIZED __attribute__((target_clones("arch=x86-64-v4", "arch=x86-64-v3", "default")))
#else
#define VECTORIZED
#endif

/* Calls task(0) ... task(count - 1) on XLA's own threads. The caller takes its share, and waits for nothing
   but tasks that run: with all the threads busy elsewhere it does them all itself. */
template <typename Task>
void parallel_for(ffi::ThreadPool &pool, int64_t count, const Task &task) {
  struct Work {
    std::atomic<int64_t> next{0};
    int64_t done = 0;
    std::mutex mutex;
    std::condition_variable changed;
  };
  auto work = std::make_shared<Work>();
  auto loop = [work, count, &task] {
    int64_t finished = 0;
    for (int64_t i; (i = work->next.fetch_add(1)) < count; finished++) task(i);
    if (!finished) return;                      // `task` may be gone by now
    std::lock_guard<std::mutex> lock(work->mutex);
    work->done += finished;
    work->changed.notify_one();
  };
  const int64_t helpers = std::min<int64_t>(pool.num_threads(), count) - 1;
  for (int64_t i = 0; i < helpers; i++) pool.Schedule(decltype(loop)(loop));
  loop();
  std::unique_lock<std::mutex> lock(work->mutex);
  work->changed.wait(lock, [&] { return work->done == count; });
}

/* XLA takes one block from the system for all that a run of a program needs, and gives it back after it: each page of it
   comes by a fault, a fifth of the processor time of a small step. Asks once a run that the block around `data` come
   in pages of 2 MiB; what is there already stays as it is. No advice changes a result, nor the address space. */
inline void ask_for_huge_pages(ffi::RunId run, const void *data, size_t bytes) {
#if defined(MADV_HUGEPAGE)
  static std::atomic<int64_t> last{-1};
  if (bytes < (2 << 20) || last.exchange(run.run_id) == run.run_id) return;
  std::ifstream maps("/proc/self/maps");
  unsigned long first, end;
  for (std::string line; std::getline(maps, line);) {
    if (std::sscanf(line.c_str(), "%lx-%lx", &first, &end) != 2 || end <= (uintptr_t)data) continue;
    const bool is_block = first <= (uintptr_t)data && line.back() != ']';       // as [heap], which malloc keeps
    if (is_block) madvise((void *)first, end - first, MADV_HUGEPAGE);
    return;
  }
#endif
}

/* A buffer that its thread keeps for the next call. */
inline float *scratch(int which, size_t size) {
  thread_local std::vector<float> buffers[4];
  if (buffers[which].size() < size) buffers[which].resize(size);
  return buffers[which].data();
}

#endif
