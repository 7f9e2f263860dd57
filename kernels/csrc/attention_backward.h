// Attention backward: a task is one head. It runs over blocks of queries and, within, over tiles of
// keys; dK and dV gather in scratch, dQ of the block in the cache, so that scores and dP are
// computed once (five products, not seven) and nothing is shared between threads.
#pragma once

#include "attention_forward.h"

namespace fastdigin::FASTDIGIN_ISA {
namespace {

inline constexpr Index kBackwardQueries = 64;

Index attention_backward_tasks(const AttentionBackward& a) { return a.size.batch * a.size.heads; }

// Where the parts of a task's scratch memory begin.
struct BackwardScratch {
  float *qt, *grad_t, *dqt;          // (strips, d, kStrip)
  float *q_rows, *grad_rows;         // (kBackwardQueries, width)
  float *pt, *dst;                   // (keys of a tile, kBackwardQueries)
  float *lse, *delta;                // (kBackwardQueries)
  float *k_rows, *v_rows;            // (keys, d)
  float *dk, *dv;                    // (keys, width)
  float* end;

  BackwardScratch(const AttentionBackward& a, float* start) {
    const Index d = a.size.head_size, width = round_up(d, kLanes);
    const Index tile = keys_per_tile(a.size.keys);
    float* next = start;
    const auto take = [&next](Index floats) {
      float* part = next;
      next += round_up(floats, 16);
      return part;
    };
    qt = take(d * kBackwardQueries);
    grad_t = take(d * kBackwardQueries);
    dqt = take(d * kBackwardQueries);
    q_rows = take(kBackwardQueries * width);
    grad_rows = take(kBackwardQueries * width);
    pt = take(tile * kBackwardQueries);
    dst = take(tile * kBackwardQueries);
    lse = take(kBackwardQueries);
    delta = take(kBackwardQueries);
    k_rows = take(a.size.keys * d);
    v_rows = take(a.size.keys * d);
    dk = take(a.dk.data == nullptr ? 0 : a.size.keys * width);
    dv = take(a.dv.data == nullptr ? 0 : a.size.keys * width);
    end = next;
  }
};

std::size_t attention_backward_scratch(const AttentionBackward& a) {
  float* const start = nullptr;
  return reinterpret_cast<std::size_t>(BackwardScratch(a, start).end);
}

// pt and dst of one strip and one tile of keys: the map P = exp(score - lse); and dP = dO V^T or, with
// delta known, the gradient P (dP - delta) of the scaled scores.
inline void map_and_its_gradient(const float* k, const float* v, Index rows, Index d,
                                 const BackwardScratch& m, Index strip, Index queries,
                                 bool gradient, bool delta_known) {
  const Index column = strip * kStrip;
  float *p = m.pt + column, *ds = m.dst + column;
  const Vec lse[2] = {load(m.lse + column), load(m.lse + column + kLanes)};
  scores(k, d, rows, d, m.qt + column * d, queries, [&](Index j, int half, Vec s) {
    store(p + j * kBackwardQueries + half * kLanes, exp2(s - lse[half]));
  });
  if (!gradient) return;
  if (!delta_known) {
    scores(v, d, rows, d, m.grad_t + column * d, queries, [&](Index j, int half, Vec s) {
      store(ds + j * kBackwardQueries + half * kLanes, s);
    });
    return;
  }
  const Vec delta[2] = {load(m.delta + column), load(m.delta + column + kLanes)};
  scores(v, d, rows, d, m.grad_t + column * d, queries, [&](Index j, int half, Vec s) {
    const Index at = j * kBackwardQueries + half * kLanes;
    store(ds + at, load(p + at) * (s - delta[half]));
  });
}

// delta += the sum over keys of P dP, for the queries of one strip.
inline void add_delta(Index rows, const BackwardScratch& m, Index strip) {
  for (int half = 0; half < 2; ++half) {
    const Index column = strip * kStrip + half * kLanes;
    Vec sum = load(m.delta + column);
    for (Index j = 0; j < rows; ++j) {
      sum += load(m.pt + j * kBackwardQueries + column) *
             load(m.dst + j * kBackwardQueries + column);
    }
    store(m.delta + column, sum);
  }
}

// dst = P (dP - delta): the gradient of the scaled scores.
inline void score_gradient(Index rows, const BackwardScratch& m, Index strip) {
  for (int half = 0; half < 2; ++half) {
    const Index column = strip * kStrip + half * kLanes;
    const Vec delta = load(m.delta + column);
    for (Index j = 0; j < rows; ++j) {
      float* ds = m.dst + j * kBackwardQueries + column;
      store(ds, load(m.pt + j * kBackwardQueries + column) * (load(ds) - delta));
    }
  }
}

inline void read_block(const AttentionBackward& a, Index bh, Index start, Index count,
                       float factor_of_sample, const BackwardScratch& m) {
  const Index d = a.size.head_size, width = round_up(d, kLanes);
  const Index b = bh / a.size.heads, h = bh % a.size.heads;
  const float* q = head(a.q, b, h) + start * a.q.row_stride;
  const float* grad = head(a.grad, b, h) + start * a.grad.row_stride;
  const float scale = 1 / __builtin_sqrtf(static_cast<float>(d));
  for (Index s = 0; s * kStrip < count; ++s) {
    const Index first = s * kStrip, rows = min_of(count - first, kStrip);
    transpose_in(q + first * a.q.row_stride, a.q.row_stride, rows, d, kLog2e * scale,
                 m.qt + first * d);
    transpose_in(grad + first * a.grad.row_stride, a.grad.row_stride, rows, d, factor_of_sample,
                 m.grad_t + first * d);
  }
  if (a.dk.data != nullptr) copy_rows(q, a.q.row_stride, count, d, m.q_rows, width);
  if (a.dv.data != nullptr) copy_rows(grad, a.grad.row_stride, count, d, m.grad_rows, width);
  std::memset(m.lse, 0, sizeof(float) * kBackwardQueries);
  std::memset(m.delta, 0, sizeof(float) * kBackwardQueries);
  const float* lse = a.lse_bhn + bh * a.size.queries + start;
  for (Index i = 0; i < count; ++i) m.lse[i] = kLog2e * lse[i];
}

// delta = the sum over the head of dO O, which is also that over the keys of P dP.
inline void delta_from_output(const AttentionBackward& a, Index bh, Index start, Index count,
                              float factor_of_sample, const BackwardScratch& m) {
  const Index d = a.size.head_size, b = bh / a.size.heads, h = bh % a.size.heads;
  const float* grad = head(a.grad, b, h) + start * a.grad.row_stride;
  const float* out = head(a.out, b, h) + start * a.out.row_stride;
  for (Index i = 0; i < count; i += kLanes) {
    Vec square[kLanes] = {};
#pragma GCC unroll 16
    for (int r = 0; r < kLanes; ++r) {
      if (i + r >= count) break;
      const float* x = grad + (i + r) * a.grad.row_stride;
      const float* y = out + (i + r) * a.out.row_stride;
      for (Index c = 0; c < d; c += kLanes) {
        square[r] += load_partial(x + c, d - c) * load_partial(y + c, d - c);
      }
    }
    transpose(square);
#pragma GCC unroll 4
    for (int step = kLanes / 2; step > 0; step /= 2) {
#pragma GCC unroll 8
      for (int r = 0; r < step; ++r) square[r] += square[r + step];
    }
    store(m.delta + i, splat(factor_of_sample) * square[0]);
  }
}

inline void zero_head(const FastdiginHeads& x, Index b, Index h, Index rows, Index d) {
  if (x.data == nullptr) return;
  float* y = mutable_head(x, b, h);
  for (Index i = 0; i < rows; ++i) std::memset(y + i * x.row_stride, 0, sizeof(float) * d);
}

inline void write_rows(const float* y, Index width, Index rows, Index d, float factor,
                       const FastdiginHeads& x, Index b, Index h) {
  if (x.data == nullptr) return;
  float* to = mutable_head(x, b, h);
  for (Index i = 0; i < rows; ++i) {
    for (Index c = 0; c < d; c += kLanes) {
      store_partial(to + i * x.row_stride + c, factor * load(y + i * width + c), d - c);
    }
  }
}

void attention_backward(const AttentionBackward& a, Index bh, float* scratch) {
  const Index n = a.size.queries, keys = a.size.keys, d = a.size.head_size;
  const Index width = round_up(d, kLanes), tile = keys_per_tile(keys);
  const Index b = bh / a.size.heads, h = bh % a.size.heads;
  const float factor_of_sample = a.factor_b == nullptr ? 1.0f : a.factor_b[b];
  if (factor_of_sample == 0) {
    zero_head(a.dq, b, h, n, d);
    zero_head(a.dk, b, h, keys, d);
    zero_head(a.dv, b, h, keys, d);
    return;
  }
  const BackwardScratch m(a, scratch);
  const float scale = 1 / __builtin_sqrtf(static_cast<float>(d));
  copy_rows(head(a.k, b, h), a.k.row_stride, keys, d, m.k_rows, d);
  copy_rows(head(a.v, b, h), a.v.row_stride, keys, d, m.v_rows, d);
  const bool want_dq = a.dq.data != nullptr, want_dk = a.dk.data != nullptr;
  const bool gradient = want_dq || want_dk;
  const Vec ones[2] = {splat(1.0f), splat(1.0f)};
  if (want_dk) std::memset(m.dk, 0, sizeof(float) * keys * width);
  if (a.dv.data != nullptr) std::memset(m.dv, 0, sizeof(float) * keys * width);

  for (Index start = 0; start < n; start += kBackwardQueries) {
    const Index count = min_of(n - start, kBackwardQueries);
    const Index strips = (count + kStrip - 1) / kStrip;
    read_block(a, bh, start, count, factor_of_sample, m);
    const bool one_tile = tile == keys;
    if (gradient && !one_tile) {
      if (a.out.data != nullptr) {
        delta_from_output(a, bh, start, count, factor_of_sample, m);
      } else {
        for (Index j = 0; j < keys; j += tile) {
          const Index rows = min_of(keys - j, tile);
          for (Index s = 0; s < strips; ++s) {
            map_and_its_gradient(m.k_rows + j * d, m.v_rows + j * d, rows, d, m, s,
                                 count - s * kStrip, true, false);
            add_delta(rows, m, s);
          }
        }
      }
    }
    for (Index j = 0; j < keys; j += tile) {
      const Index rows = min_of(keys - j, tile);
      const float *k_tile = m.k_rows + j * d, *v_tile = m.v_rows + j * d;
      for (Index s = 0; s < strips; ++s) {
        const Index queries = count - s * kStrip;
        map_and_its_gradient(k_tile, v_tile, rows, d, m, s, queries, gradient, !one_tile);
        if (gradient && one_tile) {
          add_delta(rows, m, s);
          score_gradient(rows, m, s);
        }
        if (want_dq) {
          add_weighted(k_tile, d, rows, d, m.dst + s * kStrip, kBackwardQueries, queries,
                       j > 0 ? ones : nullptr, m.dqt + s * d * kStrip);
        }
      }
      if (a.dv.data != nullptr) {
        add_outer(m.pt, kBackwardQueries, rows, count, m.grad_rows, width, width / kLanes,
                  m.dv + j * width, width);
      }
      if (want_dk) {
        add_outer(m.dst, kBackwardQueries, rows, count, m.q_rows, width, width / kLanes,
                  m.dk + j * width, width);
      }
    }
    if (want_dq) {
      float factors[kStrip];
      for (float& factor : factors) factor = scale;
      float* dq = mutable_head(a.dq, b, h) + start * a.dq.row_stride;
      for (Index s = 0; s < strips; ++s) {
        transpose_out(m.dqt + s * d * kStrip, min_of(count - s * kStrip, kStrip), d, factors, false,
                      dq + s * kStrip * a.dq.row_stride, a.dq.row_stride);
      }
    }
  }
  write_rows(m.dk, width, keys, d, scale, a.dk, b, h);
  write_rows(m.dv, width, keys, d, factor_of_sample, a.dv, b, h);
}

}  // namespace
}  // namespace fastdigin::FASTDIGIN_ISA
