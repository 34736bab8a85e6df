// AVX-512 intrinsics in plain vector code, for checking the results of those kernels on a machine
// that cannot run them: included before everything else (-include), it replaces each intrinsic that
// csrc/ uses. Follows the operation sections of Intel's intrinsics guide. NaN payloads and floating
// point exceptions are not modelled.
#pragma once

#include <immintrin.h>

#include <cmath>
#include <cstdint>
#include <cstring>

#define __AVX512F__ 1
#define __AVX512BW__ 1
#define __AVX512DQ__ 1
#define __AVX512VL__ 1
#ifdef RIDGELINE_EMULATE_BF16
#define __AVX512BF16__ 1
#endif

namespace emulated_avx512 {

typedef int32_t I32 __attribute__((vector_size(64)));
typedef int64_t I64 __attribute__((vector_size(64)));
typedef uint16_t U16 __attribute__((vector_size(64)));
typedef float F32 __attribute__((vector_size(64)));

template <class V, class F>
static inline V fill(F lane) {
  V v;
  for (int i = 0; i < int(sizeof(V) / sizeof(v[0])); i++) v[i] = lane(i);
  return v;
}
// Lanes of `mask` from `lane`, the others from `other`.
template <class V, class F>
static inline V blend(uint32_t mask, V other, F lane) {
  for (int i = 0; i < int(sizeof(V) / sizeof(other[0])); i++)
    if (mask >> i & 1) other[i] = lane(i);
  return other;
}
template <class F>
static inline uint32_t mask_of(int lanes, F test) {
  uint32_t mask = 0;
  for (int i = 0; i < lanes; i++) mask |= uint32_t(test(i)) << i;
  return mask;
}
template <class V>
static inline V load(const void* p) {
  V v;
  std::memcpy(&v, p, sizeof v);
  return v;
}
template <class V>
static inline void store(void* p, V v) {
  std::memcpy(p, &v, sizeof v);
}
static inline bool aligned(const void* p) { return reinterpret_cast<uintptr_t>(p) % 64 == 0; }
template <class V>
static inline V load_aligned(const void* p) {
  if (!aligned(p)) __builtin_trap();
  return load<V>(p);
}
template <class V>
static inline void store_aligned(void* p, V v) {
  if (!aligned(p)) __builtin_trap();
  store(p, v);
}

static inline float flushed(float x) { return std::fpclassify(x) == FP_SUBNORMAL ? 0.0f * x : x; }
static inline float widen(uint16_t bits) {
  const uint32_t u = uint32_t(bits) << 16;
  float f;
  std::memcpy(&f, &u, 4);
  return flushed(f);
}
static inline uint16_t narrow(float x) {
  x = flushed(x);
  uint32_t u;
  std::memcpy(&u, &x, 4);
  if (x != x) return uint16_t(u >> 16 | 0x40);
  return uint16_t((u + 0x7fff + (u >> 16 & 1)) >> 16);
}
// Odd elements first, each a fused multiply-add that flushes subnormal results.
static inline __m512 dpbf16(__m512 sum, __m512bh x, __m512bh y) {
  const U16 a = (U16)x, b = (U16)y;
  return fill<__m512>([&](int i) {
    const float odd = std::fma(widen(a[2 * i + 1]), widen(b[2 * i + 1]), flushed(sum[i]));
    return flushed(std::fma(widen(a[2 * i]), widen(b[2 * i]), flushed(odd)));
  });
}
static inline __m512bh pack_bf16(__m512 high, __m512 low) {
  return (__m512bh)fill<U16>([&](int i) { return narrow(i < 16 ? low[i] : high[i - 16]); });
}
static inline float scaled(float a, float n) {
  if (a != a || n != n) return NAN;
  if (std::isinf(n)) return n > 0 ? (a == 0 ? NAN : a * INFINITY) : (std::isinf(a) ? NAN : 0 * a);
  return std::ldexp(a, int(std::fmax(-1000.0f, std::fmin(1000.0f, std::floor(n)))));
}
template <int IMM>
static inline float rounded(float x) {
  static_assert(IMM >> 4 == 0, "only whole numbers");
  constexpr int mode = IMM & 3;
  return mode == 0   ? std::nearbyint(x)
         : mode == 1 ? std::floor(x)
         : mode == 2 ? std::ceil(x)
                     : std::trunc(x);
}
template <int IMM>
static inline bool compared(float a, float b) {
  static_assert(IMM == _CMP_LT_OQ || IMM == _CMP_EQ_OQ || IMM == _CMP_GT_OQ || IMM == _CMP_LE_OQ ||
                    IMM == _CMP_GE_OQ || IMM == _CMP_UNORD_Q || IMM == _CMP_NEQ_UQ,
                "a comparison that no kernel uses yet");
  switch (IMM) {
    case _CMP_LT_OQ:
      return a < b;
    case _CMP_EQ_OQ:
      return a == b;
    case _CMP_GT_OQ:
      return a > b;
    case _CMP_LE_OQ:
      return a <= b;
    case _CMP_GE_OQ:
      return a >= b;
    case _CMP_UNORD_Q:
      return a != a || b != b;
    default:
      return !(a == b);
  }
}

// Within each 128-bit lane: the low or high halves of a and b, element by element.
template <class V, bool HIGH>
static inline __m512i unpacked(__m512i a, __m512i b) {
  const V x = (V)a, y = (V)b;
  constexpr int lane = 16 / sizeof(x[0]);
  return (__m512i)fill<V>([&](int i) {
    const int j = i / lane * lane + (HIGH ? lane / 2 : 0) + i % lane / 2;
    return i % 2 ? y[j] : x[j];
  });
}
template <int IMM, class V>
static inline V shuffled(V a, V b) {  // whole 128-bit lanes
  const I32 x = (I32)a, y = (I32)b;
  return (V)fill<I32>([&](int i) {
    const int from = (IMM >> (i / 4 * 2) & 3) * 4 + i % 4;
    return i < 8 ? x[from] : y[from];
  });
}
template <class V>
static inline V picked(V a, __m512i index, V b) {
  constexpr int n = sizeof(V) / sizeof(a[0]);
  const auto at = [&](int i) -> int {
    if constexpr (n == 32)
      return ((U16)index)[i];
    else
      return ((I32)index)[i];
  };
  return fill<V>([&](int i) {
    const int from = at(i) % (2 * n);
    return from < n ? a[from] : b[from - n];
  });
}
template <class V>
static inline V widened_halves(__m256i x) {
  U16 h = {};
  std::memcpy(&h, &x, 32);
  return fill<V>([&](int i) { return h[i]; });
}
template <class T, class V>
static inline V masked_load(uint32_t mask, V other, const void* p) {
  for (int i = 0; i < int(sizeof(V) / sizeof(T)); i++)
    if (mask >> i & 1)
      std::memcpy(reinterpret_cast<char*>(&other) + i * sizeof(T),
                  static_cast<const char*>(p) + i * sizeof(T), sizeof(T));
  return other;
}
template <class T, class V>
static inline void masked_store(void* p, uint32_t mask, V v) {
  for (int i = 0; i < int(sizeof(V) / sizeof(T)); i++)
    if (mask >> i & 1)
      std::memcpy(static_cast<char*>(p) + i * sizeof(T),
                  reinterpret_cast<const char*>(&v) + i * sizeof(T), sizeof(T));
}
static inline __m512 half_to_float(__m256i x) {
  const __m256 low = _mm256_cvtph_ps(_mm256_castsi256_si128(x));
  const __m256 high = _mm256_cvtph_ps(_mm256_extracti128_si256(x, 1));
  return fill<__m512>([&](int i) { return i < 8 ? low[i] : high[i - 8]; });
}
static inline __m256i float_to_half(__m512 x, int) {  // to nearest even
  __m256 halves[2];
  std::memcpy(halves, &x, 64);
  return _mm256_set_m128i(_mm256_cvtps_ph(halves[1], 0), _mm256_cvtps_ph(halves[0], 0));
}
static inline __m256i low_halves(__m512i x) {  // of each 32 bits
  uint16_t low[16];
  for (int i = 0; i < 16; i++) low[i] = uint16_t(((I32)x)[i]);
  return load<__m256i>(low);
}
template <class V>
static inline V repeat128(const void* x) {
  V v;
  for (int i = 0; i < 4; i++) std::memcpy(reinterpret_cast<char*>(&v) + 16 * i, x, 16);
  return v;
}
static inline __m512 broadcast(__m128 x) { return repeat128<__m512>(&x); }
static inline __m512i broadcast(__m128i x) { return repeat128<__m512i>(&x); }
static inline __m128 low128(__m512 x) {
  __m128 low;
  std::memcpy(&low, &x, 16);
  return low;
}
template <class F>
static inline float reduced(__m512 x, F f) {  // pairwise, halves first, as compilers expand it
  for (int n = 8; n >= 1; n /= 2)
    for (int i = 0; i < n; i++) x[i] = f(x[i], x[i + n]);
  return x[0];
}
template <class... T>
static inline __m512i words(T... x) {  // from the highest to the lowest
  const uint16_t reversed[] = {uint16_t(x)...};
  return (__m512i)fill<U16>([&](int i) { return reversed[31 - i]; });
}

}  // namespace emulated_avx512

