// The arithmetic of a tile for bfloat16 caches by AVX512-BF16 dot products. The cache is used as it
// lies in memory, never repacked:
// - scores: a vector holds 4 query rows x 4 pairs of dims, a key gives 8 dims by one 128-bit
//   broadcast, and two folds leave 4 tokens x 4 rows in a vector;
// - values: the records of two tokens are interleaved in registers, lanes run over dims. The
//   accumulators keep the interleaved order of dims until a row is stored.
#pragma once

#include "paging.h"
#include "softmax.h"

namespace ridgeline::RIDGELINE_ISA {

class EngineBf16 {
 public:
  using Element = BFloat16;

  EngineBf16(int nope, int rope, int value, int rows)
      : nope_(nope), rope_(rope), value_(value), rows_(rows), groups_((rows + 3) / 4) {}
  int64_t query_bytes() const { return groups_ * group_bytes(); }
  int64_t score_bytes(int tile) const { return int64_t(groups_) * tile * 4 * (4 + 2); }
  int64_t out_width() const { return (value_ + 31) / 32 * 32; }
  int64_t out_rows() const { return groups_ * 4; }
  // How often scores() and values() call Prefetch::step() on a tile of `heads` heads.
  int prefetch_steps(int tile, int heads) const {
    const int rest = groups_ % 4, narrow = rest ? tile / (rest == 3 ? 4 : kNarrow) : 0;
    const int scores = (groups_ / 4 * (tile / 4) + narrow) * chunks();
    const int wide = eight_rows() ? 0 : value_ / 64, thin = (value_ - wide * 64 + 31) / 32;
    const int eights = (rows_ + 3) / 8, thin_blocks = eights + (rows_ > 8 * eights);
    return heads * (scores + (wide * groups_ + thin * thin_blocks) * (tile / 16));
  }

  // [group][dims / 8][4 rows][8], each of the two parts padded to 8 dims.
  void pack_query(char* buffer, int r, const BFloat16* nope, const BFloat16* rope) const {
    BFloat16* q = reinterpret_cast<BFloat16*>(buffer + (r / 4) * group_bytes()) + (r % 4) * 8;
    for (int d = 0; d < nope_; d++) q[d / 8 * 32 + d % 8] = nope[d];
    q += pad8(nope_) * 4;
    for (int d = 0; d < rope_; d++) q[d / 8 * 32 + d % 8] = rope[d];
  }

  void scores(const char* query, const Tile& tile, int size, int64_t key_offset, char* buffer,
              Prefetch& prefetch) const {
    float* s = reinterpret_cast<float*>(buffer);
    // Whichever of queries and keys is read again for each block of the other should lie in L1.
    const int span = query_bytes() <= kQueryBytesInL1 ? kNarrow : size;
    for (int t = 0; t < size; t += span) {
      int g = 0;
      for (; g + 4 <= groups_; g += 4)
        score_groups<4, 4, 1>(query, tile, size, t, span, key_offset, s, g, prefetch);
      switch (groups_ - g) {
        case 3:
          score_groups<3, 4, 1>(query, tile, size, t, span, key_offset, s, g, prefetch);
          break;
        case 2:
          score_groups<2, kNarrow, 1>(query, tile, size, t, span, key_offset, s, g, prefetch);
          break;
        case 1:
          score_groups<1, kNarrow, 2>(query, tile, size, t, span, key_offset, s, g, prefetch);
          break;
      }
    }
  }

  bool softmax(char* buffer, int size, const Logits& logits, bool edge, const int* lo,
               const int* hi, float* m, float* l, float* corr) const {
    bool grew = false;
    for (int g = 0; g < groups_; g++) {
      float* s = reinterpret_cast<float*>(buffer) + int64_t(g) * size * 4;
      grew |= softmax_group(s, pairs(buffer, size, g), size, logits, edge, lo + 4 * g, hi + 4 * g,
                            m + 4 * g, l + 4 * g, corr + 4 * g);
    }
    return grew;
  }

  void values(const char* buffer, const Tile& tile, int size, int64_t value_offset, bool rescale,
              const float* corr, float* out, Prefetch& prefetch) const {
    const Values x{buffer, tile, size, value_offset, rescale, corr, out};
    int d = 0;
    if (!eight_rows())
      for (; d + 64 <= value_; d += 64)
        for (int r = 0; r < rows_; r += 4) four_rows<4, false>(x, r, d, 0, prefetch);
    for (; d < value_; d += 32) {
      const int dims = std::min(32, value_ - d);
      const __mmask32 lanes = __mmask32((uint64_t(1) << dims) - 1);
      for (int r = 0; r < rows_; r += rows_ - r > 4 ? 8 : 4) {
        if (rows_ - r > 4)
          dims == 32 ? accumulate<8, 2, false>(x, r, d, lanes, prefetch)
                     : accumulate<8, 2, true>(x, r, d, lanes, prefetch);
        else
          dims == 32 ? four_rows<2, false>(x, r, d, lanes, prefetch)
                     : four_rows<2, true>(x, r, d, lanes, prefetch);
      }
    }
  }

