// What each instruction set provides: the kernels as tables of functions.
#pragma once

#include <cstddef>
#include <cstdint>

#include "fastdigin_cpu.h"

namespace fastdigin {

using AttentionForward = FastdiginAttentionForward;
using AttentionBackward = FastdiginAttentionBackward;
using GroupNormSilu = FastdiginGroupNormSilu;
using Geglu = FastdiginGeglu;

// A kernel works on one task at a time with scratch memory (aligned to 64 bytes) that is private to
// the call. What a task computes depends on its own sample and head alone, never on the batch, the
// threads or the strides, so results repeat to the last bit.
struct Kernels {
  std::size_t (*attention_forward_scratch)(const AttentionForward&);  // bytes
  std::int64_t (*attention_forward_tasks)(const AttentionForward&);
  void (*attention_forward)(const AttentionForward&, std::int64_t task, float* scratch);

  std::size_t (*attention_backward_scratch)(const AttentionBackward&);  // bytes
  std::int64_t (*attention_backward_tasks)(const AttentionBackward&);
  void (*attention_backward)(const AttentionBackward&, std::int64_t task, float* scratch);

  std::size_t (*group_norm_silu_scratch)(const GroupNormSilu&);  // bytes
  std::int64_t (*group_norm_silu_tasks)(const GroupNormSilu&);
  void (*group_norm_silu_forward)(const GroupNormSilu&, std::int64_t task, float* scratch);
  void (*group_norm_silu_backward)(const GroupNormSilu&, std::int64_t task, float* scratch);

  std::int64_t (*geglu_tasks)(const Geglu&);
  void (*geglu_forward)(const Geglu&, std::int64_t task, float*);
  void (*geglu_backward)(const Geglu&, std::int64_t task, float*);
};

namespace portable {
extern const Kernels kernels;
}
namespace avx2 {
extern const Kernels kernels;
}
namespace avx512 {
extern const Kernels kernels;
}

}  // namespace fastdigin
