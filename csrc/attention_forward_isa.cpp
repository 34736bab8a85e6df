// The forward pass of attention for one instruction set; compiled once for each with its flags and
// namespace. Nothing here instantiates a standard container: see decode_isa.cpp.
#include "attention_dispatch.h"
#include "attention_forward.h"

namespace ridgeline::RIDGELINE_ISA {

void attention_forward(const AttentionArgs& a, const AttentionPlan& plan) {
  dispatch<Forward>(a, plan);
}

}  // namespace ridgeline::RIDGELINE_ISA
