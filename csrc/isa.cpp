#include <stdexcept>

#include "decode.h"

namespace ridgeline {

#define RIDGELINE_DECLARE(isa)                                         \
  namespace isa {                                                      \
  void decode(const DecodeArgs&, const Schedule&);                     \
  void attention_forward(const AttentionArgs&, const AttentionPlan&);  \
  void attention_backward(const AttentionArgs&, const AttentionPlan&); \
  }
RIDGELINE_DECLARE(portable)
#ifdef RIDGELINE_X86
RIDGELINE_DECLARE(avx2)
RIDGELINE_DECLARE(avx512)
RIDGELINE_DECLARE(avx512_bf16)

namespace {
// Two Zen 4 cores, 1 MiB of L2: longer tiles pay for what a piece of work costs to set up.
constexpr Tiling kWide{54 << 10, 4 << 10, 32};

bool has_avx2() {
  return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
         __builtin_cpu_supports("f16c");
}
bool has_avx512() {
  return has_avx2() && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
         __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
}
bool has_avx512_bf16() { return has_avx512() && __builtin_cpu_supports("avx512bf16"); }
}  // namespace
#endif

namespace {
// Two Zen 3 cores, 512 KiB of L2: a tile that is short, and whole records of many heads, read
// memory in long runs; MHA took 1.5 times as long with the tiles above, GQA 1.1 times.
constexpr Tiling kNarrow{64 << 10, 16 << 10, 8};
}  // namespace

const std::vector<Isa>& isas() {
  static const std::vector<Isa> available = [] {
    const Isa all[] = {
#ifdef RIDGELINE_X86
        {"avx512_bf16", has_avx512_bf16, avx512_bf16::decode, kWide, 32,
         avx512_bf16::attention_forward, avx512_bf16::attention_backward},
        {"avx512", has_avx512, avx512::decode, kWide, 32, avx512::attention_forward,
         avx512::attention_backward},
        {"avx2", has_avx2, avx2::decode, kNarrow, 16, avx2::attention_forward,
         avx2::attention_backward},
#endif
        {"portable", [] { return true; }, portable::decode, kNarrow, 16,
         portable::attention_forward, portable::attention_backward},
    };
    std::vector<Isa> found;
    for (const Isa& isa : all)
      if (isa.available()) found.push_back(isa);
    return found;
  }();
  return available;
}

const Isa& find_isa(const std::string& name) {
  std::string names;
  for (const Isa& isa : isas()) {
    if (name == "auto" || name == isa.name) return isa;
    names += std::string(", ") + isa.name;
  }
  throw std::invalid_argument("isa: expected one of auto" + names + ", got '" + name + "'");
}

}  // namespace ridgeline
