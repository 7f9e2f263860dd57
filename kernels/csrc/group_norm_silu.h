// Group norm followed by SiLU, forward and input gradient, for both memory formats.
//
// Memory is walked in lines of kLine floats: pixels of one channel, or (channels last) channels of
// one pixel. A task is one group of one sample, or channels last as many groups as fill whole lines.
#pragma once

#include "activations.h"
#include "kernels.h"

namespace fastdigin::FASTDIGIN_ISA {
namespace {

inline constexpr std::int64_t kLine = 16;
inline constexpr int kLineVecs = kLine / kLanes;
inline constexpr std::int64_t kLinesPerSum = 128;  // then sums go on in double precision

// Some lines of `width` floats at most kLine, `stride` apart.
struct Lines {
  std::int64_t offset, count, stride, width;
};

struct Line {
  Vec v[kLineVecs];
};

inline Line load_line(const float* p, std::int64_t width) {
  Line line;
#pragma GCC unroll 4
  for (int i = 0; i < kLineVecs; ++i) {
    const std::int64_t left = width - i * kLanes;
    line.v[i] = left > 0 ? load_partial(p + i * kLanes, left) : Vec{};
  }
  return line;
}

inline void store_line(float* p, const Line& line, std::int64_t width) {
#pragma GCC unroll 4
  for (int i = 0; i < kLineVecs; ++i) {
    const std::int64_t left = width - i * kLanes;
    if (left > 0) store_partial(p + i * kLanes, line.v[i], left);
  }
}

inline Line splat_line(float x) {
  Line line;
  for (Vec& v : line.v) v = splat(x);
  return line;
}

// The channels [first, first + count) of sample b that a task works on, which are whole groups.
struct Channels {
  std::int64_t sample, first, count;
};

std::int64_t channels_per_task(const GroupNormSilu& g) {
  const std::int64_t group = g.channels / g.groups;
  if (!g.channels_last) return group;
  std::int64_t channels = group;
  while (channels % kLine != 0 && channels < g.channels) channels += group;
  return channels;
}

std::int64_t tasks_per_sample(const GroupNormSilu& g) {
  return (g.channels + channels_per_task(g) - 1) / channels_per_task(g);
}

std::int64_t group_norm_silu_tasks(const GroupNormSilu& g) {
  return g.pixels == 0 || g.channels == 0 ? 0 : g.batch * tasks_per_sample(g);
}

inline Channels channels_of(const GroupNormSilu& g, std::int64_t task) {
  const std::int64_t each = channels_per_task(g);
  const std::int64_t first = task % tasks_per_sample(g) * each, left = g.channels - first;
  return {task / tasks_per_sample(g), first, left < each ? left : each};
}

// Per channel of a task, in scratch; contiguous, where a task is one group, sums are in the first place.
struct PerChannel {
  double *sum, *sum_of_products;
  float *mean, *scale, *shift, *slope;

