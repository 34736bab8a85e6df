// Products of small packed matrices, the only place where attention multiplies.
//   left operand:  rows of numbers, `lda` apart
//   right operand: a panel of kPanel columns, step by step: [steps][kPanel][kPair]
#pragma once

#include "simd.h"

namespace ridgeline::RIDGELINE_ISA {

// kRows x kPanel results in registers.
template <class E>
struct Results {
  Vec x[E::kRows][2];
};

template <class E>
RIDGELINE_INLINE void multiply_add(Results<E>& sum, const typename E::Number* a, int64_t lda,
                                   const typename E::Number* b, int steps) {
#pragma GCC unroll 2
  for (int k = 0; k < steps; k++) {
    typename E::Factor right[2];
    RIDGELINE_UNROLL for (int j = 0; j < 2; j++) right[j] =
        E::load(b + (int64_t(k) * 2 + j) * E::W * E::kPair);
    RIDGELINE_UNROLL for (int i = 0; i < E::kRows; i++) {
      const typename E::Factor left = E::spread(a + i * lda + k * E::kPair);
      RIDGELINE_UNROLL for (int j = 0; j < 2; j++) sum.x[i][j] =
          E::dot(sum.x[i][j], left, right[j]);
    }
  }
}

template <class E>
RIDGELINE_INLINE void fill(Results<E>& sum, Vec left, Vec right) {
  RIDGELINE_UNROLL for (int i = 0; i < E::kRows; i++) sum.x[i][0] = left, sum.x[i][1] = right;
}

template <class E>
RIDGELINE_INLINE void store(const Results<E>& sum, float* c, int64_t ldc) {
  RIDGELINE_UNROLL for (int i = 0; i < E::kRows; i++) RIDGELINE_UNROLL for (int j = 0; j < 2; j++)
      sum.x[i][j]
          .store(c + i * ldc + j * E::W);
}

// c = a b
template <class E>
__attribute__((noinline)) void product(const typename E::Number* a, int64_t lda,
                                       const typename E::Number* b, int steps, float* c,
                                       int64_t ldc) {
  Results<E> sum;
  fill(sum, Vec::set(0.0f), Vec::set(0.0f));
  multiply_add(sum, a, lda, b, steps);
  store(sum, c, ldc);
}

// c += a b
template <class E>
__attribute__((noinline)) void add_product(const typename E::Number* a, int64_t lda,
                                           const typename E::Number* b, int steps, float* c,
                                           int64_t ldc) {
  Results<E> sum;
  RIDGELINE_UNROLL for (int i = 0; i < E::kRows; i++) RIDGELINE_UNROLL for (int j = 0; j < 2; j++)
      sum.x[i][j] = Vec::load(c + i * ldc + j * E::W);
  multiply_add(sum, a, lda, b, steps);
  store(sum, c, ldc);
}

// c = factor[row] * c + a b
template <class E>
__attribute__((noinline)) void rescale_add_product(const typename E::Number* a, int64_t lda,
                                                   const typename E::Number* b, int steps,
                                                   const float* factor, float* c, int64_t ldc) {
  Results<E> sum;
  RIDGELINE_UNROLL for (int i = 0; i < E::kRows; i++) RIDGELINE_UNROLL for (int j = 0; j < 2; j++)
      sum.x[i][j] = Vec::set(factor[i]) * Vec::load(c + i * ldc + j * E::W);
  multiply_add(sum, a, lda, b, steps);
  store(sum, c, ldc);
}

}  // namespace ridgeline::RIDGELINE_ISA
