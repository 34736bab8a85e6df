// The arithmetic of attention in float32, for any element type: elements are widened while they are
// packed.
#pragma once

#include "attention_pack.h"

namespace ridgeline::RIDGELINE_ISA {

// Products and their results.
struct MathFp32 {
  using Number = float;            // in packed tiles
  using Factor = Vec;              // a vector of numbers to multiply
  static constexpr int kPair = 1;  // numbers whose products are added at once
  static constexpr int W = Vec::kWidth, kPanel = 2 * W;
#if defined(__AVX512F__)
  static constexpr int kRows = 8;  // rows x 2 vectors of accumulators
#elif defined(__AVX2__)
  static constexpr int kRows = 6;
#else
  static constexpr int kRows = 2;
#endif

  RIDGELINE_INLINE Factor load(const float* p) { return Vec::load(p); }
  RIDGELINE_INLINE Factor spread(const float* p) { return Vec::set(*p); }
  RIDGELINE_INLINE Vec dot(Vec sum, Factor a, Factor b) { return Vec::fma(a, b, sum); }

  // A panel's width of two rows of results, rounded to numbers.
  RIDGELINE_INLINE void put(float* out, Vec a, Vec b) { a.store(out), b.store(out + W); }
  // kPair rows of results as one step of a right operand.
  RIDGELINE_INLINE void put_step(float* out, const Vec (&x)[kPair][2]) {
    put(out, x[0][0], x[0][1]);
  }
};

template <class T>
struct AttentionFp32 : MathFp32 {
  using Math = MathFp32;
  using Element = T;
  static constexpr int kStepKeys = 256;   // forward: 128 KiB of K and of V at d = 128
  static constexpr int kKeys = 96;        // backward: keys and rows of a tile of P and dS,
  static constexpr int kTileRows = 128;   // which are 48 KiB each
  static constexpr int kChunkRows = 512;  // backward: rows that stay packed in cache

  // W words of a row from element d on, zeros behind the last: what a transposition moves.
  RIDGELINE_INLINE Vec words(const T* row, int d, int dim) {
    return d + W <= dim ? Vec::load(row + d) : Vec::load_first(row + d, dim - d);
  }
  // kPair rows of elements, [d, d + kPanel), as one step of a right operand; null is zeros.
  RIDGELINE_INLINE void pack_step(const T* const (&row)[kPair], int d, int dim, float* out) {
    for (int e = 0; e < kPanel; e += W)
      (row[0] && d + e < dim ? words(row[0], d + e, dim) : Vec::set(0.0f)).store(out + e);
  }
  // Rows become the columns of a left operand, `ld` apart.
  template <class Get>
  static void pack_transposed(const Get& get, int count, int dim, float* out, int64_t ld) {
    pack_columns<AttentionFp32>(get, count, dim, out, ld);
  }
  // A row as a left operand, zeros up to `width`.
  RIDGELINE_INLINE void pack_row(const T* row, int dim, int width, float* out) {
    for (int d = 0; d < width; d += W)
      (row && d < dim ? words(row, d, dim) : Vec::set(0.0f)).store(out + d);
  }
};

}  // namespace ridgeline::RIDGELINE_ISA
