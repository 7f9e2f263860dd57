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
using Conv3x3 = FastdiginConv3x3;

// A kernel works on one task at a time with scratch memory (aligned to 64 bytes) that is private to
// the call. What a task computes depends on its own sample and head alone, never on the batch, the
// threads or the strides, so results repeat to the last bit.
template <class Arguments>
struct Kernel {
  std::int64_t (*tasks)(const Arguments&);
  std::size_t (*scratch)(const Arguments&);  // bytes
  void (*run)(const Arguments&, std::int64_t task, float* scratch);
};

struct Kernels {
  Kernel<AttentionForward> attention_forward;
  Kernel<AttentionBackward> attention_backward;
  Kernel<GroupNormSilu> group_norm_silu_forward, group_norm_silu_backward;
  Kernel<Geglu> geglu_forward, geglu_backward;
  Kernel<Conv3x3> conv3x3;
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
