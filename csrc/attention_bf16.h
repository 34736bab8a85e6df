// The arithmetic of attention for bfloat16 by AVX512-BF16 dot products: a step of a product takes
// pairs of numbers, which operands therefore hold side by side.
#pragma once

#include "attention_pack.h"

namespace ridgeline::RIDGELINE_ISA {

struct MathBf16 {
  using Number = BFloat16;  // in packed tiles
  using Factor = __m512bh;  // 16 pairs
  static constexpr int kPair = 2, kRows = 8;
  static constexpr int W = Vec::kWidth, kPanel = 2 * W;

  RIDGELINE_INLINE Factor load(const BFloat16* p) { return (Factor)_mm512_loadu_si512(p); }
  RIDGELINE_INLINE Factor spread(const BFloat16* p) {
    int pair;
    std::memcpy(&pair, p, sizeof pair);
    return (Factor)_mm512_set1_epi32(pair);
  }
  RIDGELINE_INLINE Vec dot(Vec sum, Factor a, Factor b) { return {_mm512_dpbf16_ps(sum.v, a, b)}; }

  RIDGELINE_INLINE __m512i rounded(Vec a, Vec b) { return (__m512i)_mm512_cvtne2ps_pbh(b.v, a.v); }
  RIDGELINE_INLINE void put(BFloat16* out, Vec a, Vec b) {
    _mm512_storeu_si512(out, rounded(a, b));
  }
  RIDGELINE_INLINE void put_step(BFloat16* out, const Vec (&x)[kPair][2]) {
    put_pairs(out, rounded(x[0][0], x[0][1]), rounded(x[1][0], x[1][1]));
  }
  // Two rows of 32 as 32 pairs.
  RIDGELINE_INLINE void put_pairs(BFloat16* out, __m512i a, __m512i b) {
    const __m512i low = _mm512_set_epi16(47, 15, 46, 14, 45, 13, 44, 12, 43, 11, 42, 10, 41, 9, 40,
                                         8, 39, 7, 38, 6, 37, 5, 36, 4, 35, 3, 34, 2, 33, 1, 32, 0);
    const __m512i high = _mm512_add_epi16(low, _mm512_set1_epi16(16));
    _mm512_storeu_si512(out, _mm512_permutex2var_epi16(a, low, b));
    _mm512_storeu_si512(out + 32, _mm512_permutex2var_epi16(a, high, b));
  }
};

struct AttentionBf16 : MathBf16 {
  using Math = MathBf16;
  using Element = BFloat16;
  static constexpr int kStepKeys = 512;    // forward: 128 KiB of K and of V at d = 128
  static constexpr int kKeys = 128;        // backward: keys and rows of a tile of P and dS,
  static constexpr int kTileRows = 256;    // which are 64 KiB each
  static constexpr int kChunkRows = 1024;  // backward: rows that stay packed in cache

  RIDGELINE_INLINE __m512i raw(const BFloat16* row, int d, int dim) {
    if (!row || d >= dim) return _mm512_setzero_si512();
    if (d + 32 <= dim) return _mm512_loadu_si512(row + d);
    return _mm512_maskz_loadu_epi16((uint32_t(1) << (dim - d)) - 1, row + d);
  }
  RIDGELINE_INLINE Vec words(const BFloat16* row, int d, int dim) {
    return {_mm512_castsi512_ps(raw(row, d, dim))};
  }
  RIDGELINE_INLINE void pack_step(const BFloat16* const (&row)[kPair], int d, int dim,
                                  BFloat16* out) {
    put_pairs(out, raw(row[0], d, dim), raw(row[1], d, dim));
  }
  RIDGELINE_INLINE void pack_row(const BFloat16* row, int dim, int width, BFloat16* out) {
    for (int d = 0; d < width; d += 32) _mm512_storeu_si512(out + d, raw(row, d, dim));
  }
  // 32 rows at a time: words of two dims are transposed, then parted.
  template <class Get>
  static void pack_transposed(const Get& get, int count, int dim, BFloat16* out, int64_t ld) {
    const __m512i even =
        _mm512_set_epi16(62, 60, 58, 56, 54, 52, 50, 48, 46, 44, 42, 40, 38, 36, 34, 32, 30, 28, 26,
                         24, 22, 20, 18, 16, 14, 12, 10, 8, 6, 4, 2, 0);
    const __m512i odd = _mm512_add_epi16(even, _mm512_set1_epi16(1));
    for (int c = 0; c < count; c += kPanel) {
      const BFloat16* row[kPanel];
      for (int i = 0; i < kPanel; i++) row[i] = get(c + i);
      for (int d = 0; d < dim; d += 32) {
        Vec x[W], y[W];
        RIDGELINE_UNROLL for (int i = 0; i < W; i++) {
          x[i] = words(row[i], d, dim);
          y[i] = words(row[W + i], d, dim);
        }
        Vec::transpose(x), Vec::transpose(y);
        for (int i = 0; i < W; i++) {
          const __m512i a = _mm512_castps_si512(x[i].v), b = _mm512_castps_si512(y[i].v);
          BFloat16* to = out + (d + 2 * i) * ld + c;
          _mm512_storeu_si512(to, _mm512_permutex2var_epi16(a, even, b));
          _mm512_storeu_si512(to + ld, _mm512_permutex2var_epi16(a, odd, b));
        }
      }
    }
  }
};

}  // namespace ridgeline::RIDGELINE_ISA