  // Undoes the interleaved order: of each 32 dims, the low halves of the 128-bit lanes come first.
  void store_row(const float* row, BFloat16* out) const {
    for (int d = 0; d < value_; d++) {
      const int i = d % 32, lane = i / 8, within = i % 8;
      from_float(row[d - i + (within / 4) * 16 + lane * 4 + within % 4], out + d);
    }
  }

 private:
  using Dots = __m512bh;

  struct Values {
    const char* buffer;
    const Tile& tile;
    int size;
    int64_t offset;
    bool rescale;
    const float* corr;
    float* out;
  };

  static constexpr int kNarrow = 8;  // tokens in registers for one or two groups of rows
  static constexpr int64_t kQueryBytesInL1 = 20 << 10;
  static constexpr int kAhead = 8;  // tokens between a value and its prefetch into L1

  // Blocks of 8 rows x 32 dims instead of 4 x 64: less to interleave while rows are few.
  bool eight_rows() const { return rows_ > 4 && rows_ < 32; }
  static int pad8(int n) { return (n + 7) / 8 * 8; }
  int chunks() const { return (nope_ + 63) / 64 + (rope_ + 63) / 64; }
  int64_t group_bytes() const { return int64_t(pad8(nope_) + pad8(rope_)) * 4 * 2; }
  uint32_t* pairs(char* buffer, int size, int g) const {
    return reinterpret_cast<uint32_t*>(buffer) + int64_t(groups_) * size * 4 +
           int64_t(g) * size * 2;
  }
  const uint32_t* pairs(const char* buffer, int size, int g) const {
    return reinterpret_cast<const uint32_t*>(buffer) + int64_t(groups_) * size * 4 +
           int64_t(g) * size * 2;
  }

  // NG groups of 4 rows by T tokens; CHAINS accumulators each, to hide the latency of few groups.
  template <int NG, int T, int CHAINS>
  void score_groups(const char* query, const Tile& tile, int size, int begin, int span,
                    int64_t key_offset, float* s, int g, Prefetch& prefetch) const {
    const char* q = query + g * group_bytes();
    for (int t = begin; t < begin + span; t += T) {
      __m512 acc[CHAINS][NG][T];
      RIDGELINE_UNROLL for (int c = 0; c < CHAINS; c++)
          RIDGELINE_UNROLL for (int i = 0; i < NG; i++) RIDGELINE_UNROLL for (int j = 0; j < T; j++)
              acc[c][i][j] = _mm512_setzero_ps();
      const char *nope[T], *rope[T];
      RIDGELINE_UNROLL for (int j = 0; j < T; j++) {
        nope[j] = tile.key[t + j] + key_offset;
        rope[j] = tile.rope[t + j];
      }
      dot<NG, T, CHAINS>(acc, q, nope, nope_, prefetch);
      if (rope_) dot<NG, T, CHAINS>(acc, q + pad8(nope_) * 8, rope, rope_, prefetch);
      RIDGELINE_UNROLL for (int i = 0; i < NG; i++) {
        if (CHAINS == 2)
          RIDGELINE_UNROLL for (int j = 0; j < T; j++) acc[0][i][j] =
              _mm512_add_ps(acc[0][i][j], acc[CHAINS - 1][i][j]);
        RIDGELINE_UNROLL for (int j = 0; j < T; j += 4) {
          const __m512* a = acc[0][i] + j;
          _mm512_store_ps(s + int64_t(g + i) * size * 4 + (t + j) * 4,
                          Vec::fold(Vec::fold(a[0], a[1]), Vec::fold(a[2], a[3])));
        }
      }
    }
  }

