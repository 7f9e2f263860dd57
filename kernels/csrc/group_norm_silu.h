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

// Per channel of a task, in scratch: two sums and three coefficients.
struct PerChannel {
  double *sum, *sum_of_products;
  float *pivot, *scale, *shift, *slope;

  PerChannel(const GroupNormSilu& g, float* scratch) {
    const std::int64_t n = (channels_per_task(g) + kLine - 1) / kLine * kLine;
    sum = reinterpret_cast<double*>(scratch);
    sum_of_products = sum + n;
    pivot = reinterpret_cast<float*>(sum_of_products + n);
    scale = pivot + n;
    shift = scale + n;
    slope = shift + n;
  }
};

std::size_t group_norm_silu_scratch(const GroupNormSilu& g) {
  const std::int64_t n = (channels_per_task(g) + kLine - 1) / kLine * kLine;
  return static_cast<std::size_t>(n) * (2 * sizeof(double) + 4 * sizeof(float));
}

// Calls body(lines, channel) for all that a task works on: `channel` is the task's own number of the
// channel of the first lane. Channels last, the lanes are channels; else all lanes are one channel.
template <class Body>
inline void for_all_lines(const GroupNormSilu& g, const Channels& c, Body&& body) {
  if (g.channels_last) {
    const std::int64_t start = c.sample * g.pixels * g.channels + c.first;
    for (std::int64_t i = 0; i < c.count; i += kLine) {
      const std::int64_t width = c.count - i < kLine ? c.count - i : kLine;
      body(Lines{start + i, g.pixels, g.channels, width}, i);
    }
    return;
  }
  for (std::int64_t i = 0; i < c.count; ++i) {
    const std::int64_t start = (c.sample * g.channels + c.first + i) * g.pixels;
    const std::int64_t whole = g.pixels / kLine;
    if (whole > 0) body(Lines{start, whole, kLine, kLine}, i);
    if (g.pixels % kLine != 0) body(Lines{start + whole * kLine, 1, kLine, g.pixels % kLine}, i);
  }
}

// One number a lane: of its channel.
inline Line of_channels(const GroupNormSilu& g, const float* per_channel, std::int64_t channel,
                        std::int64_t width) {
  return g.channels_last ? load_line(per_channel + channel, width)
                         : splat_line(per_channel[channel]);
}

// Adds the first `width` lanes to the sums of their channels.
inline void add_to_channels(const GroupNormSilu& g, const Line& line, std::int64_t width,
                            double* sums, std::int64_t channel) {
  float lanes[kLine];
  store_line(lanes, line, kLine);
  for (std::int64_t i = 0; i < width; ++i) sums[g.channels_last ? channel + i : channel] += lanes[i];
}

// Mean and variance of each group from sums of (x - pivot) and its square: the pivot, the channel's
// first pixel, keeps the difference of large numbers small.
inline void statistics(const GroupNormSilu& g, const Channels& c, float eps, const PerChannel& m) {
  for (std::int64_t i = 0; i < c.count; ++i) {
    m.sum[i] = m.sum_of_products[i] = 0;
    m.pivot[i] = g.channels_last ? g.x[c.sample * g.pixels * g.channels + c.first + i]
                                 : g.x[(c.sample * g.channels + c.first + i) * g.pixels];
  }
  for_all_lines(g, c, [&](const Lines& lines, std::int64_t channel) {
    const Line pivot = of_channels(g, m.pivot, channel, lines.width);
    for (std::int64_t start = 0; start < lines.count; start += kLinesPerSum) {
      Line sum = {}, squares = {};
      for (std::int64_t i = start; i < lines.count && i < start + kLinesPerSum; ++i) {
        const Line x = load_line(g.x + lines.offset + i * lines.stride, lines.width);
#pragma GCC unroll 4
        for (int v = 0; v < kLineVecs; ++v) {
          const Vec difference = x.v[v] - pivot.v[v];
          sum.v[v] += difference;
          squares.v[v] += difference * difference;
        }
      }
      add_to_channels(g, sum, lines.width, m.sum, channel);
      add_to_channels(g, squares, lines.width, m.sum_of_products, channel);
    }
  });
  const std::int64_t each = g.channels / g.groups;
  const double pixels = static_cast<double>(g.pixels);
  for (std::int64_t first = 0; first < c.count; first += each) {
    double mean = 0, squares = 0;
    for (std::int64_t i = first; i < first + each; ++i) mean += m.pivot[i] + m.sum[i] / pixels;
    mean /= static_cast<double>(each);
    for (std::int64_t i = first; i < first + each; ++i) {
      const double own = m.pivot[i] + m.sum[i] / pixels;
      squares += m.sum_of_products[i] - m.sum[i] * m.sum[i] / pixels;
      squares += pixels * (own - mean) * (own - mean);
    }
    const double variance = squares / (pixels * static_cast<double>(each));
    const std::int64_t group = c.sample * g.groups + (c.first + first) / each;
    g.mean_bg[group] = static_cast<float>(mean);
    g.rstd_bg[group] =
        static_cast<float>(1 / __builtin_sqrt((variance > 0 ? variance : variance * 0) + eps));
  }
}