  PerChannel(const GroupNormSilu& g, float* scratch) {
    const std::int64_t n = (channels_per_task(g) + kLine - 1) / kLine * kLine;
    sum = reinterpret_cast<double*>(scratch);
    sum_of_products = sum + n;
    mean = reinterpret_cast<float*>(sum_of_products + n);
    scale = mean + n;
    shift = scale + n;
    slope = shift + n;
  }
};

std::size_t group_norm_silu_scratch(const GroupNormSilu& g) {
  const std::int64_t n = (channels_per_task(g) + kLine - 1) / kLine * kLine;
  return static_cast<std::size_t>(n) * (2 * sizeof(double) + 4 * sizeof(float));
}

// What lines are cut from.
enum class Spans { kChannels, kGroups };

// Calls body(lines, channel) for all that a task works on: `channel` is the task's own number of the
// channel of the first lane. Channels last, the lanes are channels; else all lanes are of one span, and
// `channel` is its first.
template <class Body>
inline void for_all_lines(const GroupNormSilu& g, const Channels& c, Spans spans, Body&& body) {
  if (g.channels_last) {
    // Some pixels of all channels at a time, which lie on few pages.
    for (std::int64_t pixel = 0; pixel < g.pixels; pixel += kLinesPerSum) {
      const std::int64_t start = (c.sample * g.pixels + pixel) * g.channels + c.first;
      const std::int64_t left = g.pixels - pixel, count = left < kLinesPerSum ? left : kLinesPerSum;
      for (std::int64_t i = 0; i < c.count; i += kLine) {
        const std::int64_t width = c.count - i < kLine ? c.count - i : kLine;
        body(Lines{start + i, count, g.channels, width}, i);
      }
    }
    return;
  }
  const std::int64_t channels = spans == Spans::kGroups ? c.count : 1, length = channels * g.pixels;
  const std::int64_t whole = length / kLine, rest = length % kLine;
  std::int64_t start = (c.sample * g.channels + c.first) * g.pixels;
  for (std::int64_t i = 0; i < c.count; i += channels, start += length) {
    if (whole > 0) body(Lines{start, whole, kLine, kLine}, i);
    if (rest > 0) body(Lines{start + whole * kLine, 1, kLine, rest}, i);
  }
}

// Calls body(group, first, last) for the groups of a task: `group` of (B,G), and the task's own numbers
// of its channels. (A channel's group is not worked out from its number: divisions are slow.)
template <class Body>
inline void for_all_groups(const GroupNormSilu& g, const Channels& c, Body&& body) {
  const std::int64_t each = g.channels / g.groups;
  std::int64_t group = c.sample * g.groups + c.first / each;
  for (std::int64_t first = 0; first < c.count; first += each) body(group++, first, first + each);
}

// Calls body(group, first, last, numbers, sum, sum of products) for the groups of a task, whose sums are
// complete.
template <class Body>
inline void for_all_sums(const GroupNormSilu& g, const Channels& c, const PerChannel& m,
                         Body&& body) {
  for_all_groups(g, c, [&](std::int64_t group, std::int64_t first, std::int64_t last) {
    double sum = 0, products = 0;
    for (std::int64_t i = first; i < last; ++i) {
      sum += m.sum[i];
      products += m.sum_of_products[i];
    }
    body(group, first, last, static_cast<double>((last - first) * g.pixels), sum, products);
  });
}

// One number a lane: of its channel.
inline Line of_channels(const GroupNormSilu& g, const float* per_channel, std::int64_t channel,
                        std::int64_t width) {
  return g.channels_last ? load_line(per_channel + channel, width)
                         : splat_line(per_channel[channel]);
}

// Sums of some lines: in single precision for up to 2 kLinesPerSum of them, then they are added up in
// double precision.
struct Sums {
  Line sum = {}, products = {};
  std::int64_t lines = 0;
};

inline void clear_sums(const Channels& c, const PerChannel& m) {
  for (std::int64_t i = 0; i < c.count; ++i) m.sum[i] = m.sum_of_products[i] = 0;
}

// Channels last, of the first `width` lanes. Else of all lanes, whatever the width of the last line: the
// lanes beyond it have added 0.
inline void add_up(const GroupNormSilu& g, const PerChannel& m, std::int64_t channel,
                   std::int64_t width, Sums& sums) {
  float sum[kLine], products[kLine];
  store_line(sum, sums.sum, kLine);
  store_line(products, sums.products, kLine);
  for (std::int64_t i = 0; i < (g.channels_last ? width : kLine); ++i) {
    const std::int64_t to = g.channels_last ? channel + i : 0;
    m.sum[to] += sum[i];
    m.sum_of_products[to] += products[i];
  }
  sums = Sums{};
}

// Calls add(at, width, sums) for every line, and adds up.
template <class Add>
inline void sum_lines(const GroupNormSilu& g, const PerChannel& m, const Lines& lines,
                      std::int64_t channel, Sums& sums, Add&& add) {
  for (std::int64_t start = 0; start < lines.count; start += kLinesPerSum) {
    const std::int64_t left = lines.count - start, count = left < kLinesPerSum ? left : kLinesPerSum;
    for (std::int64_t i = start; i < start + count; ++i) {
      add(lines.offset + i * lines.stride, lines.width, sums);
    }
    sums.lines += count;
    if (g.channels_last || sums.lines >= kLinesPerSum) add_up(g, m, channel, lines.width, sums);
  }
}

// Mean and variance of each group from sums of (x - pivot) and its square: the pivot, the group's first
// number, keeps the difference of large numbers small.
inline void statistics(const GroupNormSilu& g, const Channels& c, const PerChannel& m) {
  clear_sums(c, m);
  for_all_groups(g, c, [&](std::int64_t, std::int64_t first, std::int64_t last) {
    const std::int64_t sample = c.sample * g.pixels * g.channels, channel = c.first + first;
    const float pivot = g.x[sample + channel * (g.channels_last ? 1 : g.pixels)];
    for (std::int64_t i = first; i < last; ++i) m.mean[i] = pivot;
  });
  Sums sums;
  for_all_lines(g, c, Spans::kGroups, [&](const Lines& lines, std::int64_t channel) {
    const Line pivot = of_channels(g, m.mean, channel, lines.width);
    sum_lines(g, m, lines, channel, sums, [&](std::int64_t at, std::int64_t width, Sums& s) {
      Line difference = load_line(g.x + at, width);
#pragma GCC unroll 4
      for (int v = 0; v < kLineVecs; ++v) difference.v[v] -= pivot.v[v];
      if (width < kLine) {  // the other lanes hold -pivot
        float lanes[kLine];
        store_line(lanes, difference, kLine);
        difference = load_line(lanes, width);
      }
#pragma GCC unroll 4
      for (int v = 0; v < kLineVecs; ++v) {
        s.sum.v[v] += difference.v[v];
        s.products.v[v] += difference.v[v] * difference.v[v];
      }
    });
  });
  if (!g.channels_last) add_up(g, m, 0, kLine, sums);
  for_all_sums(g, c, m, [&](std::int64_t group, std::int64_t first, std::int64_t, double n,
                            double sum, double squares) {
    const double variance = (squares - sum * sum / n) / n;
    g.mean_bg[group] = static_cast<float>(m.mean[first] + sum / n);
    g.rstd_bg[group] =
        static_cast<float>(1 / __builtin_sqrt((variance > 0 ? variance : variance * 0) + g.eps));
  });
}

// scale and shift of each channel, such that the normalised tensor is scale * x + shift.
inline void affine(const GroupNormSilu& g, const Channels& c, const PerChannel& m) {
  const float *weight = g.weight_c + c.first, *bias = g.bias_c + c.first;
  for_all_groups(g, c, [&](std::int64_t group, std::int64_t first, std::int64_t last) {
    const float mean = g.mean_bg[group], rstd = g.rstd_bg[group];
    for (std::int64_t i = first; i < last; ++i) {
      m.mean[i] = mean;
      m.scale[i] = rstd * weight[i];
      m.shift[i] = bias[i] - mean * m.scale[i];
    }
  });
}

void group_norm_silu_forward(const GroupNormSilu& g, std::int64_t task, float* scratch) {
  const Channels c = channels_of(g, task);
  const PerChannel m(g, scratch);
  statistics(g, c, m);
  affine(g, c, m);
  for_all_lines(g, c, Spans::kChannels, [&](const Lines& lines, std::int64_t channel) {
    const Line scale = of_channels(g, m.scale, channel, lines.width);
    const Line shift = of_channels(g, m.shift, channel, lines.width);
    for (std::int64_t i = 0; i < lines.count; ++i) {
      const std::int64_t at = lines.offset + i * lines.stride;
      Line x = load_line(g.x + at, lines.width);
#pragma GCC unroll 4
      for (int v = 0; v < kLineVecs; ++v) {
        const Vec normalised = scale.v[v] * x.v[v] + shift.v[v];
        x.v[v] = normalised * sigmoid(normalised);
      }
      store_line(g.y + at, x, lines.width);
    }
  });
}

// First into y the gradient of the normalised tensor before weight and bias, with its sums; then, of
// that and x, the gradient of x (the formula of PyTorch's native_group_norm_backward).
void group_norm_silu_backward(const GroupNormSilu& g, std::int64_t task, float* scratch) {
  const Channels c = channels_of(g, task);
  const PerChannel m(g, scratch);
  affine(g, c, m);
  clear_sums(c, m);
  Sums sums;
  for_all_lines(g, c, Spans::kChannels, [&](const Lines& lines, std::int64_t channel) {
    const Line weight = of_channels(g, g.weight_c + c.first, channel, lines.width);
    const Line scale = of_channels(g, m.scale, channel, lines.width);
    const Line shift = of_channels(g, m.shift, channel, lines.width);
    const Line mean = of_channels(g, m.mean, channel, lines.width);
    sum_lines(g, m, lines, channel, sums, [&](std::int64_t at, std::int64_t width, Sums& total) {
      const Line x = load_line(g.x + at, width);
      Line grad = load_line(g.grad + at, width);
#pragma GCC unroll 4
      for (int v = 0; v < kLineVecs; ++v) {
        const Vec normalised = scale.v[v] * x.v[v] + shift.v[v];
        const Vec s = sigmoid(normalised);
        grad.v[v] *= weight.v[v] * s * (1.0f + normalised * (1.0f - s));
        total.sum.v[v] += grad.v[v];
        total.products.v[v] += grad.v[v] * (x.v[v] - mean.v[v]);
      }
      store_line(g.y + at, grad, width);
    });
  });
  if (!g.channels_last) add_up(g, m, 0, kLine, sums);
  for_all_sums(g, c, m, [&](std::int64_t group, std::int64_t first, std::int64_t last, double n,
                            double sum, double products) {
    const double mean = g.mean_bg[group], rstd = g.rstd_bg[group];
    const double slope = -products / n * rstd * rstd * rstd;
    for (std::int64_t i = first; i < last; ++i) {
      m.scale[i] = g.rstd_bg[group];
      m.slope[i] = static_cast<float>(slope);
      m.shift[i] = static_cast<float>(-slope * mean - sum / n * rstd);
    }
  });
  for_all_lines(g, c, Spans::kGroups, [&](const Lines& lines, std::int64_t channel) {
    const Line scale = of_channels(g, m.scale, channel, lines.width);
    const Line slope = of_channels(g, m.slope, channel, lines.width);
    const Line shift = of_channels(g, m.shift, channel, lines.width);
    for (std::int64_t i = 0; i < lines.count; ++i) {
      const std::int64_t at = lines.offset + i * lines.stride;
      const Line x = load_line(g.x + at, lines.width);
      Line y = load_line(g.y + at, lines.width);
#pragma GCC unroll 4
      for (int v = 0; v < kLineVecs; ++v) {
        y.v[v] = scale.v[v] * y.v[v] + (slope.v[v] * x.v[v] + shift.v[v]);
      }
      store_line(g.y + at, y, lines.width);
    }
  });
}

}  // namespace
}  // namespace fastdigin::FASTDIGIN_ISA
