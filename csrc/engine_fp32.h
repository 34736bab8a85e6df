// The arithmetic of a tile for any element type: widened to float32 in registers, fused
// multiply-adds along the head dim for the scores and along the value dim for the values.
#pragma once

#include <type_traits>

#include "paging.h"
#include "softmax.h"

namespace ridgeline::RIDGELINE_ISA {

template <class T>
class EngineFp32 {
 public:
  using Element = T;
  static constexpr int W = Vec::kWidth;

  // Widths of a query row's two parts and of an output row; query rows that share a cached head.
  EngineFp32(int nope, int rope, int value, int rows)
      : nope_(nope), rope_(rope), value_(value), rows_(rows) {}
  int64_t query_bytes() const { return int64_t(rows_) * query_width() * 4; }  // one head
  int64_t score_bytes(int tile) const { return int64_t(rows_) * tile * 4; }
  int64_t out_width() const { return pad(value_); }
  int64_t out_rows() const { return rows_; }
  // How often scores() and values() call Prefetch::step() on a tile of `heads` heads.
  int prefetch_steps(int tile, int heads) const {
    int steps = 0;
    row_blocks([&](auto rows, int) {
      const int wide = pairs_beside(rows()) * P;
      steps += tile / tokens_beside(rows());
      for (int d = 0; d < value_; d += kSlice) {
        const int dims = std::min(kSlice, value_ - d);
        steps += dims / wide + (dims % wide + P - 1) / P;
      }
    });
    return heads * steps;
  }

  // Row r of the head: two strided runs of elements.
  void pack_query(char* buffer, int r, const T* nope, const T* rope) const {
    float* q = reinterpret_cast<float*>(buffer) + r * query_width();
    pack(q, nope, nope_);
    pack(q + pad(nope_), rope, rope_);
  }

  void scores(const char* query, const Tile& tile, int size, int64_t key_offset, char* buffer,
              Prefetch& prefetch) const {
    const float* q = reinterpret_cast<const float*>(query);
    float* s = reinterpret_cast<float*>(buffer);
    row_blocks(
        [&](auto rows, int r) { score_rows<rows()>(q, tile, size, key_offset, s, r, prefetch); });
  }

  // Scores become probabilities in place; m, l, corr: one a row. lo, hi: the visible part of the
  // tile for each row, read only if `edge`. Returns whether a row's maximum grew.
  bool softmax(char* buffer, int size, const Logits& logits, bool edge, const int* lo,
               const int* hi, float* m, float* l, float* corr) const {
    bool grew = false;
    for (int r = 0; r < rows_; r++) {
      float* s = reinterpret_cast<float*>(buffer) + int64_t(r) * size;
      Vec top = Vec::set(-kInf);
      for (int t = 0; t < size; t += W) {
        Vec x = logits(Vec::load(s + t));
        if (edge) x = Vec::mask_outside(x, lo[r] - t, hi[r] - t);
        x.store(s + t);
        top = Vec::max(x, top);
      }
      const float m_old = m[r], m_new = std::max(m_old, top.max()),
                  c = m_new > m_old ? correction(m_old, m_new) : 1.0f;
      const Vec shift = Vec::set(finite_max(m_new));
      Vec sum = Vec::set(0.0f);
      for (int t = 0; t < size; t += W) {
        const Vec p = exp2(Vec::load(s + t) - shift);
        p.store(s + t);
        sum = sum + p;
      }
      l[r] = l[r] * c + sum.sum();
      m[r] = m_new;
      corr[r] = c;
      grew |= m_new > m_old;
    }
    return grew;
  }

  void values(const char* buffer, const Tile& tile, int size, int64_t value_offset, bool rescale,
              const float* corr, float* out, Prefetch& prefetch) const {
    const float* p = reinterpret_cast<const float*>(buffer);
    // Dims outside, rows inside: a slice of the values stays in L1 for all blocks of rows.
    for (int d = 0; d < value_; d += kSlice)
      row_blocks([&](auto rows, int r) {
        value_rows<rows()>(p, tile, size, value_offset, rescale, corr, out, r, d,
                           std::min(d + kSlice, value_), prefetch);
      });
  }

  // Row of out_width() floats -> value_ elements.
  void store_row(const float* row, T* out) const {
    for (int d = 0; d < pad(value_); d++) {
      const int e = d - d % P + element_of_lane<T>(d % P);
      if (e < value_) from_float(row[d], out + e);
    }
  }

 private:
  static constexpr int P = 2 * W;       // elements of a pair of vectors
  static constexpr int kSlice = 4 * P;  // dims of the values
  static constexpr int kSums = W == 16 ? 16 : 8;
  template <int N>
  using Rows = std::integral_constant<int, N>;

  static int pad(int n) { return (n + P - 1) / P * P; }
  int64_t query_width() const { return pad(nope_) + pad(rope_); }
  // Tokens, or pairs of vectors of values, in registers beside a block of rows: at least the eight
  // sums that keep two multipliers of four cycles' latency busy.
  static constexpr int tokens_beside(int rows) { return kSums / rows; }
  static constexpr int pairs_beside(int rows) { return kSums / rows / 2; }

  // Calls f(number of rows, first row) for blocks of rows that fit in registers.
  template <class F>
  void row_blocks(F f) const {
    int r = 0;
    for (; rows_ - r >= 4; r += 4) f(Rows<4>{}, r);
    if (rows_ - r >= 2) f(Rows<2>{}, r), r += 2;
    if (rows_ - r) f(Rows<1>{}, r);
  }