// scale and shift of each channel, such that the normalised tensor is scale * x + shift.
inline void affine(const GroupNormSilu& g, const Channels& c, const PerChannel& m) {
  for (std::int64_t i = 0; i < c.count; ++i) {
    const std::int64_t channel = c.first + i;
    const std::int64_t group = c.sample * g.groups + channel / (g.channels / g.groups);
    m.scale[i] = g.rstd_bg[group] * g.weight_c[channel];
    m.shift[i] = g.bias_c[channel] - g.mean_bg[group] * m.scale[i];
  }
}

void group_norm_silu_forward(const GroupNormSilu& g, std::int64_t task, float* scratch) {
  const Channels c = channels_of(g, task);
  const PerChannel m(g, scratch);
  statistics(g, c, static_cast<float>(g.eps), m);
  affine(g, c, m);
  for_all_lines(g, c, [&](const Lines& lines, std::int64_t channel) {
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

// First into y the gradient of the normalised, scaled and shifted tensor, with its sums; then, of
// that and x, the gradient of x (the formula of PyTorch's native_group_norm_backward).
void group_norm_silu_backward(const GroupNormSilu& g, std::int64_t task, float* scratch) {
  const Channels c = channels_of(g, task);
  const PerChannel m(g, scratch);
  affine(g, c, m);
  const std::int64_t each = g.channels / g.groups;
  for (std::int64_t i = 0; i < c.count; ++i) {
    m.sum[i] = m.sum_of_products[i] = 0;
    m.pivot[i] = g.mean_bg[c.sample * g.groups + (c.first + i) / each];
  }
  for_all_lines(g, c, [&](const Lines& lines, std::int64_t channel) {
    const Line scale = of_channels(g, m.scale, channel, lines.width);
    const Line shift = of_channels(g, m.shift, channel, lines.width);
    const Line mean = of_channels(g, m.pivot, channel, lines.width);
    for (std::int64_t start = 0; start < lines.count; start += kLinesPerSum) {
      Line sum = {}, products = {};
      for (std::int64_t i = start; i < lines.count && i < start + kLinesPerSum; ++i) {
        const std::int64_t at = lines.offset + i * lines.stride;
        const Line x = load_line(g.x + at, lines.width);
        Line grad = load_line(g.grad + at, lines.width);
#pragma GCC unroll 4
        for (int v = 0; v < kLineVecs; ++v) {
          const Vec normalised = scale.v[v] * x.v[v] + shift.v[v];
          const Vec s = sigmoid(normalised);
          grad.v[v] *= s * (1.0f + normalised * (1.0f - s));
          sum.v[v] += grad.v[v];
          products.v[v] += grad.v[v] * (x.v[v] - mean.v[v]);
        }
        store_line(g.y + at, grad, lines.width);
      }
      add_to_channels(g, sum, lines.width, m.sum, channel);
      add_to_channels(g, products, lines.width, m.sum_of_products, channel);
    }
  });
  const double n = static_cast<double>(each * g.pixels);
  for (std::int64_t first = 0; first < c.count; first += each) {
    double sum = 0, products = 0;
    for (std::int64_t i = first; i < first + each; ++i) {
      sum += m.sum[i] * g.weight_c[c.first + i];
      products += m.sum_of_products[i] * g.weight_c[c.first + i];
    }
    const double rstd = g.rstd_bg[c.sample * g.groups + (c.first + first) / each];
    const double slope = -products / n * rstd * rstd * rstd;
    for (std::int64_t i = first; i < first + each; ++i) {
      m.slope[i] = static_cast<float>(slope);
      m.shift[i] = static_cast<float>(-slope * m.pivot[i] - sum / n * rstd);
    }
  }
  for_all_lines(g, c, [&](const Lines& lines, std::int64_t channel) {
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
