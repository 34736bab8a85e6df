#include "roofs.h"

#include <algorithm>
#include <cstring>

namespace ridgeline {

uint64_t read_all(const char* data, int64_t bytes, int threads) {
  constexpr int64_t kBlock = 4096;
  const int64_t blocks = bytes / 64 * 64 / kBlock;
  uint64_t total = 0;
#pragma omp parallel for schedule(static) num_threads(threads) reduction(+ : total)
  for (int64_t i = 0; i < blocks; i++) {
    // Eight independent sums, so that loads, not additions, set the pace.
    uint64_t sums[8] = {};
    const char* p = data + i * kBlock;
    for (int64_t j = 0; j < kBlock; j += 64) {
      uint64_t line[8];
      std::memcpy(line, p + j, 64);
      for (int k = 0; k < 8; k++) sums[k] += line[k];
    }
    for (uint64_t s : sums) total += s;
  }
  for (int64_t i = blocks * kBlock; i + 8 <= bytes; i += 8) {
    uint64_t word;
    std::memcpy(&word, data + i, 8);
    total += word;
  }
  return total;
}

}  // namespace ridgeline