#define EMULATED emulated_avx512
#define E_LANES(V, expression) EMULATED::fill<V>([&](int i) { return expression; })

static inline __m512 e_add_ps(__m512 a, __m512 b) { return a + b; }
static inline __m512 e_sub_ps(__m512 a, __m512 b) { return a - b; }
static inline __m512 e_mul_ps(__m512 a, __m512 b) { return a * b; }
static inline __m512 e_div_ps(__m512 a, __m512 b) { return a / b; }
static inline __m512 e_max_ps(__m512 a, __m512 b) {
  return E_LANES(__m512, a[i] > b[i] ? a[i] : b[i]);
}
static inline __m512 e_min_ps(__m512 a, __m512 b) {
  return E_LANES(__m512, a[i] < b[i] ? a[i] : b[i]);
}
static inline __m512 e_abs_ps(__m512 a) { return E_LANES(__m512, std::fabs(a[i])); }
static inline __m512 e_fmadd_ps(__m512 a, __m512 b, __m512 c) {
  return E_LANES(__m512, std::fma(a[i], b[i], c[i]));
}
static inline __m512 e_fmsub_ps(__m512 a, __m512 b, __m512 c) {
  return E_LANES(__m512, std::fma(a[i], b[i], -c[i]));
}
static inline __m512 e_fnmadd_ps(__m512 a, __m512 b, __m512 c) {
  return E_LANES(__m512, std::fma(-a[i], b[i], c[i]));
}
static inline __m512 e_scalef_ps(__m512 a, __m512 n) {
  return E_LANES(__m512, EMULATED::scaled(a[i], n[i]));
}
static inline __m512i e_add_epi32(__m512i a, __m512i b) {
  return (__m512i)((EMULATED::I32)a + (EMULATED::I32)b);
}
static inline __m512i e_sub_epi32(__m512i a, __m512i b) {
  return (__m512i)((EMULATED::I32)a - (EMULATED::I32)b);
}
static inline __m512i e_slli_epi32(__m512i a, unsigned n) {
  return (__m512i)((EMULATED::I32)a << int(n));
}
static inline __m512i e_srli_epi32(__m512i a, unsigned n) {
  return (__m512i)EMULATED::fill<EMULATED::I32>(
      [&](int i) { return int32_t(uint32_t(((EMULATED::I32)a)[i]) >> n); });
}
static inline __m512i e_and_si512(__m512i a, __m512i b) { return a & b; }
static inline __m512i e_add_epi16(__m512i a, __m512i b) {
  return (__m512i)((EMULATED::U16)a + (EMULATED::U16)b);
}
static inline __m512i e_set1_epi16(short x) {
  return (__m512i)EMULATED::fill<EMULATED::U16>([&](int) { return uint16_t(x); });
}
static inline __m512i e_mask_blend_epi32(__mmask16 m, __m512i a, __m512i b) {
  return (__m512i)EMULATED::blend(m, (EMULATED::I32)a,
                                  [&](int i) { return ((EMULATED::I32)b)[i]; });
}
static inline __m512 e_set1_ps(float x) { return E_LANES(__m512, x); }
static inline __m512i e_set1_epi32(int x) {
  return (__m512i)EMULATED::fill<EMULATED::I32>([&](int) { return x; });
}
static inline __m512i e_setr_epi32(int a, int b, int c, int d, int e, int f, int g, int h, int i,
                                   int j, int k, int l, int m, int n, int o, int p) {
  return (__m512i)EMULATED::I32{a, b, c, d, e, f, g, h, i, j, k, l, m, n, o, p};
}
static inline __m512 e_mask_blend_ps(__mmask16 m, __m512 a, __m512 b) {
  return EMULATED::blend(m, a, [&](int i) { return b[i]; });
}
static inline __m512 e_maskz_mov_ps(__mmask16 m, __m512 a) {
  return EMULATED::blend(m, __m512{}, [&](int i) { return a[i]; });
}
#define E_COMPARE(name, op)                                            \
  static inline __mmask16 e_cmp##name##_epi32(__m512i a, __m512i b) {  \
    const auto x = (EMULATED::I32)a, y = (EMULATED::I32)b;             \
    return EMULATED::mask_of(16, [&](int i) { return x[i] op y[i]; }); \
  }
