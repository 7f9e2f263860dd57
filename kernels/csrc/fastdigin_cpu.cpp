#include "fastdigin_cpu.h"

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

constexpr std::size_t kAlignment = 64;

struct AlignedDelete {
  void operator()(float* p) const { ::operator delete(p, std::align_val_t{kAlignment}); }
};

// Runs kernel(arguments, task, scratch) for all tasks, with scratch memory for each worker.
template <class Arguments>
std::int32_t run(const Arguments& arguments, std::int64_t tasks, std::size_t scratch_bytes,
                 void (*kernel)(const Arguments&, std::int64_t, float*), std::int32_t threads) {
  if (tasks <= 0) return kFastdiginOk;
  if (threads < 1) threads = 1;
  if (threads > tasks) threads = static_cast<std::int32_t>(tasks);
  const std::size_t stride = (scratch_bytes + kAlignment - 1) / kAlignment * kAlignment;
  std::unique_ptr<float, AlignedDelete> scratch(static_cast<float*>(::operator new(
      stride * static_cast<std::size_t>(threads), std::align_val_t{kAlignment}, std::nothrow)));
  if (scratch == nullptr) return kFastdiginOutOfMemory;

  struct Context {
    const Arguments& arguments;
    void (*kernel)(const Arguments&, std::int64_t, float*);
    float* scratch;
    std::size_t floats;
  } context{arguments, kernel, scratch.get(), stride / sizeof(float)};
  parallel_for(
      tasks, threads,
      [](void* data, std::int64_t task, int worker) {
        const Context& c = *static_cast<Context*>(data);
        c.kernel(c.arguments, task, c.scratch + c.floats * static_cast<std::size_t>(worker));
      },
      &context);
  return kFastdiginOk;
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

std::int32_t fastdigin_attention_forward(const FastdiginAttentionForward* arguments,
                                         std::int32_t threads) {
  const fastdigin::Kernels& kernels = *fastdigin::kernels;
  return fastdigin::run(*arguments, kernels.attention_forward_tasks(*arguments),
                        kernels.attention_forward_scratch(*arguments), kernels.attention_forward,
                        threads);
}

std::int32_t fastdigin_attention_backward(const FastdiginAttentionBackward* arguments,
                                          std::int32_t threads) {
  const fastdigin::Kernels& kernels = *fastdigin::kernels;
  return fastdigin::run(*arguments, kernels.attention_backward_tasks(*arguments),
                        kernels.attention_backward_scratch(*arguments), kernels.attention_backward,
                        threads);
}

std::int32_t fastdigin_group_norm_silu_forward(const FastdiginGroupNormSilu* arguments,
                                               std::int32_t threads) {
  const fastdigin::Kernels& kernels = *fastdigin::kernels;
  return fastdigin::run(*arguments, kernels.group_norm_silu_tasks(*arguments),
                        kernels.group_norm_silu_scratch(*arguments),
                        kernels.group_norm_silu_forward, threads);
}

std::int32_t fastdigin_group_norm_silu_backward(const FastdiginGroupNormSilu* arguments,
                                                std::int32_t threads) {
  const fastdigin::Kernels& kernels = *fastdigin::kernels;
  return fastdigin::run(*arguments, kernels.group_norm_silu_tasks(*arguments),
                        kernels.group_norm_silu_scratch(*arguments),
                        kernels.group_norm_silu_backward, threads);
}

std::int32_t fastdigin_geglu_forward(const FastdiginGeglu* arguments, std::int32_t threads) {
  const fastdigin::Kernels& kernels = *fastdigin::kernels;
  return fastdigin::run(*arguments, kernels.geglu_tasks(*arguments), 0, kernels.geglu_forward,
                        threads);
}

std::int32_t fastdigin_geglu_backward(const FastdiginGeglu* arguments, std::int32_t threads) {
  const fastdigin::Kernels& kernels = *fastdigin::kernels;
  return fastdigin::run(*arguments, kernels.geglu_tasks(*arguments), 0, kernels.geglu_backward,
                        threads);
}
}
