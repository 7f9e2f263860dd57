// Sigmoid and the normal distribution, on vectors.
#pragma once

#include "vec.h"

namespace fastdigin::FASTDIGIN_ISA {
namespace {

inline constexpr float kLog2OfE = 1.44269504f;

// 1 / (1 + e^-x).
inline Vec sigmoid(Vec x) { return 1.0f / (1.0f + exp2(min(splat(126.0f), x * -kLog2OfE))); }

struct Normal {
  Vec cdf, pdf;
};

// The standard normal distribution at x, to 8e-8 absolute (Abramowitz and Stegun, 7.1.26, which is
// PyTorch's own on the CPU). The tail on the left is computed as it is, not as 1 minus the other one.
inline Normal standard_normal(Vec x) {
  const Vec size = max(x, -x);
  const Vec exponential = exp2(x * x * (-0.5f * kLog2OfE));
  const Vec t = 1.0f / (1.0f + 0.231641888f * size);  // 0.3275911 / sqrt(2)
  Vec p = splat(0.5f * 1.061405429f);
  p = p * t + 0.5f * -1.453152027f;
  p = p * t + 0.5f * 1.421413741f;
  p = p * t + 0.5f * -0.284496736f;
  p = p * t + 0.5f * 0.254829592f;
  const Vec tail = p * t * exponential;
  return {x > 0.0f ? 1.0f - tail : tail, 0.398942280f * exponential};
}

}  // namespace
}  // namespace fastdigin::FASTDIGIN_ISA
