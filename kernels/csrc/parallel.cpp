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
std::atomic<GompParallel> gomp_parallel_function{nullptr};

struct Region {
  TaskBody body;
  void* data;
  std::int64_t tasks;
  std::atomic<std::int64_t> next_task{0};
  std::atomic<int> next_worker{0};
};

void work(void* region_pointer) {
  Region& region = *static_cast<Region*>(region_pointer);
  const int worker = region.next_worker.fetch_add(1, std::memory_order_relaxed);
  for (;;) {
    const std::int64_t task = region.next_task.fetch_add(1, std::memory_order_relaxed);
    if (task >= region.tasks) return;
    region.body(region.data, task, worker);
  }
}

}  // namespace

void use_openmp(void* gomp_parallel) {
  gomp_parallel_function = reinterpret_cast<GompParallel>(gomp_parallel);
}

void parallel_for(std::int64_t tasks, int threads, TaskBody body, void* data) {
  Region region{body, data, tasks};
  const int workers = static_cast<int>(std::min<std::int64_t>(tasks, std::max(threads, 1)));
  if (workers <= 1) {
    work(&region);
  } else if (const GompParallel gomp_parallel = gomp_parallel_function) {
    gomp_parallel(work, &region, static_cast<unsigned>(workers), 0);
  } else {
    std::vector<std::thread> others;
    others.reserve(workers - 1);
    try {
      while (static_cast<int>(others.size()) < workers - 1) others.emplace_back(work, &region);
    } catch (const std::system_error&) {
      // No more threads to be had: those there are do the work.
    }
    work(&region);
    for (std::thread& other : others) other.join();
  }
}

}  // namespace fastdigin
