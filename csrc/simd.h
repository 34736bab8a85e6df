// Float vectors of one instruction set, chosen by the compiler flags of the including file. Each
// such file lives in the namespace RIDGELINE_ISA, so that no inline function compiled for one
// instruction set can stand in for another's.
#pragma once

#if defined(__AVX2__)
#include <immintrin.h>
#endif

#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>

#define RIDGELINE_INLINE static inline __attribute__((always_inline))
#define RIDGELINE_UNROLL _Pragma("GCC unroll 16")

namespace ridgeline::RIDGELINE_ISA {

constexpr float kInf = std::numeric_limits<float>::infinity();

struct BFloat16 {
  uint16_t bits;
};
struct Float16 {
  uint16_t bits;
};

RIDGELINE_INLINE float bits_to_float(uint32_t u) {
  float f;
  std::memcpy(&f, &u, 4);
  return f;
}
RIDGELINE_INLINE uint32_t float_to_bits(float f) {
  uint32_t u;
  std::memcpy(&u, &f, 4);
  return u;
}

RIDGELINE_INLINE float to_float(float x) { return x; }
RIDGELINE_INLINE float to_float(BFloat16 x) { return bits_to_float(uint32_t(x.bits) << 16); }
RIDGELINE_INLINE float to_float(Float16 x) {
  const uint32_t sign = uint32_t(x.bits & 0x8000) << 16, rest = x.bits & 0x7fff;
  if (rest >= 0x7c00) return bits_to_float(sign | 0x7f800000 | (rest & 0x3ff) << 13);
  // Rebias by a product, which also normalises subnormals: 2^(127 - 15).
  return bits_to_float(sign | float_to_bits(bits_to_float(rest << 13) * 0x1p112f));
}

// Round to nearest even.
RIDGELINE_INLINE void from_float(float f, float* out) { *out = f; }
RIDGELINE_INLINE void from_float(float f, BFloat16* out) {
  const uint32_t u = float_to_bits(f);
  out->bits = f != f ? uint16_t(0x7fc0) : uint16_t((u + 0x7fff + (u >> 16 & 1)) >> 16);
}
RIDGELINE_INLINE void from_float(float f, Float16* out) {
  const uint32_t u = float_to_bits(f), sign = u >> 16 & 0x8000;
  const uint32_t abs = u & 0x7fffffff;
  if (abs > 0x7f800000) {
    out->bits = uint16_t(sign | 0x7e00);
  } else if (abs >= 0x477ff000) {  // 65520 and above round to infinity
    out->bits = uint16_t(sign | 0x7c00);
  } else if (abs < 0x38800000) {  // subnormal: adding 0.5 shifts the mantissa into place and rounds
    out->bits = uint16_t(sign | (float_to_bits(bits_to_float(abs) + 0.5f) - 0x3f000000));
  } else {
    out->bits = uint16_t(sign | ((abs + 0xfff + (abs >> 13 & 1) - 0x38000000) >> 13));
  }
}

#if defined(__AVX512F__)

struct Vec {
  static constexpr int kWidth = 16;
  __m512 v;

