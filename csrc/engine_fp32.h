// The arithmetic of a tile for any element type: widened to float32 in registers, fused
// multiply-adds along the head dim for the scores and along the value dim for the values.
#pragma once

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
    const int value_calls = value_ / (4 * W) + (value_ % (4 * W) + W - 1) / W;
    return heads * (rows_ / R + rows_ % R) * (tile / 4 + value_calls);
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
    int r = 0;
    for (; r + R <= rows_; r += R) score_rows<R>(q, tile, size, key_offset, s, r, prefetch);
    for (; r < rows_; r++) score_rows<1>(q, tile, size, key_offset, s, r, prefetch);
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
      const float m_old = m[r], m_new = std::max(m_old, top.max()), c = correction(m_old, m_new);
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
    int r = 0;
    for (; r + R <= rows_; r += R)
      value_rows<R>(p, tile, size, value_offset, rescale, corr, out, r, prefetch);
    for (; r < rows_; r++)
      value_rows<1>(p, tile, size, value_offset, rescale, corr, out, r, prefetch);
  }

  // Row of out_width() floats -> value_ elements.
  void store_row(const float* row, T* out) const {
    for (int d = 0; d < value_; d++) from_float(row[d], out + d);
  }

 private:
  static constexpr int R = Vec::kRows;

  static int pad(int n) { return (n + W - 1) / W * W; }
  int64_t query_width() const { return pad(nope_) + pad(rope_); }

  static void pack(float* q, const T* x, int n) {
    for (int d = 0; d < n; d++) q[d] = to_float(x[d]);
    for (int d = n; d < pad(n); d++) q[d] = 0.0f;
  }

  template <int NR>
  void score_rows(const float* q, const Tile& tile, int size, int64_t key_offset, float* s, int r,
                  Prefetch& prefetch) const {
    const int64_t width = query_width();
    for (int t = 0; t < size; t += 4) {
      prefetch.step();
      Vec acc[NR][4];
      RIDGELINE_UNROLL for (int i = 0; i < NR; i++) RIDGELINE_UNROLL for (int j = 0; j < 4; j++)
          acc[i][j] = Vec::set(0.0f);
      const T *nope[4], *rope[4];
      RIDGELINE_UNROLL for (int j = 0; j < 4; j++) {
        nope[j] = reinterpret_cast<const T*>(tile.key[t + j] + key_offset);
        rope[j] = reinterpret_cast<const T*>(tile.rope[t + j]);
      }
      dot<NR>(acc, q + r * width, width, nope, nope_);
      dot<NR>(acc, q + r * width + pad(nope_), width, rope, rope_);
      RIDGELINE_UNROLL for (int i = 0; i < NR; i++)
          Vec::sums4(acc[i], s + int64_t(r + i) * size + t);
    }
  }

  template <int NR>
  RIDGELINE_INLINE void dot(Vec (&acc)[NR][4], const float* q, int64_t width, const T* const* key,
                            int n) {
    int d = 0;
    for (; d + W <= n; d += W) {
      Vec k[4];
      RIDGELINE_UNROLL for (int j = 0; j < 4; j++) k[j] = Vec::load(key[j] + d);
      step<NR>(acc, q + d, width, k);
    }
    if (d < n) {
      Vec k[4];
      RIDGELINE_UNROLL for (int j = 0; j < 4; j++) k[j] = Vec::load_first(key[j] + d, n - d);
      step<NR>(acc, q + d, width, k);
    }
  }
  template <int NR>
  RIDGELINE_INLINE void step(Vec (&acc)[NR][4], const float* q, int64_t width, const Vec* k) {
    RIDGELINE_UNROLL for (int i = 0; i < NR; i++) {
      const Vec x = Vec::load(q + i * width);
      RIDGELINE_UNROLL for (int j = 0; j < 4; j++) acc[i][j] = Vec::fma(x, k[j], acc[i][j]);
    }
  }

  template <int NR>
  void value_rows(const float* p, const Tile& tile, int size, int64_t value_offset, bool rescale,
                  const float* corr, float* out, int r, Prefetch& prefetch) const {
    int d = 0;
    for (; d + 4 * W <= value_; d += 4 * W) {
      prefetch.step();
      accumulate<NR, 4>(p, tile, size, value_offset, rescale, corr, out, r, d, W);
    }
    for (; d < value_; d += W) {
      prefetch.step();
      const int lanes = std::min(W, value_ - d);
      accumulate<NR, 1>(p, tile, size, value_offset, rescale, corr, out, r, d, lanes);
    }
  }

  template <int NR, int NV>
  void accumulate(const float* p, const Tile& tile, int size, int64_t value_offset, bool rescale,
                  const float* corr, float* out, int r, int d, int lanes) const {
    Vec acc[NR][NV];
    RIDGELINE_UNROLL for (int i = 0; i < NR; i++) RIDGELINE_UNROLL for (int j = 0; j < NV; j++) {
      acc[i][j] = Vec::load(out + (r + i) * out_width() + d + j * W);
      if (rescale) acc[i][j] = acc[i][j] * Vec::set(corr[r + i]);
    }
    for (int t = 0; t < tile.tokens; t++) {
      const T* v = reinterpret_cast<const T*>(tile.value[t] + value_offset) + d;
      Vec x[NV];
      RIDGELINE_UNROLL for (int j = 0; j < NV; j++) x[j] =
          NV == 1 ? Vec::load_first(v, lanes) : Vec::load(v + j * W);
      RIDGELINE_UNROLL for (int i = 0; i < NR; i++) {
        const Vec w = Vec::set(p[int64_t(r + i) * size + t]);
        RIDGELINE_UNROLL for (int j = 0; j < NV; j++) acc[i][j] = Vec::fma(w, x[j], acc[i][j]);
      }
    }
    RIDGELINE_UNROLL for (int i = 0; i < NR; i++) RIDGELINE_UNROLL for (int j = 0; j < NV; j++)
        acc[i][j]
            .store(out + (r + i) * out_width() + d + j * W);
  }

  int nope_, rope_, value_, rows_;
};

}  // namespace ridgeline::RIDGELINE_ISA
