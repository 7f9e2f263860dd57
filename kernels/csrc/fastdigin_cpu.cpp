#include "fastdigin_cpu.h"

#include <atomic>
#include <cstddef>
#include <cstdlib>
#include <memory>
#include <new>

#include "kernels.h"
#include "parallel.h"

namespace fastdigin {
namespace {

std::uint32_t features_of_processor() {
  std::uint32_t features = 0;
#if defined(FASTDIGIN_X86)
  __builtin_cpu_init();
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) features |= kFastdiginAvx2;
  if (__builtin_cpu_supports("avx512f")) features |= kFastdiginAvx512f;
#endif
  return features;
}

const Kernels* choose_kernels(std::uint32_t features) {
#if defined(FASTDIGIN_X86)
  if (features & kFastdiginAvx512f) return &avx512::kernels;
  if (features & kFastdiginAvx2) return &avx2::kernels;
#endif
  static_cast<void>(features);
  return &portable::kernels;
}

const Kernels* kernels = choose_kernels(features_of_processor());

// A page: where scratch memory begins decides which of its rows share lines of the cache with others
// (of two threads one was 15% slower).
constexpr std::size_t kAlignment = 4096;
constexpr std::size_t kMostKept = 8 << 20;  // bytes a thread

struct AlignedDelete {
  void operator()(float* p) const { ::operator delete(p, std::align_val_t{kAlignment}); }
};
using Memory = std::unique_ptr<float, AlignedDelete>;

// Scratch memory of a thread, kept for its next call: small calls would spend most of their time on new
// pages. Large ones do not notice.
class Scratch {
 public:
  // Uninitialised; null where there is no memory.
  float* get(std::size_t bytes) {
    if (bytes > bytes_) {
      memory_.reset();
      memory_.reset(static_cast<float*>(
          ::operator new(bytes, std::align_val_t{kAlignment}, std::nothrow)));
      bytes_ = memory_ == nullptr ? 0 : bytes;
    }
    return memory_.get();
  }

  void release_if_large() {
    if (bytes_ > kMostKept) *this = Scratch();
  }

 private:
  Memory memory_;
  std::size_t bytes_ = 0;
};

thread_local Scratch scratch_of_thread;

// Runs a kernel's tasks, with scratch memory for each thread.
template <class Arguments>
std::int32_t run(const Kernel<Arguments>& kernel, const Arguments* arguments,
                 std::int32_t threads) {
  struct Context {
    const Kernel<Arguments>& kernel;
    const Arguments& arguments;
    std::size_t scratch_bytes;
    std::atomic<bool> out_of_memory;
  } context{kernel, *arguments, kernel.scratch(*arguments), false};
  parallel_for(
      kernel.tasks(*arguments), threads,
      [](void* data, Tasks tasks) {
        Context& c = *static_cast<Context*>(data);
        float* const scratch = scratch_of_thread.get(c.scratch_bytes);
        if (scratch == nullptr && c.scratch_bytes > 0) {
          c.out_of_memory = true;
          return;
        }
        for (std::int64_t task = tasks.next(); task >= 0; task = tasks.next()) {
          c.kernel.run(c.arguments, task, scratch);
        }
        scratch_of_thread.release_if_large();
      },
      &context);
  return context.out_of_memory ? kFastdiginOutOfMemory : kFastdiginOk;
}

}  // namespace
}  // namespace fastdigin

extern "C" {

std::int32_t fastdigin_abi_version() { return kFastdiginAbiVersion; }

std::uint32_t fastdigin_cpu_features() { return fastdigin::features_of_processor(); }

void fastdigin_limit_features(std::uint32_t features) {
  fastdigin::kernels = fastdigin::choose_kernels(features & fastdigin::features_of_processor());
}

void fastdigin_use_openmp(void* gomp_parallel, void* omp_get_thread_num) {
  fastdigin::use_openmp(gomp_parallel, omp_get_thread_num);
}

// The functions that run a kernel.
#define FASTDIGIN_RUN(name, Arguments)                                              \
  std::int32_t fastdigin_##name(const Arguments* arguments, std::int32_t threads) { \
    return fastdigin::run(fastdigin::kernels->name, arguments, threads);            \
  }
FASTDIGIN_RUN(attention_forward, FastdiginAttentionForward)
FASTDIGIN_RUN(attention_backward, FastdiginAttentionBackward)
FASTDIGIN_RUN(group_norm_silu_forward, FastdiginGroupNormSilu)
FASTDIGIN_RUN(group_norm_silu_backward, FastdiginGroupNormSilu)
FASTDIGIN_RUN(geglu_forward, FastdiginGeglu)
FASTDIGIN_RUN(geglu_backward, FastdiginGeglu)
FASTDIGIN_RUN(conv3x3, FastdiginConv3x3)
}
