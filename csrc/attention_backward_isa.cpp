// The backward pass of attention for one instruction set; compiled once for each with its flags and
// namespace. Nothing here instantiates a standard container: see decode_isa.cpp.
#include "attention_backward.h"
#include "attention_dispatch.h"

namespace ridgeline::RIDGELINE_ISA {

void attention_backward(const AttentionArgs& a, const AttentionPlan& plan) {
  dispatch<Backward>(a, plan);
}

}  // namespace ridgeline::RIDGELINE_ISA
