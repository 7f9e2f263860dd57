// Shares independent tasks among threads, without a pool of its own.
#pragma once

#include <atomic>
#include <cstdint>

namespace fastdigin {

// Tasks [next, end). Two lines of the cache, which are fetched together, to itself.
struct alignas(128) Share {
  std::atomic<std::int64_t> next;
  std::int64_t end;
};

// Gives one worker its tasks: those of its own share, then what others have left of theirs. A share
// is of neighbouring tasks, as in torch's own operations, so that what a core has written is read
// by the same core.
class Tasks {
 public:
  Tasks(Share* shares, int workers, int worker)
      : shares_(shares), workers_(workers), worker_(worker) {}

  // The next task, or -1 if there is none.
  std::int64_t next() {
    for (; taken_from_ < workers_; ++taken_from_) {
      Share& share = shares_[(worker_ + taken_from_) % workers_];
      const std::int64_t task = share.next.fetch_add(1, std::memory_order_relaxed);
      if (task < share.end) return task;
    }
    return -1;
  }

 private:
  Share* shares_;
  int workers_, worker_, taken_from_ = 0;
};

// Calls work(data, tasks) in up to `threads` threads, which together are given every task in
// [0, count) once, in any order.
using Work = void (*)(void* data, Tasks tasks);
void parallel_for(std::int64_t count, int threads, Work work, void* data);

void use_openmp(void* gomp_parallel, void* omp_get_thread_num);

}  // namespace fastdigin
