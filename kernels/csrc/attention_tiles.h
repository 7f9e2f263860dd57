// The matrix products of attention on tiles that stay in the cache.
//
// Queries lie along the lanes: a strip is kStrip = 2 vectors of queries, and Q, O, dO and dQ are
// transposed to (d, kStrip). Then keys and values are read as they lie in memory, one broadcast
// number at a time, so that neither the head size nor the number of keys is padded; and the softmax
// of a query runs down its lane, without sums across lanes. Each product keeps up to kRows x 2
// vectors of sums in registers.
#pragma once

#include "kernels.h"
#include "vec.h"

namespace fastdigin::FASTDIGIN_ISA {
namespace {

using Index = std::int64_t;

inline constexpr int kStrip = 2 * kLanes;
inline constexpr int kRows = FASTDIGIN_ROWS;

inline Index round_up(Index n, Index multiple) { return (n + multiple - 1) / multiple * multiple; }

inline Index min_of(Index a, Index b) { return a < b ? a : b; }

inline const float* head(const FastdiginHeads& x, Index b, Index h) {
  return x.data + b * x.batch_stride + h * x.head_stride;
}
inline float* mutable_head(const FastdiginHeads& x, Index b, Index h) {
  return x.data + b * x.batch_stride + h * x.head_stride;
}

// Calls product<R>() for R = rows, at most kMax.
template <int kMax, int R = kMax, class Product>
inline void call_with(int rows, Product&& product) {
  if constexpr (R > 0) {
    if (rows == R) {
      product.template operator()<R>();
    } else {
      call_with<kMax, R - 1>(rows, product);
    }
  }
}

// finish(r, halves) takes the R rows, H vectors each.
template <int R, int H, class Finish>
inline void scores_rows(const float* x, Index x_stride, Index depth, const float* qt,
                        Finish&& finish) {
  Vec sum[R][H] = {};
#pragma GCC unroll 4
  for (Index k = 0; k < depth; ++k) {
    Vec q[H];
#pragma GCC unroll 2
    for (int h = 0; h < H; ++h) q[h] = load(qt + k * kStrip + h * kLanes);
#pragma GCC unroll 16
    for (int r = 0; r < R; ++r) {
      const Vec key = splat(x[r * x_stride + k]);
#pragma GCC unroll 2
      for (int h = 0; h < H; ++h) sum[r][h] += key * q[h];
    }
  }
#pragma GCC unroll 16
  for (int r = 0; r < R; ++r) {
#pragma GCC unroll 2
    for (int h = 0; h < H; ++h) finish(r, h, sum[r][h]);
  }
}

template <int R, int H>
inline void weighted_columns(const float* x, Index x_stride, Index rows, const float* pt,
                             Index pt_stride, const Vec* factor, float* ot) {
  Vec sum[R][H] = {};
  if (factor != nullptr) {
#pragma GCC unroll 16
    for (int r = 0; r < R; ++r) {
#pragma GCC unroll 2
      for (int h = 0; h < H; ++h) sum[r][h] = load(ot + r * kStrip + h * kLanes) * factor[h];
    }
  }
#pragma GCC unroll 4
  for (Index j = 0; j < rows; ++j) {
    Vec p[H];
#pragma GCC unroll 2
    for (int h = 0; h < H; ++h) p[h] = load(pt + j * pt_stride + h * kLanes);
#pragma GCC unroll 16
    for (int r = 0; r < R; ++r) {
      const Vec value = splat(x[j * x_stride + r]);
#pragma GCC unroll 2
      for (int h = 0; h < H; ++h) sum[r][h] += value * p[h];
    }
  }
#pragma GCC unroll 16
  for (int r = 0; r < R; ++r) {
#pragma GCC unroll 2
    for (int h = 0; h < H; ++h) store(ot + r * kStrip + h * kLanes, sum[r][h]);
  }
}

template <int R, int C>
inline void outer_tile(const float* pt, Index pt_stride, Index queries, const float* x,
                       Index x_stride, float* y, Index y_stride) {
  // From 0: a sum of thousands of queries is one of blocks then, which rounds less.
  Vec sum[R][C] = {};
#pragma GCC unroll 4
  for (Index i = 0; i < queries; ++i) {
    Vec row[C];
#pragma GCC unroll 16
    for (int c = 0; c < C; ++c) row[c] = load(x + i * x_stride + c * kLanes);
#pragma GCC unroll 16
    for (int r = 0; r < R; ++r) {
      const Vec weight = splat(pt[r * pt_stride + i]);
#pragma GCC unroll 16
      for (int c = 0; c < C; ++c) sum[r][c] += weight * row[c];
    }
  }
#pragma GCC unroll 16
  for (int r = 0; r < R; ++r) {
#pragma GCC unroll 16
    for (int c = 0; c < C; ++c) {
      float* to = y + r * y_stride + c * kLanes;
      store(to, load(to) + sum[r][c]);
    }
  }
}

// Calls finish(row, half, vector) with the scores X qt of (rows, kStrip), for X of (rows, depth); of
// a strip with at most kLanes queries with the first half alone.
template <class Finish>
inline void scores(const float* x, Index x_stride, Index rows, Index depth, const float* qt,
                   Index queries, Finish&& finish) {
  for (Index done = 0, tiles = (rows + kRows - 1) / kRows; tiles > 0; --tiles) {
    const Index take = (rows - done + tiles - 1) / tiles;
    call_with<kRows>(static_cast<int>(take), [&]<int R>() {
      const auto finish_row = [&](int r, int half, Vec s) { finish(done + r, half, s); };
      if (queries > kLanes) {
        scores_rows<R, 2>(x + done * x_stride, x_stride, depth, qt, finish_row);
      } else {
        scores_rows<R, 1>(x + done * x_stride, x_stride, depth, qt, finish_row);
      }
    });
    done += take;
  }
}

// ot (depth, kStrip) = ot * factor + X^T pt, for X of (rows, depth) and pt of (rows, kStrip). Without
// a factor (two vectors) what ot held is not read.
inline void add_weighted(const float* x, Index x_stride, Index rows, Index depth, const float* pt,
                         Index pt_stride, Index queries, const Vec* factor, float* ot) {
  for (Index done = 0, tiles = (depth + kRows - 1) / kRows; tiles > 0; --tiles) {
    const Index take = (depth - done + tiles - 1) / tiles;
    call_with<kRows>(static_cast<int>(take), [&]<int R>() {
      if (queries > kLanes) {
        weighted_columns<R, 2>(x + done, x_stride, rows, pt, pt_stride, factor,
                               ot + done * kStrip);
      } else {
        weighted_columns<R, 1>(x + done, x_stride, rows, pt, pt_stride, factor,
                               ot + done * kStrip);
      }
    });
    done += take;
  }
}

// The columns of Y += pt X, C vectors of them.
template <int C>
inline void add_outer_columns(const float* pt, Index pt_stride, Index rows, Index queries,
                              const float* x, Index x_stride, float* y, Index y_stride) {
  constexpr int kMax = 2 * kRows / C;
  for (Index done = 0, tiles = (rows + kMax - 1) / kMax; tiles > 0; --tiles) {
    const Index take = (rows - done + tiles - 1) / tiles;
    call_with<kMax>(static_cast<int>(take), [&]<int R>() {
      outer_tile<R, C>(pt + done * pt_stride, pt_stride, queries, x, x_stride, y + done * y_stride,
                       y_stride);
    });
    done += take;
  }
}

// Y (rows, vectors * kLanes) += pt X, for pt of (rows, queries) and X of (queries, vectors).
inline void add_outer(const float* pt, Index pt_stride, Index rows, Index queries, const float* x,
                      Index x_stride, Index vectors, float* y, Index y_stride) {
  for (Index done = 0; done < vectors;) {
    // 5, 3 and 2 vectors at a time fill the registers best; 4 and 6 are two of 2 and of 3.
    const Index left = vectors - done, take = left == 4 ? 2 : left == 6 ? 3 : min_of(left, 5);
    call_with<5>(static_cast<int>(take), [&]<int C>() {
      add_outer_columns<C>(pt, pt_stride, rows, queries, x + done * kLanes, x_stride,
                           y + done * kLanes, y_stride);
    });
    done += take;
  }
}

// xt (depth, kStrip) = scale * X^T, for X of (rows, depth), rows <= kStrip; other lanes are 0.
inline void transpose_in(const float* x, Index x_stride, Index rows, Index depth, float scale,
                         float* xt) {
  for (Index i = 0; i < kStrip; i += kLanes) {
    for (Index k = 0; k < depth; k += kLanes) {
      Vec square[kLanes];
      const Index columns = min_of(depth - k, kLanes);
#pragma GCC unroll 16
      for (int r = 0; r < kLanes; ++r) {
        // Rows past the end count 0 columns: a load without them reads nothing.
        const float* row = x + min_of(i + r, rows - 1) * x_stride + k;
        square[r] = splat(scale) * load_partial(row, i + r < rows ? columns : 0);
      }
      transpose(square);
#pragma GCC unroll 16
      for (int r = 0; r < kLanes; ++r) {
        if (r < columns) store(xt + (k + r) * kStrip + i, square[r]);
      }
    }
  }
}

// X (rows, depth) = xt^T times one factor a row, or X += that.
inline void transpose_out(const float* xt, Index rows, Index depth, const float* factors,
                          bool accumulate, float* x, Index x_stride) {
  for (Index i = 0; i < rows; i += kLanes) {
    for (Index k = 0; k < depth; k += kLanes) {
      Vec square[kLanes] = {};
      const Index columns = min_of(depth - k, kLanes);
#pragma GCC unroll 16
      for (int r = 0; r < kLanes; ++r) {
        if (r < columns) square[r] = load(xt + (k + r) * kStrip + i);
      }
      transpose(square);
#pragma GCC unroll 16
      for (int r = 0; r < kLanes; ++r) {
        if (i + r >= rows) break;
        float* to = x + (i + r) * x_stride + k;
        const Vec row = square[r] * splat(factors[i + r]);
        store_partial(to, accumulate ? load_partial(to, columns) + row : row, columns);
      }
    }
  }
}

// y (rows, width) = X of (rows, d), with 0 in the columns from d to width.
inline void copy_rows(const float* x, Index x_stride, Index rows, Index d, float* y, Index width) {
  for (Index i = 0; i < rows; ++i) {
    for (Index c = 0; c < d; c += kLanes) {
      const Vec v = load_partial(x + i * x_stride + c, d - c);
      store_partial(y + i * width + c, v, width - c);
    }
  }
}

// Keys a tile: all of a short text, or what leaves K and V of a tile in the first cache.
inline Index keys_per_tile(Index keys) {
  return keys <= 128 ? keys : 64;
}

}  // namespace
}  // namespace fastdigin::FASTDIGIN_ISA