  RIDGELINE_INLINE Vec set(float x) { return {_mm512_set1_ps(x)}; }
  RIDGELINE_INLINE Vec load(const float* p) { return {_mm512_loadu_ps(p)}; }
  RIDGELINE_INLINE Vec load(const BFloat16* p) {
    return widen(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
  }
  RIDGELINE_INLINE Vec load(const Float16* p) {
    return {_mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)))};
  }
  // The first n elements, zeros behind; nothing else is read.
  RIDGELINE_INLINE Vec load_first(const float* p, int n) {
    return {_mm512_maskz_loadu_ps(lanes(n), p)};
  }
  RIDGELINE_INLINE Vec load_first(const BFloat16* p, int n) {
    return widen(_mm256_maskz_loadu_epi16(lanes(n), p));
  }
  RIDGELINE_INLINE Vec load_first(const Float16* p, int n) {
    return {_mm512_cvtph_ps(_mm256_maskz_loadu_epi16(lanes(n), p))};
  }
  RIDGELINE_INLINE Vec in_register(Vec x) { return x; }
  RIDGELINE_INLINE Vec load_half(const BFloat16* p, int half) {
    const __m512i x = _mm512_loadu_si512(p);
    return {_mm512_castsi512_ps(half ? _mm512_and_si512(x, _mm512_set1_epi32(0xffff0000))
                                     : _mm512_slli_epi32(x, 16))};
  }
  void store(float* p) const { _mm512_storeu_ps(p, v); }
  void store(BFloat16* p) const { store_first(p, kWidth); }
  void store(Float16* p) const { store_first(p, kWidth); }
  // The first n elements; nothing else is written.
  void store_first(float* p, int n) const { _mm512_mask_storeu_ps(p, lanes(n), v); }
  void store_first(BFloat16* p, int n) const {
    // Round to nearest even; NaN becomes a quiet one.
    const __m512i u = _mm512_castps_si512(v), one = _mm512_set1_epi32(1);
    const __m512i even = _mm512_and_si512(_mm512_srli_epi32(u, 16), one);
    const __m512i near = _mm512_add_epi32(u, _mm512_add_epi32(even, _mm512_set1_epi32(0x7fff)));
    const __m512i x =
        _mm512_mask_blend_epi32(_mm512_cmp_ps_mask(v, v, _CMP_UNORD_Q), _mm512_srli_epi32(near, 16),
                                _mm512_set1_epi32(0x7fc0));
    _mm256_mask_storeu_epi16(p, lanes(n), _mm512_cvtepi32_epi16(x));
  }
  void store_first(Float16* p, int n) const {
    _mm256_mask_storeu_epi16(p, lanes(n), _mm512_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT));
  }

  friend Vec operator+(Vec a, Vec b) { return {_mm512_add_ps(a.v, b.v)}; }
  friend Vec operator-(Vec a, Vec b) { return {_mm512_sub_ps(a.v, b.v)}; }
  friend Vec operator*(Vec a, Vec b) { return {_mm512_mul_ps(a.v, b.v)}; }
  friend Vec operator/(Vec a, Vec b) { return {_mm512_div_ps(a.v, b.v)}; }
  RIDGELINE_INLINE Vec fma(Vec a, Vec b, Vec c) { return {_mm512_fmadd_ps(a.v, b.v, c.v)}; }
  // max(a, b), b where either is NaN.
  RIDGELINE_INLINE Vec max(Vec a, Vec b) { return {_mm512_max_ps(a.v, b.v)}; }
  // small where |x| < limit, else large
  RIDGELINE_INLINE Vec select_small(Vec x, float limit, Vec small, Vec large) {
    const __mmask16 m = _mm512_cmp_ps_mask(_mm512_abs_ps(x.v), _mm512_set1_ps(limit), _CMP_LT_OQ);
    return {_mm512_mask_blend_ps(m, large.v, small.v)};
  }
  // Lanes i with lo <= i < hi as they are, the others -inf.
  RIDGELINE_INLINE Vec mask_outside(Vec x, int lo, int hi) {
    const __m512i i = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
    const __mmask16 in = _mm512_cmpge_epi32_mask(i, _mm512_set1_epi32(lo)) &
                         _mm512_cmplt_epi32_mask(i, _mm512_set1_epi32(hi));
    return {_mm512_mask_blend_ps(in, _mm512_set1_ps(-kInf), x.v)};
  }
  // Lanes whose [lo, hi) contains i as they are, the others -inf.
  RIDGELINE_INLINE Vec mask_not_containing(Vec x, const int32_t* lo, const int32_t* hi, int i) {
    const __m512i at = _mm512_set1_epi32(i);
    const __mmask16 in = _mm512_cmpge_epi32_mask(at, _mm512_loadu_si512(lo)) &
                         _mm512_cmplt_epi32_mask(at, _mm512_loadu_si512(hi));
    return {_mm512_mask_blend_ps(in, _mm512_set1_ps(-kInf), x.v)};
  }
  // n = x rounded, bounded below where 2^n is 0, and x - n; 2^n * p.
  RIDGELINE_INLINE Vec split_exponent(Vec x, Vec* n) {
    x = max(set(-200.0f), x);
    *n = {_mm512_roundscale_ps(x.v, 0)};
    return x - *n;
  }
  RIDGELINE_INLINE Vec join_exponent(Vec p, Vec n) { return {_mm512_scalef_ps(p.v, n.v)}; }
  float sum() const { return _mm512_reduce_add_ps(v); }
  float max() const { return _mm512_reduce_max_ps(v); }

  // Adjacent lanes of a, then of b, added: four folds of sixteen vectors leave their sums in order.
  RIDGELINE_INLINE __m512 fold(__m512 a, __m512 b) {
    const __m512i even =
        _mm512_setr_epi32(0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30);
    const __m512i odd =
        _mm512_setr_epi32(1, 3, 5, 7, 9, 11, 13, 15, 17, 19, 21, 23, 25, 27, 29, 31);
    return _mm512_add_ps(_mm512_permutex2var_ps(a, even, b), _mm512_permutex2var_ps(a, odd, b));
  }
  // out[i] = sum(x[i]), four vectors.
  RIDGELINE_INLINE void sums4(const Vec* x, float* out) {
    const __m512 y = fold(fold(x[0].v, x[1].v), fold(x[2].v, x[3].v));  // lanes 4i.. : of x[i]
    const __m512 z = fold(y, y);
    _mm_storeu_ps(out, _mm512_castps512_ps128(fold(z, z)));
  }
  // Lane j of x[i] and lane i of x[j] change places.
  RIDGELINE_INLINE void transpose(Vec (&x)[16]) {
    __m512i t[16], u[16];
    RIDGELINE_UNROLL for (int i = 0; i < 16; i += 2) {
      const __m512i a = _mm512_castps_si512(x[i].v), b = _mm512_castps_si512(x[i + 1].v);
      t[i] = _mm512_unpacklo_epi32(a, b);
      t[i + 1] = _mm512_unpackhi_epi32(a, b);
    }
    RIDGELINE_UNROLL for (int i = 0; i < 16; i += 4) {
      u[i] = _mm512_unpacklo_epi64(t[i], t[i + 2]);
      u[i + 1] = _mm512_unpackhi_epi64(t[i], t[i + 2]);
      u[i + 2] = _mm512_unpacklo_epi64(t[i + 1], t[i + 3]);
      u[i + 3] = _mm512_unpackhi_epi64(t[i + 1], t[i + 3]);
    }
    RIDGELINE_UNROLL for (int i = 0; i < 4; i++) {  // 128-bit quarters, a 4x4 transpose of them
      const __m512i a = _mm512_shuffle_i32x4(u[i], u[4 + i], 0x88);
      const __m512i b = _mm512_shuffle_i32x4(u[8 + i], u[12 + i], 0x88);
      const __m512i c = _mm512_shuffle_i32x4(u[i], u[4 + i], 0xdd);
      const __m512i d = _mm512_shuffle_i32x4(u[8 + i], u[12 + i], 0xdd);
      x[i].v = _mm512_castsi512_ps(_mm512_shuffle_i32x4(a, b, 0x88));
      x[4 + i].v = _mm512_castsi512_ps(_mm512_shuffle_i32x4(c, d, 0x88));
      x[8 + i].v = _mm512_castsi512_ps(_mm512_shuffle_i32x4(a, b, 0xdd));
      x[12 + i].v = _mm512_castsi512_ps(_mm512_shuffle_i32x4(c, d, 0xdd));
    }
  }

 private:
  RIDGELINE_INLINE __mmask16 lanes(int n) { return __mmask16((1u << n) - 1); }
  RIDGELINE_INLINE Vec widen(__m256i x) {
    return {_mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(x), 16))};
  }
};