  template <int NG, int T, int CHAINS>
  __attribute__((always_inline)) void dot(__m512 (&acc)[CHAINS][NG][T], const char* q,
                                          const char* const* key, int n, Prefetch& prefetch) const {
    int d = 0;
    for (; d + 64 <= n; d += 64) {
      prefetch.step();
#pragma GCC unroll 2
      for (int e = d; e < d + 64; e += 8 * CHAINS) steps<NG, T, CHAINS>(acc, q, key, e);
    }
    if (d < n) prefetch.step();
    for (; d + 8 <= n; d += 8)
      step<NG, T>(acc[0], q, d, [&](int j) {
        return _mm_loadu_si128(reinterpret_cast<const __m128i*>(key[j] + d * 2));
      });
    if (d < n) {
      const __mmask8 mask = __mmask8((1u << (n - d)) - 1);
      step<NG, T>(acc[0], q, d, [&](int j) { return _mm_maskz_loadu_epi16(mask, key[j] + d * 2); });
    }
  }
  template <int NG, int T, int CHAINS>
  __attribute__((always_inline)) void steps(__m512 (&acc)[CHAINS][NG][T], const char* q,
                                            const char* const* key, int d) const {
    RIDGELINE_UNROLL for (int c = 0; c < CHAINS; c++) step<NG, T>(acc[c], q, d + 8 * c, [&](int j) {
      return _mm_loadu_si128(reinterpret_cast<const __m128i*>(key[j] + (d + 8 * c) * 2));
    });
  }
  template <int NG, int T, class Load>
  __attribute__((always_inline)) void step(__m512 (&acc)[NG][T], const char* q, int d,
                                           Load load) const {
    Dots rows[NG];
    RIDGELINE_UNROLL for (int i = 0; i < NG; i++) rows[i] =
        (Dots)_mm512_load_si512(q + i * group_bytes() + d * 8);
    RIDGELINE_UNROLL for (int j = 0; j < T; j++) {
      const Dots k = (Dots)_mm512_broadcast_i32x4(load(j));
      RIDGELINE_UNROLL for (int i = 0; i < NG; i++) acc[i][j] =
          _mm512_dpbf16_ps(acc[i][j], rows[i], k);
    }
  }

  // s [size / 4][4 tokens x 4 rows] -> p [size / 2][4 rows], pairs of bfloat16 probabilities.
  static bool softmax_group(float* s, uint32_t* p, int size, const Logits& logits, bool edge,
                            const int* lo, const int* hi, float* m, float* l, float* corr) {
    const __m512i token = _mm512_setr_epi32(0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2, 3, 3, 3, 3);
    const __m512i low =
        _mm512_broadcast_i32x4(_mm_loadu_si128(reinterpret_cast<const __m128i*>(lo)));
    const __m512i high =
        _mm512_broadcast_i32x4(_mm_loadu_si128(reinterpret_cast<const __m128i*>(hi)));
    __m512 top = _mm512_set1_ps(-kInf);
    for (int t = 0; t < size; t += 4) {
      __m512 x = logits(Vec{_mm512_load_ps(s + t * 4)}).v;
      if (edge) {
        const __m512i i = _mm512_add_epi32(token, _mm512_set1_epi32(t));
        const __mmask16 in = _mm512_cmpge_epi32_mask(i, low) & _mm512_cmplt_epi32_mask(i, high);
        x = _mm512_mask_blend_ps(in, _mm512_set1_ps(-kInf), x);
      }
      _mm512_store_ps(s + t * 4, x);
      top = _mm512_max_ps(x, top);
    }
    top = _mm512_max_ps(top, _mm512_shuffle_f32x4(top, top, 0x4e));
    top = _mm512_max_ps(top, _mm512_shuffle_f32x4(top, top, 0xb1));
    const __m128 minus_inf = _mm_set1_ps(-kInf), m_old = _mm_loadu_ps(m);
    const __m128 m_new = _mm_max_ps(_mm512_castps512_ps128(top), m_old);
    const bool grew = _mm_movemask_ps(_mm_cmpgt_ps(m_new, m_old)) != 0;
    _mm_storeu_ps(corr, _mm_set1_ps(1.0f));
    if (grew) {  // seldom after the first tiles
      alignas(16) float now[4];
      _mm_store_ps(now, m_new);
      for (int r = 0; r < 4; r++)
        if (now[r] > m[r]) corr[r] = correction(m[r], now[r]);
      _mm_storeu_ps(m, m_new);
    }
    // finite_max of each row
    const __m128 shifts = _mm_andnot_ps(_mm_cmpeq_ps(m_new, minus_inf), m_new);
    const __m512 shift = _mm512_broadcast_f32x4(shifts);
    // Probabilities of tokens 2i and 2i + 1 of a row side by side.
    const __m512i interleave =
        _mm512_set_epi16(31, 27, 30, 26, 29, 25, 28, 24, 23, 19, 22, 18, 21, 17, 20, 16, 15, 11, 14,
                         10, 13, 9, 12, 8, 7, 3, 6, 2, 5, 1, 4, 0);
    __m512 sum = _mm512_setzero_ps();
    for (int t = 0; t < size; t += 8) {
      const __m512 a = exp2(Vec{_mm512_sub_ps(_mm512_load_ps(s + t * 4), shift)}).v;
      const __m512 b = exp2(Vec{_mm512_sub_ps(_mm512_load_ps(s + t * 4 + 16), shift)}).v;
      sum = _mm512_add_ps(sum, _mm512_add_ps(a, b));
      const __m512i x = _mm512_permutexvar_epi16(interleave, (__m512i)_mm512_cvtne2ps_pbh(b, a));
      _mm512_store_si512(p + t * 2, x);
    }
    sum = _mm512_add_ps(sum, _mm512_shuffle_f32x4(sum, sum, 0x4e));
    sum = _mm512_add_ps(sum, _mm512_shuffle_f32x4(sum, sum, 0xb1));
    const __m128 sums = _mm512_castps512_ps128(sum);
    _mm_storeu_ps(l, _mm_fmadd_ps(_mm_loadu_ps(l), _mm_loadu_ps(corr), sums));
    return grew;
  }

