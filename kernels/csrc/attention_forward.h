// Attention forward: a task is a block of queries of one head, and runs over the tiles of keys with
// a running maximum and sum (Dao, FlashAttention-2, arXiv 2307.08691).
#pragma once

#include "attention_tiles.h"

namespace fastdigin::FASTDIGIN_ISA {
namespace {

inline constexpr float kLog2e = 1.44269504f;
inline constexpr float kLn2 = 0.693147181f;

// Queries of a task, for which every tile of keys is copied once: many, as long as there are enough
// tasks for many threads. (A query's result does not depend on it.)
Index forward_queries(const AttentionForward& a) {
  constexpr Index kEnoughTasks = 32;
  Index queries = 512;
  while (queries > 128 && a.size.batch * a.size.heads * a.size.queries < kEnoughTasks * queries) {
    queries /= 2;
  }
  return min_of(queries, round_up(a.size.queries, kStrip));
}

Index forward_blocks(const AttentionForward& a) {
  return (a.size.queries + forward_queries(a) - 1) / forward_queries(a);
}

Index attention_forward_tasks(const AttentionForward& a) {
  return a.size.queries == 0 ? 0 : a.size.batch * a.size.heads * forward_blocks(a);
}

// Where the parts of a task's scratch memory begin.
struct ForwardScratch {
  float *qt, *ot;           // (strips, d, kStrip)
  float *maximum, *sum;     // (queries)
  float* st;                // (keys of a tile, kStrip)
  float* factors;           // (kStrip)
  float *k_tile, *v_tile;   // (keys of a tile, d)
  float* end;

  ForwardScratch(const AttentionForward& a, float* start) {
    const Index d = a.size.head_size, queries = forward_queries(a);
    const Index tile = keys_per_tile(a.size.keys);
    float* next = start;
    const auto take = [&next](Index floats) {
      float* part = next;
      next += round_up(floats, 16);
      return part;
    };
    qt = take(queries * d);
    ot = take(queries * d);
    maximum = take(queries);
    sum = take(queries);
    st = take(tile * kStrip);
    factors = take(kStrip);
    k_tile = take(tile * d);
    v_tile = take(tile * d);
    end = next;
  }
};

std::size_t attention_forward_scratch(const AttentionForward& a) {
  float* const start = nullptr;
  return reinterpret_cast<std::size_t>(ForwardScratch(a, start).end);
}

// Scores of one strip and one tile of keys, times log2 e, made exp(score - maximum); updates maximum
// and sum of each lane, and gives what earlier sums must be multiplied with.
inline void softmax_tile(const float* k, Index keys, Index d, const float* qt, Index queries,
                         float* st, float* maximum, float* sum, Vec (&factor)[2]) {
  Vec largest[2] = {load(maximum), load(maximum + kLanes)};
  scores(k, d, keys, d, qt, queries, [&](Index j, int half, Vec s) {
    largest[half] = max(largest[half], s);
    store(st + j * kStrip + half * kLanes, s);
  });
  for (int half = 0; half < (queries > kLanes ? 2 : 1); ++half) {
    float* s = st + half * kLanes;
    const Vec before = load(maximum + half * kLanes), now = largest[half];
    Vec total = Vec{};
#pragma GCC unroll 4
    for (Index j = 0; j < keys; ++j) {
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
  const Index start = task % blocks * forward_queries(a);
  const Index count = min_of(n - start, forward_queries(a));
  const Index strips = (count + kStrip - 1) / kStrip;
  const float *q = head(a.q, b, h), *k = head(a.k, b, h), *v = head(a.v, b, h);
  float* out = mutable_head(a.out, b, h) + start * a.out.row_stride;
  float* lse = a.lse_bhn + bh * n + start;
  const float factor_of_sample = a.factor_b == nullptr ? 1.0f : a.factor_b[b];
  if (factor_of_sample == 0) {
    for (Index i = 0; i < count; ++i) {
      lse[i] = 0;
      if (!a.accumulate) std::memset(out + i * a.out.row_stride, 0, sizeof(float) * d);
    }
    return;
  }

  const ForwardScratch m(a, scratch);
  const float scale = kLog2e / __builtin_sqrtf(static_cast<float>(d));
  for (Index s = 0; s < strips; ++s) {
    const Index first = start + s * kStrip;
    transpose_in(q + first * a.q.row_stride, a.q.row_stride, min_of(n - first, kStrip), d, scale,
                 m.qt + s * d * kStrip);
  }
  for (Index i = 0; i < strips * kStrip; ++i) m.maximum[i] = -__builtin_inff();
  std::memset(m.sum, 0, sizeof(float) * strips * kStrip);

  const Index tile = keys_per_tile(keys);
  for (Index j = 0; j < keys; j += tile) {
    const Index rows = min_of(keys - j, tile);
    // Copied, because rows a power of two apart fall on the same few lines of a cache.
    copy_rows(k + j * a.k.row_stride, a.k.row_stride, rows, d, m.k_tile, d);
    copy_rows(v + j * a.v.row_stride, a.v.row_stride, rows, d, m.v_tile, d);
    for (Index s = 0; s < strips; ++s) {
      const Index queries = count - s * kStrip;
      Vec factor[2];
      softmax_tile(m.k_tile, rows, d, m.qt + s * d * kStrip, queries, m.st,
                   m.maximum + s * kStrip, m.sum + s * kStrip, factor);
      add_weighted(m.v_tile, d, rows, d, m.st, kStrip, queries, j > 0 ? factor : nullptr,
                   m.ot + s * d * kStrip);
    }
  }

  for (Index s = 0; s < strips; ++s) {
    const Index first = s * kStrip, rows = min_of(count - first, kStrip);
    for (Index i = 0; i < rows; i += kLanes) {
      const Vec maximum = load(m.maximum + first + i), sum = load(m.sum + first + i);
      store(m.factors + i, factor_of_sample / sum);
      store_partial(lse + first + i, kLn2 * maximum + log(sum), rows - i);
    }
    transpose_out(m.ot + s * d * kStrip, rows, d, m.factors, a.accumulate,
                  out + first * a.out.row_stride, a.out.row_stride);
  }
}

}  // namespace
}  // namespace fastdigin::FASTDIGIN_ISA
