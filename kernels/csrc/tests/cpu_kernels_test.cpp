// Test driver of the CPU kernels, for sanitizers and ctest: every function of the C ABI at odd sizes,
// with each instruction set, one thread and several. All must give what portable code on one thread
// does; that this is right is shown by tests/kernels/test_conformance.py.
//
// Every tensor is an allocation of its own of exactly its size, so that an address sanitizer sees
// each float read or written beyond it; results start as NaN.
#include <cmath>
#include <cstdio>
#include <limits>
#include <random>
#include <vector>

#include "../fastdigin_cpu.h"

namespace {

using Floats = std::vector<float>;
using Index = std::int64_t;

Floats draw(Index count, unsigned seed) {
  std::mt19937 generator(seed);
  std::normal_distribution<float> normal;
  Floats x(static_cast<std::size_t>(count));
  for (float& value : x) value = normal(generator);
  return x;
}

Floats poisoned(Index count) {
  return Floats(static_cast<std::size_t>(count), std::numeric_limits<float>::quiet_NaN());
}

// All results, one after the other.
struct Results {
  Floats values;
  void add(const Floats& x) { values.insert(values.end(), x.begin(), x.end()); }
};

struct Size {
  Index batch, heads, queries, keys, d;
};

// In the layout of the U-Net, (batch, rows, heads, d), of which the kernels see the transpose.
FastdiginHeads heads_of(Floats& x, const Size& s, Index rows) {
  return {x.data(), rows * s.heads * s.d, s.d, s.heads * s.d};
}

void attention(const Size& s, bool factors, int threads, Results& results) {
  const Index query_floats = s.batch * s.queries * s.heads * s.d;
  const Index key_floats = s.batch * s.keys * s.heads * s.d;
  Floats q = draw(query_floats, 1), k = draw(key_floats, 2), v = draw(key_floats, 3);
  Floats grad = draw(query_floats, 4), factor(s.batch);
  for (Index b = 0; b < s.batch; ++b) factor[b] = 0.5f * static_cast<float>(b);
  const float* factor_b = factors ? factor.data() : nullptr;
  const FastdiginAttentionSize size{s.batch, s.heads, s.queries, s.keys, s.d};

  Floats out = poisoned(query_floats), lse = poisoned(s.batch * s.heads * s.queries);
  FastdiginAttentionForward forward{size, heads_of(q, s, s.queries), heads_of(k, s, s.keys),
                                    heads_of(v, s, s.keys), heads_of(out, s, s.queries),
                                    lse.data(), factor_b, 0};
  fastdigin_attention_forward(&forward, threads);
  results.add(out);
  results.add(lse);

  for (const bool want_keys : {true, false}) {
    for (const bool with_out : {true, false}) {
      if (with_out && factors) continue;  // out is that of factor 1
      Floats dq = poisoned(query_floats), dk = poisoned(key_floats), dv = poisoned(key_floats);
      FastdiginAttentionBackward backward{};
      backward.size = size;
      backward.grad = heads_of(grad, s, s.queries);
      backward.q = heads_of(q, s, s.queries);
      backward.k = heads_of(k, s, s.keys);
      backward.v = heads_of(v, s, s.keys);
      if (with_out) backward.out = heads_of(out, s, s.queries);
      backward.lse_bhn = lse.data();
      backward.factor_b = factor_b;
      backward.dq = heads_of(dq, s, s.queries);
      if (want_keys) {
        backward.dk = heads_of(dk, s, s.keys);
        backward.dv = heads_of(dv, s, s.keys);
      }
      fastdigin_attention_backward(&backward, threads);
      results.add(dq);
      if (want_keys) {
        results.add(dk);
        results.add(dv);
      }
    }
  }

  Floats sum = draw(query_floats, 5);
  forward.out = heads_of(sum, s, s.queries);
  forward.accumulate = 1;
  fastdigin_attention_forward(&forward, threads);
  results.add(sum);
}

void group_norm(Index batch, Index channels, Index pixels, Index groups, bool last, int threads,
                Results& results) {
  Floats x = draw(batch * channels * pixels, 1), grad = draw(batch * channels * pixels, 2);
  Floats weight = draw(channels, 3), bias = draw(channels, 4);
  Floats mean = poisoned(batch * groups), rstd = poisoned(batch * groups);
  Floats y = poisoned(batch * channels * pixels), dx = y;
  FastdiginGroupNormSilu g{batch, channels, pixels, groups, last, x.data(), weight.data(),
                           bias.data(), mean.data(), rstd.data(), nullptr, y.data(), 1e-5};
  fastdigin_group_norm_silu_forward(&g, threads);
  g.grad = grad.data();
  g.y = dx.data();
  fastdigin_group_norm_silu_backward(&g, threads);
  results.add(y);
  results.add(dx);
}

void geglu(Index rows, Index width, int threads, Results& results) {
  Floats x = draw(rows * 2 * width, 1), grad = draw(rows * width, 2);
  Floats y = poisoned(rows * width), dx = poisoned(rows * 2 * width);
  FastdiginGeglu g{rows, width, x.data(), nullptr, y.data()};
  fastdigin_geglu_forward(&g, threads);
  g.grad = grad.data();
  g.y = dx.data();
  fastdigin_geglu_backward(&g, threads);
  results.add(y);
  results.add(dx);
}

void conv3x3(Index batch, Index height, Index width, Index inputs, Index outputs, int threads,
             Results& results) {
  const Index panels = (outputs + 15) / 16;
  Floats x = draw(batch * height * width * inputs, 1), weight = draw(panels * 36 * inputs * 16, 2);
  Floats bias = draw(outputs, 3), y = poisoned(batch * height * width * outputs);
  for (float& value : weight) value /= static_cast<float>(36 * inputs);
  FastdiginConv3x3 c{batch,         height,      width,    inputs, outputs, x.data(),
                     weight.data(), bias.data(), y.data(), threads};
  fastdigin_conv3x3(&c, threads);
  results.add(y);
  c.bias_o = nullptr;
  fastdigin_conv3x3(&c, threads);
  results.add(y);
}

Floats all_results(std::uint32_t features, int threads) {
  const Size sizes[] = {{2, 2, 33, 77, 40}, {1, 2, 16, 16, 32},  {3, 1, 64, 16, 24},
                        {1, 1, 1, 1, 1},    {1, 1, 5, 131, 17},  {1, 2, 130, 140, 8},
                        {2, 1, 31, 1, 160}, {1, 1, 600, 129, 3}, {2, 3, 0, 4, 8}};
  fastdigin_limit_features(features);
  Results results;
  for (const Size& size : sizes) {
    for (const bool factors : {false, true}) attention(size, factors, threads, results);
  }
  for (const bool last : {false, true}) {
    group_norm(2, 48, 35, 8, last, threads, results);
    group_norm(1, 6, 1, 3, last, threads, results);
    group_norm(2, 7, 64, 1, last, threads, results);
    group_norm(1, 320, 9, 32, last, threads, results);
    group_norm(0, 4, 9, 2, last, threads, results);
  }
  for (const Index width : {1, 7, 16, 33, 500}) geglu(37, width, threads, results);
  geglu(0, 4, threads, results);
  conv3x3(2, 8, 8, 48, 48, threads, results);
  conv3x3(3, 5, 7, 17, 33, threads, results);
  conv3x3(1, 1, 1, 1, 1, threads, results);
  conv3x3(5, 16, 16, 16, 70, threads, results);
  conv3x3(0, 4, 4, 3, 3, threads, results);
  return results.values;
}

// A NaN is in no range.
bool agree(const Floats& actual, const Floats& expected, float tolerance) {
  for (std::size_t i = 0; i < expected.size(); ++i) {
    const float allowed = tolerance * (1 + std::abs(expected[i]));
    if (!(std::abs(actual[i] - expected[i]) <= allowed)) {
      std::printf("result %zu is %g, not %g\n", i, actual[i], expected[i]);
      return false;
    }
  }
  return actual.size() == expected.size();
}

}  // namespace

int main() {
  const Floats portable = all_results(0, 1);
  bool right = true;
  for (const std::uint32_t features : {0u, kFastdiginAvx2, ~0u}) {
    const Floats alone = all_results(features, 1);
    right = agree(alone, portable, 1e-4f) && agree(all_results(features, 3), alone, 0) && right;
  }
  std::printf(right ? "all agree\n" : "they differ\n");
  return right ? 0 : 1;
}