#elif defined(__AVX2__)

struct Vec {
  static constexpr int kWidth = 8;
  __m256 v;

  RIDGELINE_INLINE Vec set(float x) { return {_mm256_set1_ps(x)}; }
  RIDGELINE_INLINE Vec load(const float* p) { return {_mm256_loadu_ps(p)}; }
  RIDGELINE_INLINE Vec load(const BFloat16* p) {
    const __m256i x = _mm256_cvtepu16_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
    return {_mm256_castsi256_ps(_mm256_slli_epi32(x, 16))};
  }
  RIDGELINE_INLINE Vec load(const Float16* p) {
    return {_mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)))};
  }
  template <class T>
  RIDGELINE_INLINE Vec load_first(const T* p, int n) {
    T x[kWidth] = {};
    std::memcpy(x, p, n * sizeof(T));
    return load(x);
  }
  // Loaded once for several products: with sixteen registers a compiler would rather repeat the
  // load as each product's operand, and loads would set the pace.
  RIDGELINE_INLINE Vec in_register(Vec x) {
    asm("" : "+x"(x.v));
    return x;
  }
  RIDGELINE_INLINE Vec load_half(const BFloat16* p, int half) {
    const __m256i x = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
    return {_mm256_castsi256_ps(half ? _mm256_and_si256(x, _mm256_set1_epi32(0xffff0000))
                                     : _mm256_slli_epi32(x, 16))};
  }
  void store(float* p) const { _mm256_storeu_ps(p, v); }
  void store(BFloat16* p) const {
    // Round to nearest even; NaN becomes a quiet one.
    const __m256i u = _mm256_castps_si256(v), one = _mm256_set1_epi32(1);
    const __m256i even = _mm256_and_si256(_mm256_srli_epi32(u, 16), one);
    const __m256i near = _mm256_add_epi32(u, _mm256_add_epi32(even, _mm256_set1_epi32(0x7fff)));
    const __m256i nan = _mm256_castps_si256(_mm256_cmp_ps(v, v, _CMP_UNORD_Q));
    const __m256i x =
        _mm256_blendv_epi8(_mm256_srli_epi32(near, 16), _mm256_set1_epi32(0x7fc0), nan);
    _mm_storeu_si128(reinterpret_cast<__m128i*>(p),
                     _mm_packus_epi32(_mm256_castsi256_si128(x), _mm256_extracti128_si256(x, 1)));
  }
  void store(Float16* p) const {
    _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm256_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT));
  }
  template <class T>
  void store_first(T* p, int n) const {
    T x[kWidth];
    store(x);
    std::memcpy(p, x, n * sizeof(T));
  }

  friend Vec operator+(Vec a, Vec b) { return {_mm256_add_ps(a.v, b.v)}; }
  friend Vec operator-(Vec a, Vec b) { return {_mm256_sub_ps(a.v, b.v)}; }
  friend Vec operator*(Vec a, Vec b) { return {_mm256_mul_ps(a.v, b.v)}; }
  friend Vec operator/(Vec a, Vec b) { return {_mm256_div_ps(a.v, b.v)}; }
  RIDGELINE_INLINE Vec fma(Vec a, Vec b, Vec c) { return {_mm256_fmadd_ps(a.v, b.v, c.v)}; }
  RIDGELINE_INLINE Vec max(Vec a, Vec b) { return {_mm256_max_ps(a.v, b.v)}; }
  RIDGELINE_INLINE Vec select_small(Vec x, float limit, Vec small, Vec large) {
    const __m256 abs = _mm256_andnot_ps(_mm256_set1_ps(-0.0f), x.v);
    const __m256 m = _mm256_cmp_ps(abs, _mm256_set1_ps(limit), _CMP_LT_OQ);
    return {_mm256_blendv_ps(large.v, small.v, m)};
  }
  RIDGELINE_INLINE Vec mask_outside(Vec x, int lo, int hi) {
    const __m256i i = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
    const __m256i out = _mm256_or_si256(_mm256_cmpgt_epi32(_mm256_set1_epi32(lo), i),
                                        _mm256_cmpgt_epi32(i, _mm256_set1_epi32(hi - 1)));
    return {_mm256_blendv_ps(x.v, _mm256_set1_ps(-kInf), _mm256_castsi256_ps(out))};
  }
  RIDGELINE_INLINE Vec mask_not_containing(Vec x, const int32_t* lo, const int32_t* hi, int i) {
    const __m256i at = _mm256_set1_epi32(i);
    const __m256i from = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(lo));
    const __m256i to = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(hi));
    const __m256i in =
        _mm256_andnot_si256(_mm256_cmpgt_epi32(from, at), _mm256_cmpgt_epi32(to, at));
    return {_mm256_blendv_ps(_mm256_set1_ps(-kInf), x.v, _mm256_castsi256_ps(in))};
  }
  // Adding 1.5 * 2^23 rounds to an integer, 127 on top makes its low bits the exponent of 2^n;
  // 32 more reach subnormal results, in two factors, and 0 from -159 on.
  RIDGELINE_INLINE Vec split_exponent(Vec x, Vec* n) {
    const Vec magic = set(12582912.0f + 127.0f + 32.0f);
    x = max(set(-159.0f), x);
    *n = x + magic;
    return x - (*n - magic);
  }
  RIDGELINE_INLINE Vec join_exponent(Vec p, Vec n) {
    const __m256i power = _mm256_slli_epi32(_mm256_castps_si256(n.v), 23);
    return p * Vec{_mm256_castsi256_ps(power)} * set(0x1p-32f);
  }
  float sum() const {
    const __m128 x = _mm_add_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
    const __m128 y = _mm_add_ps(x, _mm_movehl_ps(x, x));
    return _mm_cvtss_f32(_mm_add_ss(y, _mm_shuffle_ps(y, y, 1)));
  }
  float max() const {
    const __m128 x = _mm_max_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
    const __m128 y = _mm_max_ps(x, _mm_movehl_ps(x, x));
    return _mm_cvtss_f32(_mm_max_ss(y, _mm_shuffle_ps(y, y, 1)));
  }
  // Of each half: a0 + a2, a1 + a3, b0 + b2, b1 + b3. Cheaper than hadd, which is three steps.
  RIDGELINE_INLINE __m256 fold(__m256 a, __m256 b) {
    return _mm256_add_ps(_mm256_shuffle_ps(a, b, 0x4e), _mm256_blend_ps(a, b, 0xcc));
  }
  RIDGELINE_INLINE void sums4(const Vec* x, float* out) {
    const __m256 a = fold(x[0].v, x[1].v), b = fold(x[2].v, x[3].v);
    const __m256 y = _mm256_add_ps(_mm256_shuffle_ps(a, b, 0x88), _mm256_shuffle_ps(a, b, 0xdd));
    _mm_storeu_ps(out, _mm_add_ps(_mm256_castps256_ps128(y), _mm256_extractf128_ps(y, 1)));
  }
  RIDGELINE_INLINE void transpose(Vec (&x)[8]) {
    __m256 t[8], u[8];
    RIDGELINE_UNROLL for (int i = 0; i < 4; i++) {
      t[2 * i] = _mm256_unpacklo_ps(x[2 * i].v, x[2 * i + 1].v);
      t[2 * i + 1] = _mm256_unpackhi_ps(x[2 * i].v, x[2 * i + 1].v);
    }
    RIDGELINE_UNROLL for (int i = 0; i < 8; i += 4) {
      u[i] = _mm256_shuffle_ps(t[i], t[i + 2], 0x44);
      u[i + 1] = _mm256_shuffle_ps(t[i], t[i + 2], 0xee);
      u[i + 2] = _mm256_shuffle_ps(t[i + 1], t[i + 3], 0x44);
      u[i + 3] = _mm256_shuffle_ps(t[i + 1], t[i + 3], 0xee);
    }
    RIDGELINE_UNROLL for (int i = 0; i < 4; i++) {
      x[i].v = _mm256_permute2f128_ps(u[i], u[4 + i], 0x20);
      x[4 + i].v = _mm256_permute2f128_ps(u[i], u[4 + i], 0x31);
    }
  }
};

