// Shares independent tasks among threads, without a pool of its own.
#pragma once

#include <cstdint>

namespace fastdigin {

// Runs body(data, task, worker) for every task in [0, tasks), in any order; worker is below
// `threads` and no two calls with the same worker overlap.
using TaskBody = void (*)(void* data, std::int64_t task, int worker);
void parallel_for(std::int64_t tasks, int threads, TaskBody body, void* data);

void use_openmp(void* gomp_parallel, void* omp_get_thread_num);

}  // namespace fastdigin
