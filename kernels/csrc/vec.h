// Vectors of FASTDIGIN_LANES floats, in the namespace FASTDIGIN_ISA.
//
// Included once by each isa_*.cpp, which is compiled for one instruction set: whatever is defined
// here must stay in that namespace and have internal linkage, or the linker could put code for one
// instruction set in the place of another's.
#pragma once

#include <cstdint>
#include <cstring>
#include <utility>

#if FASTDIGIN_LANES > 4
#include <immintrin.h>
#endif

namespace fastdigin::FASTDIGIN_ISA {
namespace {

inline constexpr int kLanes = FASTDIGIN_LANES;

typedef float Vec __attribute__((vector_size(4 * FASTDIGIN_LANES)));
typedef std::int32_t IntVec __attribute__((vector_size(4 * FASTDIGIN_LANES)));

inline Vec load(const float* p) {
  Vec v;
  std::memcpy(&v, p, sizeof v);
  return v;
}

inline void store(float* p, Vec v) { std::memcpy(p, &v, sizeof v); }

#if FASTDIGIN_LANES == 8
// All bits of the first `count` lanes.
inline __m256i first_lanes(std::int64_t count) {
  const __m256i lanes = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
  return _mm256_cmpgt_epi32(_mm256_set1_epi32(static_cast<int>(count)), lanes);
}
#endif

// The first `count` lanes; the others are 0 or left alone. (Lane by lane a compiler makes of this one
// instruction a lane, so what the instruction set offers is named.)
inline Vec load_partial(const float* p, std::int64_t count) {
  if (count >= kLanes) return load(p);
#if FASTDIGIN_LANES == 16
  return _mm512_maskz_loadu_ps(static_cast<__mmask16>((1u << count) - 1), p);
#elif FASTDIGIN_LANES == 8
  return _mm256_maskload_ps(p, first_lanes(count));
#else
  Vec v = {};
  for (int i = 0; i < count; ++i) v[i] = p[i];
  return v;
#endif
}

inline void store_partial(float* p, Vec v, std::int64_t count) {
  if (count >= kLanes) return store(p, v);
#if FASTDIGIN_LANES == 16
  _mm512_mask_storeu_ps(p, static_cast<__mmask16>((1u << count) - 1), v);
#elif FASTDIGIN_LANES == 8
  _mm256_maskstore_ps(p, first_lanes(count), v);
#else
  for (int i = 0; i < count; ++i) p[i] = v[i];
#endif
}

inline Vec splat(float x) { return x - Vec{}; }  // x + 0 would keep an addition, for -0

// In both, a NaN in b is the result. (A mask of all lanes: GCC 12 warns of _mm512_max_ps itself.)
#if FASTDIGIN_LANES == 16
inline Vec max(Vec a, Vec b) { return _mm512_maskz_max_ps(0xffff, a, b); }
inline Vec min(Vec a, Vec b) { return _mm512_maskz_min_ps(0xffff, a, b); }
#elif FASTDIGIN_LANES == 8
inline Vec max(Vec a, Vec b) { return _mm256_max_ps(a, b); }
inline Vec min(Vec a, Vec b) { return _mm256_min_ps(a, b); }
#else
inline Vec max(Vec a, Vec b) { return b < a ? a : b; }
inline Vec min(Vec a, Vec b) { return b > a ? a : b; }
#endif

// 2^x for x at most 126, to 2e-7 relative and exact at 0; 2^-125 below -125. NaN stays NaN.
inline Vec exp2(Vec x) {
  x = max(splat(-125.0f), x);
  // Adding 1.5 * 2^23 rounds to a whole number, which is then in the low bits.
  const Vec magic = splat(12582912.0f);
  const Vec shifted = x + magic;
  const Vec f = x - (shifted - magic);  // in [-1/2, 1/2]
  // Minimax polynomial of 2^f with 2^0 = 1, relative error 9e-8 (Lawson's iteration).
  Vec p = splat(0.0013264727f);
  p = p * f + 0.009671513f;
  p = p * f + 0.055507336f;
  p = p * f + 0.24022242f;
  p = p * f + 0.693147f;
  p = p * f + 1.0f;
  return (Vec)((IntVec)p + ((IntVec)shifted << 23));
}

// Natural logarithm of a positive number, to 1e-7 relative to the larger of 1 and the result. NaN stays
// NaN.
inline Vec log(Vec x) {
  const IntVec bits = (IntVec)x;
  const IntVec exponent = (bits - 0x3f3504f3) >> 23;  // of x = 2^exponent m, m in [sqrt(1/2), sqrt(2))
  const Vec m = (Vec)(bits - (exponent << 23));
  const Vec s = (m - 1.0f) / (m + 1.0f), square = s * s;  // log m = 2 artanh s
  Vec p = splat(2.0f / 9);
  p = p * square + 2.0f / 7;
  p = p * square + 2.0f / 5;
  p = p * square + 2.0f / 3;
  p = p * square + 2.0f;
  return __builtin_convertvector(exponent, Vec) * 0.693147181f + p * s + x * 0.0f;
}

template <int... kIndices>
inline Vec shuffle(Vec a, Vec b, std::integer_sequence<int, kIndices...>) {
  return __builtin_shufflevector(a, b, kIndices...);
}

// Lane l takes a[l] or b[l - kBlock] (kHigh: a[l + kBlock] or b[l]), by the bit kBlock of l.
template <int kBlock, bool kHigh, int... kLane>
constexpr auto exchange(std::integer_sequence<int, kLane...>) {
  return std::integer_sequence<int, (kLane & kBlock ? kLanes + kLane - (kHigh ? 0 : kBlock)
                                                    : kLane + (kHigh ? kBlock : 0))...>{};
}

// Transposes the square in place: blocks off the diagonal change places, halving their size
// (Eklundh).
template <int kBlock = kLanes / 2>
inline void transpose(Vec (&row)[kLanes]) {
  if constexpr (kBlock > 0) {
    constexpr auto lanes = std::make_integer_sequence<int, kLanes>{};
#pragma GCC unroll 16
    for (int i = 0; i < kLanes; ++i) {
      if (i & kBlock) continue;
      const Vec a = row[i], b = row[i + kBlock];
      row[i] = shuffle(a, b, exchange<kBlock, false>(lanes));
      row[i + kBlock] = shuffle(a, b, exchange<kBlock, true>(lanes));
    }
    transpose<kBlock / 2>(row);
  }
}

}  // namespace
}  // namespace fastdigin::FASTDIGIN_ISA
