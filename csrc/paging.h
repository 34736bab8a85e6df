// Where the tokens of a tile lie, and the prefetch of the tile after it.
#pragma once

#include <algorithm>

#include "decode.h"
#include "simd.h"

namespace ridgeline::RIDGELINE_ISA {

constexpr int kMaxTile = 128;

// Addresses of a tile's records: key and value at the piece's first head, one RoPE key a token.
struct Tile {
  int tokens = 0;
  const char* key[kMaxTile];
  const char* rope[kMaxTile];
  const char* value[kMaxTile];
};

// Fills `tile` with tokens [begin, begin + count) of sequence b, count >= 1. Slots up to `size`
// repeat the last of them: kernels run over whole tiles and mask what lies behind.
inline void locate(const DecodeArgs& a, const Piece& piece, int64_t begin, int count, int size,
                   Tile& tile) {
  tile.tokens = count;
  int64_t index = begin / a.page_size, offset = begin % a.page_size;
  const int64_t key_head = piece.head_begin * a.key.head_stride;
  const int64_t value_head = piece.head_begin * a.value.head_stride;
  for (int t = 0; t < count; index++, offset = 0) {
    const int64_t page = a.page(piece.batch, index);
    const int64_t stop = std::min<int64_t>(a.page_size, offset + count - t);
    const char* key = a.key.base + page * a.key.page_stride + key_head;
    const char* rope = a.rope.base + page * a.rope.page_stride;
    const char* value = a.value.base + page * a.value.page_stride + value_head;
    for (; offset < stop; offset++, t++) {
      tile.key[t] = key + offset * a.key.token_stride;
      tile.rope[t] = rope + offset * a.rope.token_stride;
      tile.value[t] = value + offset * a.value.token_stride;
    }
  }
  for (int t = count; t < size; t++) {
    tile.key[t] = tile.key[count - 1];
    tile.rope[t] = tile.rope[count - 1];
    tile.value[t] = tile.value[count - 1];
  }
}

// Walks the bytes of a tile in steps spread over the work on the tile before it, asking for each
// cache line to be brought into L2: an asynchronous prefetch that no register waits for.
class Prefetch {
 public:
  void start(const DecodeArgs& a, const Piece& piece, const Tile& tile, int element, int steps) {
    segments_ = next_ = 0;
    left_ = 0;
    at_ = end_ = nullptr;
    const int heads = piece.head_end - piece.head_begin;
    const int64_t width = int64_t(a.key.dim) * element, rope = int64_t(a.rope.dim) * element;
    // A record of states with the RoPE key behind them is one run of bytes.
    const bool record = rope && (heads == 1 || a.key.head_stride == width) &&
                        tile.rope[0] == tile.key[0] + heads * width;
    if (record) {
      for (int t = 0; t < tile.tokens; t++) add(tile.key[t], heads * width + rope);
    } else {
      add_heads(tile.key, tile.tokens, heads, a.key, element);
      for (int t = 0; rope && t < tile.tokens; t++) add(tile.rope[t], rope);
    }
    if (!a.tied) add_heads(tile.value, tile.tokens, heads, a.value, element);
    per_step_ = (left_ + steps * 2 - 1) / (steps * 2) * kStride;
  }
  void stop() { segments_ = next_ = 0, per_step_ = 0, at_ = end_ = nullptr; }
  // What the steps left over: the last tile of a piece takes fewer.
  void finish() {
    while (per_step_) step();
  }

  void __attribute__((always_inline)) step() {
    const char* stop = at_ + per_step_;
    if (__builtin_expect(stop <= end_, 1)) {
      for (; at_ < stop; at_ += kStride) {
        __builtin_prefetch(at_, 0, 2);
        __builtin_prefetch(at_ + 64, 0, 2);
      }
    } else {
      cross(per_step_);
    }
  }

 private:
  static constexpr int kSegments = 512, kStride = 128;  // bytes a turn of the loop

  // A step that runs over the end of a segment.
  void __attribute__((noinline)) cross(int64_t bytes) {
    for (; bytes > 0; bytes -= 64, at_ += 64) {
      if (at_ >= end_) {
        if (next_ == segments_) return stop();
        at_ = begin_of_[next_];
        end_ = end_of_[next_++];
      }
      __builtin_prefetch(at_, 0, 2);
    }
  }

  void add_heads(const char* const* tokens, int count, int heads, const CachedOperand& x,
                 int element) {
    const int64_t width = int64_t(x.dim) * element;
    const bool together = heads == 1 || x.head_stride == width;
    for (int t = 0; t < count; t++)
      for (int h = 0; h < (together ? 1 : heads); h++)
        add(tokens[t] + h * x.head_stride, together ? heads * width : width);
  }
  // A record that begins where the last one ended, or nearly, extends it.
  void add(const char* p, int64_t bytes) {
    if (segments_ && p >= end_of_[segments_ - 1] && p - end_of_[segments_ - 1] < 64) {
      left_ += (p + bytes - end_of_[segments_ - 1] + 63) / 64;
      end_of_[segments_ - 1] = p + bytes;
    } else if (segments_ < kSegments) {
      begin_of_[segments_] = p;
      end_of_[segments_++] = p + bytes;
      left_ += (bytes + 63) / 64;
    }
  }

  const char* begin_of_[kSegments];
  const char* end_of_[kSegments];
  int segments_ = 0, next_ = 0;
  int64_t per_step_ = 0;  // bytes
  int64_t left_ = 0;      // lines
  const char *at_ = nullptr, *end_ = nullptr;
};

}  // namespace ridgeline::RIDGELINE_ISA
