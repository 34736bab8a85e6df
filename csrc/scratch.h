// Memory of a call, cut into aligned arrays.
#pragma once

#include <cstdint>

#include "simd.h"

namespace ridgeline::RIDGELINE_ISA {

RIDGELINE_INLINE int64_t align64(int64_t bytes) { return (bytes + 63) / 64 * 64; }

// Cuts one block of memory into aligned arrays.
class Cutter {
 public:
  explicit Cutter(char* begin) : at_(begin) {}
  template <class P>
  P* take(int64_t count) {
    char* begin = at_;
    at_ += align64(count * int64_t(sizeof(P)));
    return reinterpret_cast<P*>(begin);
  }
  char* at() const { return at_; }

 private:
  char* at_;
};

}  // namespace ridgeline::RIDGELINE_ISA
