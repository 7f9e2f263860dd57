// 3x3 convolution with stride 1 and padding 1, channels last, by Winograd's F(4x4, 3x3).
//
// Six by six numbers of a channel give four by four of the output by 36 products instead of 144
// (Lavin and Gray, arXiv 1509.09308). A task is some tiles of the output: their inputs are transformed,
// multiplied with the transformed weight at each of the 36 points, and transformed back. Weights come
// transformed already, in panels of kPanel output channels, (panel, 36, input channels, kPanel).
#pragma once

#include "attention_tiles.h"
#include "kernels.h"
#include "vec.h"

namespace fastdigin::FASTDIGIN_ISA {
namespace {

inline constexpr Index kTile = 4, kWindow = kTile + 2, kPoints = kWindow * kWindow;
inline constexpr Index kPanel = 16;         // of channels, for every instruction set
inline constexpr Index kPanelsAtOnce = 2;   // one load of the left factor serves both
inline constexpr Index kWindowFloats = 128 << 10;  // of a task's transformed inputs: they stay cached

inline Index ceil_div(Index n, Index by) { return (n + by - 1) / by; }

inline Index tiles_of(const Conv3x3& c) {
  return c.batch * ceil_div(c.height, kTile) * ceil_div(c.width, kTile);
}

// As many as stay in the cache, and no more than leave work for every thread.
inline Index tiles_per_task(const Conv3x3& c) {
  const Index fitting = kWindowFloats / (kPoints * c.inputs) / kRows * kRows;
  return min_of(fitting < kRows ? kRows : fitting, ceil_div(tiles_of(c), c.threads));
}

std::int64_t conv3x3_tasks(const Conv3x3& c) {
  return tiles_of(c) == 0 ? 0 : ceil_div(tiles_of(c), tiles_per_task(c));
}

std::size_t conv3x3_scratch(const Conv3x3& c) {
  const Index floats = kPoints * tiles_per_task(c) * (c.inputs + kPanelsAtOnce * kPanel);
  return static_cast<std::size_t>(floats) * sizeof(float);
}

// Where a tile of the output begins.
struct Tile {
  Index image, row, column;