E_COMPARE(ge, >=)
E_COMPARE(gt, >)
E_COMPARE(lt, <)
E_COMPARE(le, <=)
template <int IMM>
static inline __mmask16 e_cmp_ps(__m512 a, __m512 b) {
  return EMULATED::mask_of(16, [&](int i) { return EMULATED::compared<IMM>(a[i], b[i]); });
}
static inline __m512i e_permutexvar_epi16(__m512i index, __m512i a) {
  const auto x = (EMULATED::U16)a, at = (EMULATED::U16)index;
  return (__m512i)EMULATED::fill<EMULATED::U16>([&](int i) { return x[at[i] % 32]; });
}

#define _mm512_add_ps e_add_ps
#define _mm512_sub_ps e_sub_ps
#define _mm512_mul_ps e_mul_ps
#define _mm512_div_ps e_div_ps
#define _mm512_max_ps e_max_ps
#define _mm512_min_ps e_min_ps
#define _mm512_abs_ps e_abs_ps
#define _mm512_fmadd_ps e_fmadd_ps
#define _mm512_fmsub_ps e_fmsub_ps
#define _mm512_fnmadd_ps e_fnmadd_ps
#define _mm512_scalef_ps e_scalef_ps
#undef _mm512_roundscale_ps
#define _mm512_roundscale_ps(a, imm) \
  [&](__m512 x) { return E_LANES(__m512, EMULATED::rounded<(imm)>(x[i])); }(a)
