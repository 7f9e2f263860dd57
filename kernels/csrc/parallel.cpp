#include "parallel.h"

#include <algorithm>
#include <new>
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

struct Region {
  Work work;
  void* data;
  Share* shares;
  int workers;
};

void work_as(Region& region, int worker) {
  region.work(region.data, Tasks(region.shares, region.workers, worker));
}

void work_as_openmp_thread(void* region) {
  work_as(*static_cast<Region*>(region), thread_number_function.load()());
}

}  // namespace

void use_openmp(void* gomp_parallel, void* omp_get_thread_num) {
  gomp_parallel_function = reinterpret_cast<GompParallel>(gomp_parallel);
  thread_number_function = reinterpret_cast<ThreadNumber>(omp_get_thread_num);
}

void parallel_for(std::int64_t count, int threads, Work work, void* data) {
  const int workers = static_cast<int>(
      std::min<std::int64_t>(std::max<std::int64_t>(count, 1), std::clamp(threads, 1, kMostWorkers)));
  // Made one by one: an array of them would set the lines of all that there might be.
  alignas(Share) unsigned char memory[kMostWorkers * sizeof(Share)];
  Share* const shares = reinterpret_cast<Share*>(memory);
  for (int i = 0; i < workers; ++i) {
    new (shares + i) Share{count * i / workers, count * (i + 1) / workers};
  }
  Region region{work, data, shares, workers};
  if (workers == 1) {
    work_as(region, 0);
  } else if (const GompParallel gomp_parallel = gomp_parallel_function) {
    gomp_parallel(work_as_openmp_thread, &region, static_cast<unsigned>(workers), 0);
  } else {
    std::vector<std::thread> others;
    others.reserve(workers - 1);
    try {
      for (int i = 1; i < workers; ++i) {
        others.emplace_back([&region, i] { work_as(region, i); });
      }
    } catch (const std::system_error&) {
      // No more threads to be had: those there are do the work.
    }
    work_as(region, 0);
    for (std::thread& other : others) other.join();
  }
}

}  // namespace fastdigin