  Tile(const Conv3x3& c, Index number) {
    const Index across = ceil_div(c.width, kTile), down = ceil_div(c.height, kTile);
    column = number % across * kTile;
    row = number / across % down * kTile;
    image = number / across / down;
  }
};

// The points of the transform beside 0 and infinity: +-kA and +-kB. The usual +-1 and +-2 lose 2.3 times
// as much to rounding (bench/NOTES.md). All that is made of these has few bits.
inline constexpr float kA = 0.625f, kB = 1.5f, kA2 = kA * kA, kB2 = kB * kB;

// One dimension of the input's transform.
inline void transform_input(const Vec (&d)[kWindow], Vec (&v)[kWindow]) {
  const Vec even_a = d[4] - kB2 * d[2], odd_a = kA * (d[3] - kB2 * d[1]);
  const Vec even_b = d[4] - kA2 * d[2], odd_b = kB * (d[3] - kA2 * d[1]);
  v[0] = kA2 * kB2 * d[0] - (kA2 + kB2) * d[2] + d[4];
  v[1] = even_a + odd_a;
  v[2] = even_a - odd_a;
  v[3] = even_b + odd_b;
  v[4] = even_b - odd_b;
  v[5] = kA2 * kB2 * d[1] - (kA2 + kB2) * d[3] + d[5];
}

// One dimension of the way back.
inline void transform_output(const Vec (&m)[kWindow], Vec (&y)[kTile]) {
  const Vec even_a = m[1] + m[2], odd_a = m[1] - m[2];
  const Vec even_b = m[3] + m[4], odd_b = m[3] - m[4];
  y[0] = m[0] + even_a + even_b;
  y[1] = kA * odd_a + kB * odd_b;
  y[2] = kA2 * even_a + kB2 * even_b;
  y[3] = kA * kA2 * odd_a + kB * kB2 * odd_b + m[5];
}

// The window of a tile -> windows (36, tiles, inputs), of which `windows` is the tile's first.
inline void transform_window(const Conv3x3& c, const Tile& tile, Index tiles, float* windows) {
  const float* const image = c.x + tile.image * c.height * c.width * c.inputs;
  for (Index channel = 0; channel < c.inputs; channel += kLanes) {
    const Index count = c.inputs - channel;
    Vec columns[kWindow][kWindow];  // [column][point]
#pragma GCC unroll 6
    for (int j = 0; j < kWindow; ++j) {
      const Index x = tile.column + j - 1;
      Vec d[kWindow];
#pragma GCC unroll 6
      for (int i = 0; i < kWindow; ++i) {
        const Index y = tile.row + i - 1;
        const bool inside = y >= 0 && y < c.height && x >= 0 && x < c.width;
        d[i] = inside ? load_partial(image + (y * c.width + x) * c.inputs + channel, count) : Vec{};
      }
      transform_input(d, columns[j]);
    }
#pragma GCC unroll 6
    for (int i = 0; i < kWindow; ++i) {
      Vec row[kWindow], v[kWindow];
#pragma GCC unroll 6
      for (int j = 0; j < kWindow; ++j) row[j] = columns[j][i];
      transform_input(row, v);
#pragma GCC unroll 6
      for (int j = 0; j < kWindow; ++j) {
        float* const to = windows + (i * kWindow + j) * tiles * c.inputs + channel;
        store_partial(to, v[j], count);
      }
    }
  }
}

// products (R, kPanelsAtOnce * kPanel) = windows (R, inputs) times a weight (inputs, 2 kLanes), of
// which the second half of a row is `second` floats from the first.
template <int R, int H>
inline void multiply_rows(const float* windows, Index inputs, const float* weight, Index second,
                          float* products, Index products_second) {
  Vec sum[R][H] = {};
#pragma GCC unroll 4
  for (Index k = 0; k < inputs; ++k) {
    Vec w[H];
#pragma GCC unroll 2
    for (int h = 0; h < H; ++h) w[h] = load(weight + k * kPanel + h * second);
#pragma GCC unroll 16
    for (int r = 0; r < R; ++r) {
      const Vec x = splat(windows[r * inputs + k]);
#pragma GCC unroll 2
      for (int h = 0; h < H; ++h) sum[r][h] += x * w[h];
    }
  }
#pragma GCC unroll 16
  for (int r = 0; r < R; ++r) {
#pragma GCC unroll 2
    for (int h = 0; h < H; ++h) {
      store(products + r * kPanelsAtOnce * kPanel + h * products_second, sum[r][h]);
    }
  }
}

// products (tiles, kPanelsAtOnce * kPanel) = windows (tiles, inputs) times one or two panels.
inline void multiply(const Conv3x3& c, const float* windows, Index tiles, const float* weight,
                     Index panels, float* products) {
  const Index next_panel = kPoints * c.inputs * kPanel;
  for (Index done = 0, parts = ceil_div(tiles, kRows); parts > 0; --parts) {
    const Index take = ceil_div(tiles - done, parts);
    const float* const x = windows + done * c.inputs;
    float* const to = products + done * kPanelsAtOnce * kPanel;
    call_with<kRows>(static_cast<int>(take), [&]<int R>() {
      if constexpr (kLanes == kPanel) {
        if (panels == 2) {
          multiply_rows<R, 2>(x, c.inputs, weight, next_panel, to, kPanel);
        } else {
          multiply_rows<R, 1>(x, c.inputs, weight, 0, to, 0);
        }
      } else {
        for (Index panel = 0; panel < panels; ++panel) {
          for (Index lane = 0; lane < kPanel; lane += 2 * kLanes) {
            multiply_rows<R, 2>(x, c.inputs, weight + panel * next_panel + lane, kLanes,
                                to + panel * kPanel + lane, kLanes);
          }
        }
      }
    });
    done += take;
  }
}

// Writes the tile's channels [first, first + kLanes) of the output: `products` are (36, tiles,
// kPanelsAtOnce * kPanel), at the tile and the channel.
inline void transform_back(const Conv3x3& c, const Tile& tile, Index tiles, Index first,
                           const float* products) {
  const Index count = c.outputs - first;
  Vec rows[kWindow][kTile];
#pragma GCC unroll 6
  for (int i = 0; i < kWindow; ++i) {
    Vec m[kWindow];
#pragma GCC unroll 6
    for (int j = 0; j < kWindow; ++j) {
      m[j] = load(products + (i * kWindow + j) * tiles * kPanelsAtOnce * kPanel);
    }
    transform_output(m, rows[i]);
  }
  const Vec bias = c.bias_o == nullptr ? Vec{} : load_partial(c.bias_o + first, count);
  float* const image = c.y + tile.image * c.height * c.width * c.outputs + first;
#pragma GCC unroll 4
  for (int j = 0; j < kTile; ++j) {
    const Index x = tile.column + j;
    if (x >= c.width) break;
    Vec m[kWindow], y[kTile];
#pragma GCC unroll 6
    for (int i = 0; i < kWindow; ++i) m[i] = rows[i][j];
    transform_output(m, y);
#pragma GCC unroll 4
    for (int i = 0; i < kTile; ++i) {
      if (tile.row + i >= c.height) break;
      store_partial(image + ((tile.row + i) * c.width + x) * c.outputs, y[i] + bias, count);
    }
  }
}

void conv3x3(const Conv3x3& c, std::int64_t task, float* scratch) {
  const Index most = tiles_per_task(c), start = task * most;
  const Index tiles = min_of(most, tiles_of(c) - start);
  float* const windows = scratch;
  float* const products = scratch + kPoints * most * c.inputs;
  for (Index t = 0; t < tiles; ++t) {
    transform_window(c, Tile(c, start + t), tiles, windows + t * c.inputs);
  }
  const Index panels = ceil_div(c.outputs, kPanel), width = kPanelsAtOnce * kPanel;
  for (Index panel = 0; panel < panels; panel += kPanelsAtOnce) {
    const Index count = min_of(kPanelsAtOnce, panels - panel);
    for (Index point = 0; point < kPoints; ++point) {
      multiply(c, windows + point * tiles * c.inputs, tiles,
               c.weight + (panel * kPoints + point) * c.inputs * kPanel, count,
               products + point * tiles * width);
    }
    for (Index t = 0; t < tiles; ++t) {
      const Tile tile(c, start + t);
      for (Index lane = 0; lane < count * kPanel; lane += kLanes) {
        const Index first = panel * kPanel + lane;
        if (first < c.outputs) transform_back(c, tile, tiles, first, products + t * width + lane);
      }
    }
  }
}

}  // namespace
}  // namespace fastdigin::FASTDIGIN_ISA