#undef _mm512_reduce_ps
#define _mm512_reduce_ps(a, imm)                                                                 \
  [&](__m512 x) {                                                                                \
    return E_LANES(__m512, std::isinf(x[i]) ? 0.0f : x[i] - EMULATED::rounded<(imm) & 7>(x[i])); \
  }(a)
#define _mm512_add_epi32 e_add_epi32
#define _mm512_sub_epi32 e_sub_epi32
#undef _mm512_slli_epi32
#define _mm512_slli_epi32 e_slli_epi32
#undef _mm512_srli_epi32
#define _mm512_srli_epi32 e_srli_epi32
#define _mm512_and_si512 e_and_si512
#define _mm512_add_epi16 e_add_epi16
#define _mm512_set1_epi16 e_set1_epi16
#define _mm512_mask_blend_epi32 e_mask_blend_epi32
#define _mm512_set1_ps e_set1_ps
#define _mm512_set1_epi32 e_set1_epi32
#undef _mm512_setr_epi32
#define _mm512_setr_epi32 e_setr_epi32
#define _mm512_set_epi16 EMULATED::words
#define _mm512_setzero_ps() (__m512{})
#define _mm512_setzero_si512() (__m512i{})
#define _mm512_castps512_ps128 EMULATED::low128
#define _mm512_castsi512_ps(x) ((__m512)(x))
#define _mm512_castps_si512(x) ((__m512i)(x))
#define _mm512_broadcast_f32x4(x) EMULATED::broadcast(x)
#define _mm512_broadcast_i32x4(x) EMULATED::broadcast(x)
#define _mm512_cvtepu16_epi32(x) ((__m512i)EMULATED::widened_halves<EMULATED::I32>(x))
#define _mm512_cvtph_ps EMULATED::half_to_float
#undef _mm512_cvtps_ph
#define _mm512_cvtps_ph EMULATED::float_to_half
#define _mm512_cvtepi32_epi16 EMULATED::low_halves
#define _mm512_cvtne2ps_pbh EMULATED::pack_bf16
#define _mm512_dpbf16_ps EMULATED::dpbf16
#define _mm512_load_ps EMULATED::load_aligned<__m512>
#define _mm512_load_si512 EMULATED::load_aligned<__m512i>
#define _mm512_loadu_ps EMULATED::load<__m512>
#define _mm512_loadu_si512 EMULATED::load<__m512i>
#define _mm512_store_ps EMULATED::store_aligned<__m512>
#define _mm512_store_si512 EMULATED::store_aligned<__m512i>
#define _mm512_storeu_ps EMULATED::store<__m512>
#define _mm512_storeu_si512 EMULATED::store<__m512i>
#define _mm512_stream_ps EMULATED::store_aligned<__m512>
#define _mm512_stream_si512 EMULATED::store_aligned<__m512i>
#define _mm512_mask_blend_ps e_mask_blend_ps
#define _mm512_mask_mov_ps(a, m, b) e_mask_blend_ps(m, a, b)
#define _mm512_maskz_mov_ps e_maskz_mov_ps
#define _mm512_maskz_loadu_ps(m, p) EMULATED::masked_load<float>(m, __m512{}, p)
#define _mm512_maskz_load_ps(m, p) EMULATED::masked_load<float>(m, __m512{}, p)
#define _mm512_maskz_loadu_epi16(m, p) EMULATED::masked_load<uint16_t>(m, __m512i{}, p)
#define _mm512_maskz_loadu_epi32(m, p) EMULATED::masked_load<uint32_t>(m, __m512i{}, p)
#undef _mm256_maskz_loadu_epi16
#define _mm256_maskz_loadu_epi16(m, p) EMULATED::masked_load<uint16_t>(m, __m256i{}, p)
#undef _mm_maskz_loadu_epi16
#define _mm_maskz_loadu_epi16(m, p) EMULATED::masked_load<uint16_t>(m, __m128i{}, p)
#define _mm512_mask_store_ps(p, m, v) EMULATED::masked_store<float>(p, m, v)
#define _mm512_mask_storeu_ps(p, m, v) EMULATED::masked_store<float>(p, m, v)
#define _mm512_mask_storeu_epi16(p, m, v) EMULATED::masked_store<uint16_t>(p, m, v)
#define _mm512_mask_storeu_epi32(p, m, v) EMULATED::masked_store<uint32_t>(p, m, v)
#undef _mm256_mask_storeu_epi16
#define _mm256_mask_storeu_epi16(p, m, v) EMULATED::masked_store<uint16_t>(p, m, v)
#undef _mm512_cmp_ps_mask
#define _mm512_cmp_ps_mask(a, b, imm) e_cmp_ps<(imm)>(a, b)
#define _mm512_cmpge_epi32_mask e_cmpge_epi32
#define _mm512_cmpgt_epi32_mask e_cmpgt_epi32
#define _mm512_cmplt_epi32_mask e_cmplt_epi32
#define _mm512_cmple_epi32_mask e_cmple_epi32
#define _mm512_mask_cmpge_epi32_mask(m, a, b) __mmask16((m) & e_cmpge_epi32(a, b))
#define _mm512_mask_cmpgt_epi32_mask(m, a, b) __mmask16((m) & e_cmpgt_epi32(a, b))
#define _mm512_mask_cmplt_epi32_mask(m, a, b) __mmask16((m) & e_cmplt_epi32(a, b))
#define _mm512_mask_cmple_epi32_mask(m, a, b) __mmask16((m) & e_cmple_epi32(a, b))
#define _mm512_permutexvar_epi16 e_permutexvar_epi16
#define _mm512_permutex2var_ps(a, at, b) EMULATED::picked<__m512>(a, at, b)
#define _mm512_permutex2var_epi32(a, at, b) \
  ((__m512i)EMULATED::picked((EMULATED::I32)(a), at, (EMULATED::I32)(b)))
