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
// Tiles that leave room for the next one, the queries and the accumulators in a 1 MiB L2. Two Zen 4
// cores: 72 KiB slows GTA by 7 to 10%, the others by 4% at the most.
constexpr Tiling kWide{{54 << 10, 108 << 10}, {54 << 10, 108 << 10}, 4 << 10, 32};

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
// 512 KiB of L2: short tiles of whole records, which read memory in long runs. Two Zen 3 cores: MHA
// takes 1.5 times as long with the tiles above, GQA and GTA 1.1 times.
constexpr Tiling kNarrow{{64 << 10, 128 << 10}, {36 << 10, 108 << 10}, 16 << 10, 8};
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
