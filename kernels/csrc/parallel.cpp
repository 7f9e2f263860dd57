#include "parallel.h"

#include <algorithm>
#include <atomic>
#include <system_error>
#include <thread>
#include <vector>

namespace fastdigin {
namespace {

// What -fopenmp makes of "#pragma omp parallel". Called by address, because torch brings an OpenMP
// library of its own under another name: linking to the system's would start a second pool, whose
// idle threads spin on the cores that the first one needs.
using GompParallel = void (*)(void (*function)(void*), void* data, unsigned threads, unsigned flags);
using ThreadNumber = int (*)();
std::atomic<GompParallel> gomp_parallel_function{nullptr};
std::atomic<ThreadNumber> thread_number_function{nullptr};

constexpr int kMostWorkers = 256;

// Tasks [next, end), a line of the cache (or the pair that is fetched together) to itself.
struct alignas(128) Share {
  std::atomic<std::int64_t> next;
  std::int64_t end;
};

// Every worker has a share of neighbouring tasks, as torch's own operations share them, so that a
// tensor that a core has written is read by the same core; who is done takes from the others'.
struct Region {
  TaskBody body;
  void* data;
  int workers;
  Share shares[kMostWorkers];
};

void work(Region& region, int worker) {
  for (int i = 0; i < region.workers; ++i) {
    Share& share = region.shares[(worker + i) % region.workers];
    for (;;) {
      const std::int64_t task = share.next.fetch_add(1, std::memory_order_relaxed);
      if (task >= share.end) break;
      region.body(region.data, task, worker);
    }
  }
}

void work_as_omp_thread(void* region) {
  work(*static_cast<Region*>(region), thread_number_function.load()());
}

}  // namespace

void use_openmp(void* gomp_parallel, void* omp_get_thread_num) {
  gomp_parallel_function = reinterpret_cast<GompParallel>(gomp_parallel);
  thread_number_function = reinterpret_cast<ThreadNumber>(omp_get_thread_num);
}

void parallel_for(std::int64_t tasks, int threads, TaskBody body, void* data) {
  Region region;
  region.body = body;
  region.data = data;
  region.workers = static_cast<int>(
      std::min<std::int64_t>(tasks, std::clamp(threads, 1, kMostWorkers)));
  for (int i = 0; i < region.workers; ++i) {
    region.shares[i].next = tasks * i / region.workers;
    region.shares[i].end = tasks * (i + 1) / region.workers;
  }
  if (region.workers <= 1) {
    work(region, 0);
  } else if (const GompParallel gomp_parallel = gomp_parallel_function) {
    gomp_parallel(work_as_omp_thread, &region, static_cast<unsigned>(region.workers), 0);
  } else {
    std::vector<std::thread> others;
    others.reserve(region.workers - 1);
    try {
      for (int i = 1; i < region.workers; ++i) others.emplace_back([&region, i] { work(region, i); });
    } catch (const std::system_error&) {
      // No more threads to be had: those there are do the work.
    }
    work(region, 0);
    for (std::thread& other : others) other.join();
  }
}

}  // namespace fastdigin
