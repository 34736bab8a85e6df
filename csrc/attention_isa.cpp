// Attention for one instruction set; compiled once for each with its flags and namespace. Nothing
// here instantiates a standard container: see decode_isa.cpp.
#include "attention_backward.h"
#include "attention_forward.h"
#include "attention_fp32.h"
#ifdef __AVX512BF16__
#include "attention_bf16.h"
#endif

namespace ridgeline::RIDGELINE_ISA {
namespace {

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

}  // namespace

void attention_forward(const AttentionArgs& a, const AttentionPlan& plan) {
  dispatch<Forward>(a, plan);
}

void attention_backward(const AttentionArgs& a, const AttentionPlan& plan) {
  dispatch<Backward>(a, plan);
}

}  // namespace ridgeline::RIDGELINE_ISA