  // Rows r .. r + 3, or as many of them as there are.
  template <int NV, bool PARTIAL>
  void four_rows(const Values& x, int r, int d, __mmask32 lanes, Prefetch& prefetch) const {
    switch (rows_ - r) {
      case 1:
        return accumulate<1, NV, PARTIAL>(x, r, d, lanes, prefetch);
      case 2:
        return accumulate<2, NV, PARTIAL>(x, r, d, lanes, prefetch);
      default:
        return accumulate<4, NV, PARTIAL>(x, r, d, lanes, prefetch);
    }
  }

  template <int NR, int NV, bool PARTIAL>
  void accumulate(const Values& x, int r, int d, __mmask32 lanes, Prefetch& prefetch) const {
    const int64_t width = out_width();
    float* out = x.out + r * width + d;
    const uint32_t* p = pairs(x.buffer, x.size, r / 4);
    __m512 acc[NR][NV];
    RIDGELINE_UNROLL for (int i = 0; i < NR; i++) RIDGELINE_UNROLL for (int j = 0; j < NV; j++)
        acc[i][j] = _mm512_load_ps(out + i * width + 16 * j);
    if (x.rescale)
      RIDGELINE_UNROLL for (int i = 0; i < NR; i++) RIDGELINE_UNROLL for (int j = 0; j < NV; j++)
          acc[i][j] = _mm512_mul_ps(acc[i][j], _mm512_set1_ps(x.corr[r + i]));
    const auto load = [&](const char* v, int h) __attribute__((always_inline)) {
      return PARTIAL ? _mm512_maskz_loadu_epi16(lanes, v) : _mm512_loadu_si512(v + 64 * h);
    };
    const auto pair = [&](int t, const char* v0, const char* v1) __attribute__((always_inline)) {
      Dots v[NV];
      RIDGELINE_UNROLL for (int h = 0; h < NV / 2; h++) {
        const __m512i a = load(v0, h), b = load(v1, h);
        v[2 * h] = (Dots)_mm512_unpacklo_epi16(a, b);
        v[2 * h + 1] = (Dots)_mm512_unpackhi_epi16(a, b);
      }
      RIDGELINE_UNROLL for (int i = 0; i < NR; i++) {
        const Dots w = (Dots)_mm512_set1_epi32(p[(i / 4) * x.size * 2 + t * 2 + i % 4]);
        RIDGELINE_UNROLL for (int j = 0; j < NV; j++) acc[i][j] =
            _mm512_dpbf16_ps(acc[i][j], w, v[j]);
      }
    };
    const int64_t skip = x.offset + d * 2;
    // Into L1, by the first of several row blocks; one block alone leaves no time for it.
    const bool ahead = rows_ > 4 && r == 0;
    const int tokens = x.tile.tokens;
    int t = 0;
    for (; t + 16 <= tokens; t += 16) {
      prefetch.step();
#pragma GCC unroll 2
      for (int u = t; u < t + 16; u += 2) {
        if (ahead && u + kAhead < x.size) {
          __builtin_prefetch(x.tile.value[u + kAhead] + skip, 0, 3);
          __builtin_prefetch(x.tile.value[u + kAhead + 1] + skip, 0, 3);
        }
        pair(u, x.tile.value[u] + skip, x.tile.value[u + 1] + skip);
      }
    }
    for (; t + 2 <= tokens; t += 2) pair(t, x.tile.value[t] + skip, x.tile.value[t + 1] + skip);
    // The partner of an odd last token is that token again, with probability 0.
    if (t < tokens) pair(t, x.tile.value[t] + skip, x.tile.value[t + 1] + skip);
    RIDGELINE_UNROLL for (int i = 0; i < NR; i++) RIDGELINE_UNROLL for (int j = 0; j < NV; j++)
        _mm512_store_ps(out + i * width + 16 * j, acc[i][j]);
  }

  int nope_, rope_, value_, rows_, groups_;
};

}  // namespace ridgeline::RIDGELINE_ISA