#define _mm512_permutex2var_epi16(a, at, b) \
  ((__m512i)EMULATED::picked((EMULATED::U16)(a), at, (EMULATED::U16)(b)))
#define _mm512_unpacklo_epi16 EMULATED::unpacked<EMULATED::U16, false>
#define _mm512_unpackhi_epi16 EMULATED::unpacked<EMULATED::U16, true>
#define _mm512_unpacklo_epi32 EMULATED::unpacked<EMULATED::I32, false>
#define _mm512_unpackhi_epi32 EMULATED::unpacked<EMULATED::I32, true>
#define _mm512_unpacklo_epi64 EMULATED::unpacked<EMULATED::I64, false>
#define _mm512_unpackhi_epi64 EMULATED::unpacked<EMULATED::I64, true>
#undef _mm512_shuffle_f32x4
#define _mm512_shuffle_f32x4(a, b, imm) EMULATED::shuffled<(imm)>(a, b)
#undef _mm512_shuffle_i32x4
#define _mm512_shuffle_i32x4(a, b, imm) EMULATED::shuffled<(imm)>(a, b)
#define _mm512_reduce_add_ps(x) EMULATED::reduced(x, [](float a, float b) { return a + b; })
#define _mm512_reduce_max_ps(x) EMULATED::reduced(x, [](float a, float b) { return a > b ? a : b; })
