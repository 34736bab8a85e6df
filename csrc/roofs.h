#pragma once

#include <cstdint>

namespace ridgeline {

// Reads every whole 64 bytes of [data, data + bytes) once, a contiguous part a thread, and returns
// their sum: the roof that a decode kernel's bandwidth is held against.
uint64_t read_all(const char* data, int64_t bytes, int threads);

}  // namespace ridgeline
