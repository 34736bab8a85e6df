#include <algorithm>
#include <cstdlib>
#include <new>
#include <stdexcept>

#include "decode.h"

namespace ridgeline {
namespace {

constexpr int kMinTilesPerPiece = 4;  // below, merging costs more than balance gains
constexpr int kPiecesPerThread = 4;
constexpr int64_t kOneThreadBytes = 64 << 10;  // a parallel region costs more than reading these

int element_size(Dtype dtype) { return dtype == Dtype::kFloat32 ? 4 : 2; }

int64_t round_up(int64_t x, int64_t to) { return (x + to - 1) / to * to; }

int64_t head_bytes(const DecodeArgs& a) {
  return int64_t(element_size(a.dtype)) * (a.key.dim + (a.tied ? 0 : a.value.dim));
}

int64_t record_bytes(const DecodeArgs& a, int heads) {
  return heads * head_bytes(a) + int64_t(element_size(a.dtype)) * a.rope.dim;
}

int tile_tokens(const DecodeArgs& a, const Tiling& tiling, int heads) {
  const int64_t bytes = (a.tied ? tiling.tied : tiling.apart)[a.rows() > 4];
  const int step = std::min(tiling.least, 16), least = a.tied ? 16 : tiling.least;
  return int(std::clamp<int64_t>(bytes / record_bytes(a, heads) / step * step, least, 128));
}

}  // namespace

void check_values(const DecodeArgs& a) {
  for (int b = 0; b < a.batch; b++) {
    const int64_t length = a.length(b), capacity = a.max_pages * a.page_size;
    if (length < 0 || length > capacity)
      throw std::invalid_argument(
          "cache_seqlens: expected 0 <= length <= " + std::to_string(capacity) + " (" +
          std::to_string(a.max_pages) + " pages of " + std::to_string(a.page_size) + "), got " +
          std::to_string(length) + " for sequence " + std::to_string(b));
    const int64_t pages = (length + a.page_size - 1) / a.page_size;
    for (int64_t i = a.first_token(b) / a.page_size; i < pages; i++) {
      const int32_t page = a.page(b, i);
      if (page < 0 || page >= a.num_pages)
        throw std::invalid_argument("block_table: expected page ids in [0, " +
                                    std::to_string(a.num_pages) + "), got " + std::to_string(page) +
                                    " for sequence " + std::to_string(b));
    }
  }
}

Schedule make_schedule(const DecodeArgs& a, const Tiling& tiling) {
  Schedule s;
  // Heads whose K and V lie apart can be read apart; a tied record's RoPE key serves all its heads.
  const int64_t fit = std::max<int64_t>(1, tiling.record_bytes / head_bytes(a));
  s.max_heads = a.tied ? a.kv_heads : int(std::min<int64_t>(a.kv_heads, fit));
  s.tile = tile_tokens(a, tiling, s.max_heads);
  const int head_blocks = (a.kv_heads + s.max_heads - 1) / s.max_heads;
  int64_t total = 0;
  for (int b = 0; b < a.batch; b++) total += (a.length(b) - a.first_token(b)) * head_blocks;
  int64_t target = std::max<int64_t>(total, 1);  // tokens of a piece
  const bool small = total * s.max_heads * head_bytes(a) < kOneThreadBytes;
  s.threads = small ? 1 : a.threads;
  if (s.threads > 1) {
    target = (total + kPiecesPerThread * s.threads - 1) / (kPiecesPerThread * s.threads);
    target = std::max<int64_t>(round_up(target, s.tile), kMinTilesPerPiece * s.tile);
  }
  for (int b = 0; b < a.batch; b++) {
    const int64_t begin = a.first_token(b), tokens = a.length(b) - begin;
    const int64_t want = a.num_splits ? a.num_splits : (tokens + target - 1) / target;
    const int64_t per = round_up((tokens + want - 1) / std::max<int64_t>(want, 1), s.tile);
    const int64_t count = tokens ? (tokens + per - 1) / per : 1;  // an empty sequence writes its 0
    for (int h = 0; h < a.kv_heads; h += s.max_heads) {
      const int head_end = std::min(h + s.max_heads, a.kv_heads);
      if (count > 1) s.groups.push_back({int64_t(s.pieces.size()), int(count)});
      for (int64_t i = 0; i < count; i++) {
        const int64_t t = begin + i * per, end = std::min(t + per, begin + tokens);
        s.pieces.push_back({b, h, head_end, t, end, count > 1 ? s.partials++ : -1});
      }
    }
  }
  s.threads = std::max(1, int(std::min<int64_t>(s.threads, int64_t(s.pieces.size()))));
  return s;
}

char* workspace(int64_t bytes) {
  struct Buffer {
    char* data = nullptr;
    int64_t size = 0;
    ~Buffer() { std::free(data); }
  };
  static thread_local Buffer buffer;
  if (bytes > buffer.size) {
    std::free(buffer.data);
    buffer.size = round_up(bytes, 4096);
    buffer.data = static_cast<char*>(std::aligned_alloc(64, buffer.size));
    if (!buffer.data) {
      buffer.size = 0;
      throw std::bad_alloc();
    }
  }
  return buffer.data;
}

void decode(const DecodeArgs& args, const std::string& isa) {
  const Isa& chosen = find_isa(isa);
  check_values(args);
  if (args.batch == 0) return;
  chosen.decode(args, make_schedule(args, chosen.tiling));
}

}  // namespace ridgeline
