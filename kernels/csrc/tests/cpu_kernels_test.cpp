// Test driver of the CPU kernels, for sanitizers and ctest: every function of the C ABI at odd sizes,
// with each instruction set, one thread and several, against its definition in double precision.
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

int failures = 0;

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

void check(const char* name, const Floats& actual, const std::vector<double>& expected) {
  double error = 0, largest = 0;
  for (std::size_t i = 0; i < expected.size(); ++i) {
    const double difference = std::abs(actual[i] - expected[i]);
    error = difference <= error ? error : difference;  // a NaN is kept
    largest = std::fmax(largest, std::abs(expected[i]));
  }
  if (!(error <= 1e-5 * largest + 2e-6)) {  // what cancels leaves the rounding of its parts
    std::printf("%s: error %.2e of at most %.2e\n", name, error, largest);
    ++failures;
  }
}

struct Size {
  Index batch, heads, queries, keys, d;
};

// In the layout of the U-Net, (batch, rows, heads, d), of which the kernels see the transpose.
FastdiginHeads heads_of(Floats& x, const Size& s, Index rows) {
  return {x.data(), rows * s.heads * s.d, s.d, s.heads * s.d};
}

struct Attention {
  std::vector<double> out, lse, dq, dk, dv;
};

// By definition, for one factor per sample on the output.
Attention define_attention(const Size& s, const Floats& q, const Floats& k, const Floats& v,
                           const Floats& grad, const Floats& factor) {
  Attention r{std::vector<double>(q.size()), std::vector<double>(s.batch * s.heads * s.queries),
              std::vector<double>(q.size()), std::vector<double>(k.size()),
              std::vector<double>(v.size())};
  const double scale = 1 / std::sqrt(static_cast<double>(s.d));
  const auto at = [&](Index b, Index row, Index h, Index rows) {
    return ((b * rows + row) * s.heads + h) * s.d;
  };
  std::vector<double> p(s.keys), dp(s.keys);
  for (Index b = 0; b < s.batch; ++b) {
    if (factor[b] == 0) continue;
    for (Index h = 0; h < s.heads; ++h) {
      for (Index i = 0; i < s.queries; ++i) {
        const Index qi = at(b, i, h, s.queries);
        double sum = 0, delta = 0;
        for (Index j = 0; j < s.keys; ++j) {
          double score = 0;
          for (Index c = 0; c < s.d; ++c) score += q[qi + c] * double{k[at(b, j, h, s.keys) + c]};
          sum += p[j] = std::exp(scale * score);
        }
        r.lse[(b * s.heads + h) * s.queries + i] = std::log(sum);
        for (Index j = 0; j < s.keys; ++j) {
          const Index kj = at(b, j, h, s.keys);
          p[j] /= sum;
          dp[j] = 0;
          for (Index c = 0; c < s.d; ++c) {
            const double g = factor[b] * double{grad[qi + c]};
            r.out[qi + c] += factor[b] * p[j] * v[kj + c];
            r.dv[kj + c] += p[j] * g;
            dp[j] += g * v[kj + c];
          }
          delta += p[j] * dp[j];
        }
        for (Index j = 0; j < s.keys; ++j) {
          const Index kj = at(b, j, h, s.keys);
          const double ds = scale * p[j] * (dp[j] - delta);
          for (Index c = 0; c < s.d; ++c) {
            r.dq[qi + c] += ds * k[kj + c];
            r.dk[kj + c] += ds * q[qi + c];
          }
        }
      }
    }
  }
  return r;
}

void test_attention(const Size& s, bool factors, int threads) {
  const Index query_floats = s.batch * s.queries * s.heads * s.d;
  const Index key_floats = s.batch * s.keys * s.heads * s.d;
  Floats q = draw(query_floats, 1), k = draw(key_floats, 2), v = draw(key_floats, 3);
  Floats grad = draw(query_floats, 4), factor(s.batch, 1.0f);
  if (factors) {
    for (Index b = 0; b < s.batch; ++b) factor[b] = 0.5f * static_cast<float>(b);
  }
  const Attention expected = define_attention(s, q, k, v, grad, factor);
  const FastdiginAttentionSize size{s.batch, s.heads, s.queries, s.keys, s.d};
  const float* factor_b = factors ? factor.data() : nullptr;

  Floats out = poisoned(query_floats), lse = poisoned(s.batch * s.heads * s.queries);
  FastdiginAttentionForward forward{size, heads_of(q, s, s.queries), heads_of(k, s, s.keys),
                                    heads_of(v, s, s.keys), heads_of(out, s, s.queries),
                                    lse.data(), factor_b, 0};
  fastdigin_attention_forward(&forward, threads);
  check("attention output", out, expected.out);
  check("attention log-sum-exp", lse, expected.lse);

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
      check("dq", dq, expected.dq);
      if (want_keys) {
        check("dk", dk, expected.dk);
        check("dv", dv, expected.dv);
      }
    }
  }

  Floats sum = draw(query_floats, 5);
  std::vector<double> expected_sum(expected.out);
  for (std::size_t i = 0; i < sum.size(); ++i) expected_sum[i] += sum[i];
  forward.out = heads_of(sum, s, s.queries);
  forward.accumulate = 1;
  fastdigin_attention_forward(&forward, threads);
  check("accumulated attention", sum, expected_sum);
}

