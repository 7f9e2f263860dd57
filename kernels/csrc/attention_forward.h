// Attention forward: a task is a block of queries of one head, and runs over the tiles of keys with
// a running maximum and sum (Dao, FlashAttention-2, arXiv 2307.08691).
#pragma once

#include "attention_tiles.h"

namespace fastdigin::FASTDIGIN_ISA {
namespace {

inline constexpr Index kForwardQueries = 128;  // a block: for which a tile of keys is copied
inline constexpr Index kForwardStrips = kForwardQueries / kStrip;
inline constexpr float kLog2e = 1.44269504f;
inline constexpr float kLn2 = 0.693147181f;

Index forward_blocks(const AttentionForward& a) {
  return (a.size.queries + kForwardQueries - 1) / kForwardQueries;
}

Index attention_forward_tasks(const AttentionForward& a) {
  return a.size.batch * a.size.heads * forward_blocks(a);
}

std::size_t attention_forward_scratch(const AttentionForward& a) {
  const Index d = a.size.head_size;
  const Index floats = kForwardQueries * (2 * d + 2) + kStrip +
                       keys_per_tile(a.size.keys, d) * (kStrip + 2 * d);
  return sizeof(float) * static_cast<std::size_t>(floats);
}

// st holds scores times log2 e: makes them exp(score - maximum), updates maximum and sum of each
// lane, and gives what earlier sums must be multiplied with.
inline void softmax_tile(float* st, Index keys, float* maximum, float* sum, Vec (&factor)[2]) {
  for (int half = 0; half < 2; ++half) {
    float* s = st + half * kLanes;
    const Vec before = load(maximum + half * kLanes);
    Vec largest[2] = {before, before};
    Index j = 0;
    for (; j + 1 < keys; j += 2) {
      largest[0] = max(largest[0], load(s + j * kStrip));
      largest[1] = max(largest[1], load(s + (j + 1) * kStrip));
    }
    if (j < keys) largest[0] = max(largest[0], load(s + j * kStrip));
    const Vec now = max(largest[0], largest[1]);
    Vec total = Vec{};
    for (j = 0; j < keys; ++j) {
      const Vec p = exp2(load(s + j * kStrip) - now);
      store(s + j * kStrip, p);
      total += p;
    }
    factor[half] = exp2(before - now);
    store(maximum + half * kLanes, now);
    store(sum + half * kLanes, load(sum + half * kLanes) * factor[half] + total);
  }
}

void attention_forward(const AttentionForward& a, Index task, float* scratch) {
  const Index n = a.size.queries, keys = a.size.keys, d = a.size.head_size;
  const Index blocks = forward_blocks(a), bh = task / blocks;
  const Index b = bh / a.size.heads, h = bh % a.size.heads;
  const Index start = task % blocks * kForwardQueries;
  const Index strips = (min_of(n - start, kForwardQueries) + kStrip - 1) / kStrip;
  const float *q = head(a.q, b, h), *k = head(a.k, b, h), *v = head(a.v, b, h);
  float* out = mutable_head(a.out, b, h) + start * a.out.row_stride;
  float* lse = a.lse_bhn + bh * n + start;
  const float factor_of_sample = a.factor_b == nullptr ? 1.0f : a.factor_b[b];
  const Index count = min_of(n - start, kForwardQueries);
  if (factor_of_sample == 0) {
    for (Index i = 0; i < count; ++i) {
      lse[i] = 0;
      if (!a.accumulate) std::memset(out + i * a.out.row_stride, 0, sizeof(float) * d);
    }
    return;
  }

  float* qt = scratch;
  float* ot = qt + kForwardStrips * d * kStrip;
  float* maximum = ot + kForwardStrips * d * kStrip;
  float* sum = maximum + kForwardQueries;
  float* st = sum + kForwardQueries;
  float* factors = st + keys_per_tile(keys, d) * kStrip;
  float* k_tile = factors + kStrip;
  float* v_tile = k_tile + keys_per_tile(keys, d) * d;
  const float scale = kLog2e / __builtin_sqrtf(static_cast<float>(d));
  for (Index s = 0; s < strips; ++s) {
    const Index first = start + s * kStrip;
    transpose_in(q + first * a.q.row_stride, a.q.row_stride, min_of(n - first, kStrip), d, scale,
                 qt + s * d * kStrip);
  }
  for (Index i = 0; i < kForwardQueries; ++i) maximum[i] = -__builtin_inff();
  std::memset(sum, 0, sizeof(float) * kForwardQueries);
  std::memset(ot, 0, sizeof(float) * kForwardStrips * d * kStrip);

  const Index tile = keys_per_tile(keys, d);
  for (Index j = 0; j < keys; j += tile) {
    const Index rows = min_of(keys - j, tile);
    // Copied, because rows a power of two apart fall on the same few lines of a cache.
    copy_rows(k + j * a.k.row_stride, a.k.row_stride, rows, d, k_tile, d);
    copy_rows(v + j * a.v.row_stride, a.v.row_stride, rows, d, v_tile, d);
    for (Index s = 0; s < strips; ++s) {
      float* strip_ot = ot + s * d * kStrip;
      Vec factor[2];
      scores(k_tile, d, rows, d, qt + s * d * kStrip, st, kStrip);
      softmax_tile(st, rows, maximum + s * kStrip, sum + s * kStrip, factor);
      if (j > 0) {
        for (Index c = 0; c < d; ++c) {
          for (int half = 0; half < 2; ++half) {
            float* o = strip_ot + c * kStrip + half * kLanes;
            store(o, load(o) * factor[half]);
          }
        }
      }
      add_weighted(v_tile, d, rows, d, st, kStrip, strip_ot);
    }
  }

  for (Index s = 0; s < strips; ++s) {
    const Index first = s * kStrip, rows = min_of(count - first, kStrip);
    for (Index i = 0; i < rows; ++i) {
      factors[i] = factor_of_sample / sum[first + i];
      lse[first + i] = kLn2 * maximum[first + i] + __builtin_logf(sum[first + i]);
    }
    transpose_out(ot + s * d * kStrip, rows, d, factors, a.accumulate,
                  out + first * a.out.row_stride, a.out.row_stride);
  }
}

}  // namespace
}  // namespace fastdigin::FASTDIGIN_ISA