#else

// Eight lanes in the vector extensions of GCC and Clang, which map them to what the machine has.
struct Vec {
  static constexpr int kWidth = 8;
  static constexpr bool kLittleEndian = __BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__;
  typedef float Floats __attribute__((vector_size(32)));
  typedef int32_t Ints __attribute__((vector_size(32)));
  typedef uint32_t Words __attribute__((vector_size(32)));
  typedef uint16_t Halves __attribute__((vector_size(16)));
  Floats v;

  template <class F>
  RIDGELINE_INLINE Vec make(F f) {
    float x[kWidth];
    for (int i = 0; i < kWidth; i++) x[i] = f(i);
    return load(x);
  }
  template <class V>
  RIDGELINE_INLINE V read(const void* p) {
    V x;
    std::memcpy(&x, p, sizeof(V));
    return x;
  }
  RIDGELINE_INLINE Vec set(float x) { return {Floats{x, x, x, x, x, x, x, x}}; }
  RIDGELINE_INLINE Vec load(const float* p) { return {read<Floats>(p)}; }
  RIDGELINE_INLINE Vec load(const BFloat16* p) {
    return {(Floats)(__builtin_convertvector(read<Halves>(p), Words) << 16)};
  }
  RIDGELINE_INLINE Vec load(const Float16* p) {
    return make([=](int i) { return to_float(p[i]); });
  }
  template <class T>
  RIDGELINE_INLINE Vec load_first(const T* p, int n) {
    return make([=](int i) { return i < n ? to_float(p[i]) : 0.0f; });
  }
  RIDGELINE_INLINE Vec in_register(Vec x) { return x; }
  RIDGELINE_INLINE Vec load_half(const BFloat16* p, int half) {
    const Words x = read<Words>(p);
    return {(Floats)((half != 0) == kLittleEndian ? x & 0xffff0000u : x << 16)};
  }
  void store(float* p) const { std::memcpy(p, &v, sizeof(v)); }
  template <class T>
  void store(T* p) const {
    store_first(p, kWidth);
  }
  template <class T>
  void store_first(T* p, int n) const {
    for (int i = 0; i < n; i++) from_float(v[i], p + i);
  }