void test_group_norm(Index batch, Index channels, Index pixels, Index groups, bool last,
                     int threads) {
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

  std::vector<double> expected(x.size()), expected_dx(x.size());
  const Index each = channels / groups;
  const auto at = [&](Index b, Index c, Index i) {
    return last ? (b * pixels + i) * channels + c : (b * channels + c) * pixels + i;
  };
  for (Index b = 0; b < batch; ++b) {
    for (Index group = 0; group < groups; ++group) {
      const Index first = group * each, end = first + each;
      const double n = static_cast<double>(each * pixels);
      double mu = 0, variance = 0, sum = 0, products = 0;
      const auto all = [&](auto&& body) {
        for (Index c = first; c < end; ++c) {
          for (Index i = 0; i < pixels; ++i) body(c, at(b, c, i));
        }
      };
      all([&](Index, Index e) { mu += x[e] / n; });
      all([&](Index, Index e) { variance += (x[e] - mu) * (x[e] - mu) / n; });
      const double r = 1 / std::sqrt(variance + 1e-5);
      all([&](Index c, Index e) {
        const double z = (x[e] - mu) * r * weight[c] + bias[c], s = 1 / (1 + std::exp(-z));
        expected[e] = z * s;
        expected_dx[e] = grad[e] * s * (1 + z * (1 - s)) * weight[c];
        sum += expected_dx[e];
        products += expected_dx[e] * (x[e] - mu) * r;
      });
      all([&](Index, Index e) {
        expected_dx[e] = r * (expected_dx[e] - sum / n - (x[e] - mu) * r * products / n);
      });
    }
  }
  check("group norm and silu", y, expected);
  check("its gradient", dx, expected_dx);
}

void test_geglu(Index rows, Index width, int threads) {
  Floats x = draw(rows * 2 * width, 1), grad = draw(rows * width, 2);
  Floats y = poisoned(rows * width), dx = poisoned(rows * 2 * width);
  FastdiginGeglu g{rows, width, x.data(), nullptr, y.data()};
  fastdigin_geglu_forward(&g, threads);
  g.grad = grad.data();
  g.y = dx.data();
  fastdigin_geglu_backward(&g, threads);
  std::vector<double> expected(y.size()), expected_dx(dx.size());
  for (Index row = 0; row < rows; ++row) {
    for (Index c = 0; c < width; ++c) {
      const Index a = row * 2 * width + c, b = a + width, e = row * width + c;
      const double cdf = 0.5 * std::erfc(-x[b] / std::sqrt(2.0));
      const double pdf = std::exp(-0.5 * x[b] * x[b]) / std::sqrt(2 * M_PI);
      expected[e] = x[a] * x[b] * cdf;
      expected_dx[a] = grad[e] * x[b] * cdf;
      expected_dx[b] = grad[e] * x[a] * (cdf + x[b] * pdf);
    }
  }
  check("geglu", y, expected);
  check("geglu's gradient", dx, expected_dx);
}

}  // namespace

int main() {
  const Size sizes[] = {{2, 2, 33, 77, 40}, {1, 2, 16, 16, 32},  {3, 1, 64, 16, 24},
                        {1, 1, 1, 1, 1},    {1, 1, 5, 131, 17},  {1, 2, 130, 140, 8},
                        {2, 1, 31, 1, 160}, {1, 1, 600, 129, 3}, {2, 3, 0, 4, 8}};
  for (const std::uint32_t features : {0u, kFastdiginAvx2, ~0u}) {
    fastdigin_limit_features(features);
    for (const int threads : {1, 3}) {
      for (const Size& size : sizes) {
        for (const bool factors : {false, true}) test_attention(size, factors, threads);
      }
      for (const bool last : {false, true}) {
        test_group_norm(2, 48, 35, 8, last, threads);
        test_group_norm(1, 6, 1, 3, last, threads);
        test_group_norm(2, 7, 64, 1, last, threads);
        test_group_norm(1, 320, 9, 32, last, threads);
        test_group_norm(0, 4, 9, 2, last, threads);
      }
      for (const Index width : {1, 7, 16, 33, 500}) test_geglu(37, width, threads);
      test_geglu(0, 4, threads);
    }
  }
  std::printf(failures == 0 ? "all as defined\n" : "%d failures\n", failures);
  return failures == 0 ? 0 : 1;
}
