#include <stdexcept>

#include "decode.h"

namespace ridgeline {

namespace portable {
void decode(const DecodeArgs&, const Schedule&);
}
#ifdef RIDGELINE_X86
namespace avx2 {
void decode(const DecodeArgs&, const Schedule&);
}
namespace avx512 {
void decode(const DecodeArgs&, const Schedule&);
}
namespace avx512_bf16 {
void decode(const DecodeArgs&, const Schedule&);
}

namespace {
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

const std::vector<Isa>& isas() {
  static const std::vector<Isa> available = [] {
    const Isa all[] = {
#ifdef RIDGELINE_X86
        {"avx512_bf16", has_avx512_bf16, avx512_bf16::decode},
        {"avx512", has_avx512, avx512::decode},
        {"avx2", has_avx2, avx2::decode},
#endif
        {"portable", [] { return true; }, portable::decode},
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
