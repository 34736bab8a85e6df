// Which arithmetic takes which elements.
#pragma once

#include "attention_fp32.h"
#ifdef __AVX512BF16__
#include "attention_bf16.h"
#endif

namespace ridgeline::RIDGELINE_ISA {

template <template <class> class Pass>
void dispatch(const AttentionArgs& a, const AttentionPlan& plan) {
  switch (a.dtype) {
    case Dtype::kBFloat16:
#ifdef __AVX512BF16__
      return Pass<AttentionBf16>(a, plan).run();
#else
      return Pass<AttentionFp32<BFloat16>>(a, plan).run();
#endif
    case Dtype::kFloat16:
      return Pass<AttentionFp32<Float16>>(a, plan).run();
    case Dtype::kFloat32:
      return Pass<AttentionFp32<float>>(a, plan).run();
  }
}

}  // namespace ridgeline::RIDGELINE_ISA
