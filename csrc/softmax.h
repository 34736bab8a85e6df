// Exponentials for the online softmax, in base 2: scores carry the factor log2(e).
#pragma once

#include "simd.h"

namespace ridgeline::RIDGELINE_ISA {

constexpr float kLog2e = 1.44269504088896341f, kLn2 = 0.693147180559945309f;

// 2^x for x <= 95; 1 for 0, 0 for -inf. Minimax polynomial of the 5th order: relative error 9.2e-8
// before rounding.
RIDGELINE_INLINE Vec exp2(Vec x) {
  Vec n;
  const Vec f = Vec::split_exponent(x, &n);
  Vec p = Vec::set(1.32647273e-3f);
  p = Vec::fma(p, f, Vec::set(9.67151299e-3f));
  p = Vec::fma(p, f, Vec::set(5.55073358e-2f));
  p = Vec::fma(p, f, Vec::set(2.40222424e-1f));
  p = Vec::fma(p, f, Vec::set(6.93147004e-1f));
  p = Vec::fma(p, f, Vec::set(1.0f));
  return Vec::join_exponent(p, n);
}

// tanh(x). Near 0 an odd series, since the quotient of exponentials would cancel there.
RIDGELINE_INLINE Vec tanh(Vec x) {
  const Vec one = Vec::set(1.0f), two = Vec::set(2.0f), s = x * x;
  Vec series = Vec::set(1382.0f / 155925.0f * -1.0f);
  series = Vec::fma(series, s, Vec::set(62.0f / 2835.0f));
  series = Vec::fma(series, s, Vec::set(-17.0f / 315.0f));
  series = Vec::fma(series, s, Vec::set(2.0f / 15.0f));
  series = Vec::fma(series, s, Vec::set(-1.0f / 3.0f));
  series = Vec::fma(series * s, x, x);
  // 1 - 2 / (e^2x + 1), the exponent bounded where tanh is +-1 in float32 anyway.
  const Vec limit = Vec::set(-60.0f);
  Vec y = Vec::max(limit, x * Vec::set(2.0f * kLog2e));
  y = Vec::set(0.0f) - Vec::max(limit, Vec::set(0.0f) - y);
  return Vec::select_small(x, 0.3f, series, one - two / (exp2(y) + one));
}

// From raw dot products to logits in base 2: scaled, and capped if softcap > 0.
struct Logits {
  float scale, softcap;

  Vec operator()(Vec dot) const {
    if (softcap <= 0) return dot * Vec::set(scale * kLog2e);
    return tanh(dot * Vec::set(scale / softcap)) * Vec::set(softcap * kLog2e);
  }
};

// What to multiply earlier sums by when a row's maximum moves from m_old to m_new.
RIDGELINE_INLINE float correction(float m_old, float m_new) {
  return m_old == -kInf ? 0.0f : std::exp2(m_old - m_new);
}

// Subtracted from logits before exp2: the maximum, or 0 for a row that has seen no key.
RIDGELINE_INLINE float finite_max(float m) { return m == -kInf ? 0.0f : m; }

}  // namespace ridgeline::RIDGELINE_ISA
