// C ABI of the CPU kernels, loaded with ctypes by fastdigin_kernels/common/native.py.
//
// All tensors are fp32. Strides count floats. Every function returns kFastdiginOk, or
// kFastdiginOutOfMemory with its outputs undefined; its arguments are checked by the caller.
#pragma once

#include <cstdint>

#if defined(_WIN32)
#define FASTDIGIN_EXPORT __declspec(dllexport)
#else
#define FASTDIGIN_EXPORT __attribute__((visibility("default")))
#endif

// Raised whenever a signature or the meaning of a value below changes; native.py refuses any other.
inline constexpr std::int32_t kFastdiginAbiVersion = 4;

// Bits of fastdigin_cpu_features(); native.py names them in this order.
inline constexpr std::uint32_t kFastdiginAvx2 = 1u << 0;  // AVX2 with FMA
inline constexpr std::uint32_t kFastdiginAvx512f = 1u << 1;

inline constexpr std::int32_t kFastdiginOk = 0;
inline constexpr std::int32_t kFastdiginOutOfMemory = 1;

extern "C" {

FASTDIGIN_EXPORT std::int32_t fastdigin_abi_version();

// Instruction sets that this processor AND its operating system allow, found at run time: 0 means
// portable code only. Always 0 on other architectures than x86-64 and with compilers without
// __builtin_cpu_supports.
FASTDIGIN_EXPORT std::uint32_t fastdigin_cpu_features();

// Restricts the kernels to these features, of those that there are. For tests; not thread-safe.
FASTDIGIN_EXPORT void fastdigin_limit_features(std::uint32_t features);

// Work is then shared among the threads of an OpenMP library that is loaded already: the addresses
// of its GOMP_parallel and omp_get_thread_num. With null, threads are started for every call.
FASTDIGIN_EXPORT void fastdigin_use_openmp(void* gomp_parallel,
                                           void* omp_get_thread_num);

// Every field of these structures is 8 bytes wide, so that a caller may pass an array of integers.

// (B,H,rows,d), the last dimension contiguous. data may be null where a comment says so.
struct FastdiginHeads {
  float* data;
  std::int64_t batch_stride, head_stride, row_stride;
};

struct FastdiginAttentionSize {
  std::int64_t batch, heads, queries, keys, head_size;
};

// out = factor * softmax(Q K^T / sqrt(d)) V, or added to out where accumulate is not 0.
struct FastdiginAttentionForward {
  FastdiginAttentionSize size;
  FastdiginHeads q, k, v, out;
  float* lse_bhn;         // contiguous; natural logarithm of the sum of exp of the scaled scores
  const float* factor_b;  // null for 1; a sample whose factor is 0 is not computed, its lse is 0
  std::int64_t accumulate;
};
FASTDIGIN_EXPORT std::int32_t fastdigin_attention_forward(const FastdiginAttentionForward*,
                                                          std::int32_t threads);

// Gradients of the above, given that of out.
struct FastdiginAttentionBackward {
  FastdiginAttentionSize size;
  FastdiginHeads grad, q, k, v;
  FastdiginHeads out;  // of factor 1; null data: what is needed of it is computed anew
  const float* lse_bhn;
  const float* factor_b;
  FastdiginHeads dq, dk, dv;  // null data: not wanted
};
FASTDIGIN_EXPORT std::int32_t fastdigin_attention_backward(const FastdiginAttentionBackward*,
                                                           std::int32_t threads);

// y = silu(group_norm(x)) of (B,C,pixels), or (B,pixels,C) where channels_last is not 0.
struct FastdiginGroupNormSilu {
  std::int64_t batch, channels, pixels, groups, channels_last;
  const float *x, *weight_c, *bias_c;
  float *mean_bg, *rstd_bg;  // written by the forward, read by the backward
  const float* grad;         // backward: of y
  float* y;                  // backward: the gradient of x
  double eps;
};
FASTDIGIN_EXPORT std::int32_t fastdigin_group_norm_silu_forward(const FastdiginGroupNormSilu*,
                                                                std::int32_t threads);
FASTDIGIN_EXPORT std::int32_t fastdigin_group_norm_silu_backward(const FastdiginGroupNormSilu*,
                                                                 std::int32_t threads);

// y (rows, width) = a * gelu(b) of x = [a, b] (rows, 2 width), contiguous.
struct FastdiginGeglu {
  std::int64_t rows, width;
  const float* x;
  const float* grad;  // backward: of y
  float* y;           // backward: the gradient of x (rows, 2 width)
};
FASTDIGIN_EXPORT std::int32_t fastdigin_geglu_forward(const FastdiginGeglu*, std::int32_t threads);
FASTDIGIN_EXPORT std::int32_t fastdigin_geglu_backward(const FastdiginGeglu*, std::int32_t threads);

// y (B,H,W,O) = x (B,H,W,I) convolved with 3x3 numbers, stride 1, padding 1, contiguous. The input's
// gradient is the same, of the flipped weight with its channels exchanged.
struct FastdiginConv3x3 {
  std::int64_t batch, height, width, inputs, outputs;
  const float* x;
  const float* weight;  // transformed (csrc/conv3x3.h): (ceil(O / 16), 36, I, 16)
  const float* bias_o;  // null for none
  float* y;
  std::int64_t threads;  // among which the work is to be cut; no result depends on it
};
FASTDIGIN_EXPORT std::int32_t fastdigin_conv3x3(const FastdiginConv3x3*, std::int32_t threads);
}