  friend Vec operator+(Vec a, Vec b) { return {a.v + b.v}; }
  friend Vec operator-(Vec a, Vec b) { return {a.v - b.v}; }
  friend Vec operator*(Vec a, Vec b) { return {a.v * b.v}; }
  friend Vec operator/(Vec a, Vec b) { return {a.v / b.v}; }
  RIDGELINE_INLINE Vec fma(Vec a, Vec b, Vec c) { return {a.v * b.v + c.v}; }
  RIDGELINE_INLINE Vec max(Vec a, Vec b) { return {a.v > b.v ? a.v : b.v}; }
  RIDGELINE_INLINE Vec select_small(Vec x, float limit, Vec small, Vec large) {
    const Floats abs = (Floats)((Words)x.v & 0x7fffffffu);
    return {abs < limit ? small.v : large.v};
  }
  RIDGELINE_INLINE Vec mask_outside(Vec x, int lo, int hi) {
    const Ints i = {0, 1, 2, 3, 4, 5, 6, 7};
    return {((i >= lo) & (i < hi)) ? x.v : set(-kInf).v};
  }
  RIDGELINE_INLINE Vec mask_not_containing(Vec x, const int32_t* lo, const int32_t* hi, int at) {
    return {((read<Ints>(lo) <= at) & (read<Ints>(hi) > at)) ? x.v : set(-kInf).v};
  }
  // Adding 1.5 * 2^23 rounds to an integer, 127 on top makes its low bits the exponent of 2^n;
  // 32 more reach subnormal results, in two factors, and 0 from -159 on.
  RIDGELINE_INLINE Vec split_exponent(Vec x, Vec* n) {
    const Vec magic = set(12582912.0f + 127.0f + 32.0f);
    x = max(set(-159.0f), x);
    *n = x + magic;
    return x - (*n - magic);
  }
  RIDGELINE_INLINE Vec join_exponent(Vec p, Vec n) {
    return p * Vec{(Floats)((Words)n.v << 23)} * set(0x1p-32f);
  }
  float sum() const { return ((v[0] + v[4]) + (v[2] + v[6])) + ((v[1] + v[5]) + (v[3] + v[7])); }
  float max() const {
    float m = v[0];
    for (int i = 1; i < kWidth; i++) m = v[i] > m ? v[i] : m;
    return m;
  }
  RIDGELINE_INLINE void sums4(const Vec* x, float* out) {
    for (int i = 0; i < 4; i++) out[i] = x[i].sum();
  }
  RIDGELINE_INLINE void transpose(Vec (&x)[kWidth]) {
    float rows[kWidth][kWidth];
    for (int i = 0; i < kWidth; i++) x[i].store(rows[i]);
    for (int i = 0; i < kWidth; i++) x[i] = make([&](int j) { return rows[j][i]; });
  }
};

#endif

// Two vectors hold a pair's 2 x kWidth consecutive elements, in the order that is cheapest to
// widen: of bfloat16 the even ones, then the odd ones.
template <class T>
RIDGELINE_INLINE Vec load_half(const T* p, int half) {
  return Vec::load(p + half * Vec::kWidth);
}
RIDGELINE_INLINE Vec load_half(const BFloat16* p, int half) { return Vec::load_half(p, half); }
// Which element of its pair lane i of the two vectors holds.
template <class T>
constexpr int element_of_lane(int i) {
  return i;
}
template <>
constexpr int element_of_lane<BFloat16>(int i) {
  return i < Vec::kWidth ? 2 * i : 2 * (i - Vec::kWidth) + 1;
}

}  // namespace ridgeline::RIDGELINE_ISA
