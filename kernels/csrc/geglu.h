// GEGLU forward and backward: one pass over memory each. A task is some rows.
#pragma once

#include "activations.h"
#include "kernels.h"

namespace fastdigin::FASTDIGIN_ISA {
namespace {

std::int64_t geglu_rows(std::int64_t width) {
  const std::int64_t rows = 16384 / (width < 1 ? 1 : width);
  return rows < 1 ? 1 : rows;
}

std::int64_t geglu_tasks(const Geglu& g) {
  return (g.rows + geglu_rows(g.width) - 1) / geglu_rows(g.width);
}

std::size_t no_scratch(const Geglu&) { return 0; }

void geglu_forward(const Geglu& g, std::int64_t task, float*) {
  const std::int64_t first = task * geglu_rows(g.width), last = first + geglu_rows(g.width);
  for (std::int64_t row = first; row < last && row < g.rows; ++row) {
    const float *a = g.x + row * 2 * g.width, *b = a + g.width;
    float* y = g.y + row * g.width;
    for (std::int64_t c = 0; c < g.width; c += kLanes) {
      const std::int64_t count = g.width - c;
      const Vec gate = load_partial(b + c, count);
      store_partial(y + c, load_partial(a + c, count) * gate * standard_normal(gate).cdf, count);
    }
  }
}

void geglu_backward(const Geglu& g, std::int64_t task, float*) {
  const std::int64_t first = task * geglu_rows(g.width), last = first + geglu_rows(g.width);
  for (std::int64_t row = first; row < last && row < g.rows; ++row) {
    const float *a = g.x + row * 2 * g.width, *b = a + g.width, *grad = g.grad + row * g.width;
    float* da = g.y + row * 2 * g.width;
    float* db = da + g.width;
    for (std::int64_t c = 0; c < g.width; c += kLanes) {
      const std::int64_t count = g.width - c;
      const Vec gate = load_partial(b + c, count), incoming = load_partial(grad + c, count);
      const Normal normal = standard_normal(gate);
      store_partial(da + c, incoming * gate * normal.cdf, count);
      store_partial(db + c,
                    incoming * load_partial(a + c, count) * (normal.cdf + gate * normal.pdf),
                    count);
    }
  }
}

}  // namespace
}  // namespace fastdigin::FASTDIGIN_ISA
