// Split-KV decode over paged caches: the arguments, one entry per instruction set, and the parts
// that are compiled once. paged_decode and tied_decode are the same computation: scores over a key
// [nope | rope], values from another cache or from the state that is also the key.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace ridgeline {

enum class Dtype { kBFloat16, kFloat16, kFloat32 };

// One cached operand: record of head h, token t of page p at
// base + p * page_stride + t * token_stride + h * head_stride (bytes).
struct CachedOperand {
  const char* base = nullptr;
  int64_t page_stride = 0, token_stride = 0, head_stride = 0;
  int dim = 0;
};

// Queries [B, L_q, h_q, dim]; strides in bytes.
struct Queries {
  const char* base = nullptr;
  int64_t batch_stride = 0, token_stride = 0, head_stride = 0;
  int dim = 0;
};

struct DecodeArgs {
  Dtype dtype;
  Queries q_nope, q_rope;
  CachedOperand key, rope, value;  // tied: value.base == key.base
  bool tied = false;
  int batch = 0, query_len = 0, heads = 0, kv_heads = 0;
  int64_t num_pages = 0, page_size = 0;
  const int32_t* table = nullptr;  // [B, max_pages], strides in elements
  int64_t table_row = 0, table_col = 0, max_pages = 0;
  const int32_t* lengths = nullptr;  // [B]
  int64_t lengths_stride = 0;
  char* out = nullptr;   // [B, L_q, h_q, value.dim], contiguous
  float* lse = nullptr;  // [B, L_q, h_q], contiguous
  float scale = 0, softcap = 0;
  bool causal = true;
  int64_t window_left = -1, window_right = -1;
  int num_splits = 0, threads = 1;
  int prefetch = 1;  // distance in tiles, 0 for none

  int group() const { return heads / kv_heads; }
  int rows() const { return group() * query_len; }  // query rows that share a cached head
  int64_t length(int b) const { return lengths[b * lengths_stride]; }
  int32_t page(int b, int64_t i) const { return table[b * table_row + i * table_col]; }
  // The first token that any query of sequence b sees; pages before it are never read.
  int64_t first_token(int b) const {
    const int64_t t = length(b) - query_len - window_left;
    return window_left < 0 || t < 0 ? 0 : t;
  }
};

// A run of tokens of one sequence and a block of its cached heads: what one thread does at a time.
struct Piece {
  int batch, head_begin, head_end;
  int64_t token_begin, token_end;
  int64_t partial;  // index of its (m, l, O) among the partials of its heads, -1 if it is alone
};

// The pieces that share output rows are consecutive: first .. first + count of `pieces`.
struct Group {
  int64_t first;
  int count;
};

struct Schedule {
  int tile = 0;  // tokens
  std::vector<Piece> pieces;
  std::vector<Group> groups;
  int64_t partials = 0;
  int max_heads = 0;  // most cached heads in a piece
  int threads = 1;
};

// Lengths within the table, pages that will be read in range: throws std::invalid_argument.
void check_values(const DecodeArgs& args);

// How a cache is cut into tiles. Bytes of a tile: [0] for one block of query rows a head, four at
// most, [1] for more, which share what a longer tile leaves in L1.
struct Tiling {
  int64_t apart[2], tied[2];  // K and V apart, or tied records
  int64_t record_bytes;       // K and V of the heads that a piece works on, where they are apart
  int least;                  // tokens of a tile of K and V; whole vectors
};
Schedule make_schedule(const DecodeArgs& args, const Tiling& tiling);
// A buffer of the calling thread, kept between calls and grown as needed; 64-byte aligned.
char* workspace(int64_t bytes);

struct AttentionArgs;
struct AttentionPlan;

struct Isa {
  const char* name;
  bool (*available)();
  void (*decode)(const DecodeArgs&, const Schedule&);
  Tiling tiling;
  int panel;  // keys or rows that attention packs side by side: two vectors
  void (*attention_forward)(const AttentionArgs&, const AttentionPlan&);
  void (*attention_backward)(const AttentionArgs&, const AttentionPlan&);
};
const std::vector<Isa>& isas();                // best first
const Isa& find_isa(const std::string& name);  // "auto" or a name

void decode(const DecodeArgs& args, const std::string& isa);

}  // namespace ridgeline