  // Queries lie in the order of lanes in which keys are widened.
  static void pack(float* q, const T* x, int n) {
    for (int d = 0; d < pad(n); d++) {
      const int e = d - d % P + element_of_lane<T>(d % P);
      q[d] = e < n ? to_float(x[e]) : 0.0f;
    }
  }

  template <int NR>
  void score_rows(const float* q, const Tile& tile, int size, int64_t key_offset, float* s, int r,
                  Prefetch& prefetch) const {
    constexpr int NT = tokens_beside(NR);
    const int64_t width = query_width();
    for (int t = 0; t < size; t += NT) {
      prefetch.step();
      Vec acc[NR * NT];
      RIDGELINE_UNROLL for (int i = 0; i < NR * NT; i++) acc[i] = Vec::set(0.0f);
      const T *nope[NT], *rope[NT];
      RIDGELINE_UNROLL for (int j = 0; j < NT; j++) {
        nope[j] = reinterpret_cast<const T*>(tile.key[t + j] + key_offset);
        rope[j] = reinterpret_cast<const T*>(tile.rope[t + j]);
      }
      dot<NR, NT>(acc, q + r * width, width, nope, nope_);
      dot<NR, NT>(acc, q + r * width + pad(nope_), width, rope, rope_);
      float sums[NR * NT];
      RIDGELINE_UNROLL for (int i = 0; i < NR * NT; i += 4) Vec::sums4(acc + i, sums + i);
      RIDGELINE_UNROLL for (int i = 0; i < NR; i++) RIDGELINE_UNROLL for (int j = 0; j < NT; j++)
          s[int64_t(r + i) * size + t + j] = sums[i * NT + j];
    }
  }

  template <int NR, int NT>
  RIDGELINE_INLINE void dot(Vec* acc, const float* q, int64_t width, const T* const* key, int n) {
    int d = 0;
    for (; d + P <= n; d += P) step<NR, NT>(acc, q + d, width, [&](int j) { return key[j] + d; });
    if (d < n) {
      T rest[NT][P] = {};
      for (int j = 0; j < NT; j++) std::memcpy(rest[j], key[j] + d, (n - d) * sizeof(T));
      step<NR, NT>(acc, q + d, width, [&](int j) { return rest[j]; });
    }
  }
  template <int NR, int NT, class Key>
  RIDGELINE_INLINE void step(Vec* acc, const float* q, int64_t width, Key key) {
    RIDGELINE_UNROLL for (int half = 0; half < 2; half++) {
      Vec k[NT];
      RIDGELINE_UNROLL for (int j = 0; j < NT; j++) k[j] = load_half(key(j), half);
      RIDGELINE_UNROLL for (int i = 0; i < NR; i++) {
        const Vec x = Vec::in_register(Vec::load(q + i * width + half * W));
        RIDGELINE_UNROLL for (int j = 0; j < NT; j++) acc[i * NT + j] =
            Vec::fma(x, k[j], acc[i * NT + j]);
      }
    }
  }

  // Dims [d, end).
  template <int NR>
  void value_rows(const float* p, const Tile& tile, int size, int64_t value_offset, bool rescale,
                  const float* corr, float* out, int r, int d, int end, Prefetch& prefetch) const {
    constexpr int NP = pairs_beside(NR);
    for (; d + NP * P <= end; d += NP * P) {
      prefetch.step();
      accumulate<NR, NP>(p, tile, size, value_offset, rescale, corr, out, r, d, P);
    }
    for (; d < end; d += P) {
      prefetch.step();
      accumulate<NR, 1>(p, tile, size, value_offset, rescale, corr, out, r, d,
                        std::min(P, end - d));
    }
  }

  // NP pairs of vectors from dim d on; `dims` of the last pair's are there.
  template <int NR, int NP>
  void accumulate(const float* p, const Tile& tile, int size, int64_t value_offset, bool rescale,
                  const float* corr, float* out, int r, int d, int dims) const {
    constexpr int NV = 2 * NP;
    Vec acc[NR][NV];
    RIDGELINE_UNROLL for (int i = 0; i < NR; i++) RIDGELINE_UNROLL for (int j = 0; j < NV; j++) {
      acc[i][j] = Vec::load(out + (r + i) * out_width() + d + j * W);
      if (rescale) acc[i][j] = acc[i][j] * Vec::set(corr[r + i]);
    }
    const auto token = [&](int t, const T* v) __attribute__((always_inline)) {
      Vec x[NV];
      RIDGELINE_UNROLL for (int j = 0; j < NV; j++) x[j] = load_half(v + j / 2 * P, j % 2);
      RIDGELINE_UNROLL for (int i = 0; i < NR; i++) {
        const Vec w = Vec::set(p[int64_t(r + i) * size + t]);
        RIDGELINE_UNROLL for (int j = 0; j < NV; j++) acc[i][j] = Vec::fma(w, x[j], acc[i][j]);
      }
    };
    const int64_t skip = value_offset + d * int64_t(sizeof(T));
    if (dims == P) {
#pragma GCC unroll 4
      for (int t = 0; t < tile.tokens; t++)
        token(t, reinterpret_cast<const T*>(tile.value[t] + skip));
    } else {
      T rest[P] = {};
      for (int t = 0; t < tile.tokens; t++) {
        std::memcpy(rest, tile.value[t] + skip, dims * sizeof(T));
        token(t, rest);
      }
    }
    RIDGELINE_UNROLL for (int i = 0; i < NR; i++) RIDGELINE_UNROLL for (int j = 0; j < NV; j++)
        acc[i][j]
            .store(out + (r + i) * out_width() + d + j * W);
  }

  int nope_, rope_, value_, rows_;
};

}  // namespace ridgeline::RIDGELINE_ISA
