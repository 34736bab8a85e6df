// Attention over whole sequences, forward and backward: the arguments, the plan of a call, and the
// parts that are compiled once. The query heads that share a kv head are rows of one problem: row
// r of a sequence is its query token r / group and the query head r % group of the kv head.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "decode.h"

namespace ridgeline {

// An operand [B, L, heads, dim], or [total, heads, dim] with batch_stride 0; strides in bytes.
struct Operand {
  char* base = nullptr;  // null: not given, or not wanted
  int64_t batch_stride = 0, token_stride = 0, head_stride = 0;
  int dim = 0;
};

struct AttentionArgs {
  Dtype dtype;
  Operand q, k, v, out;
  Operand lse, dlse;  // float32, without a last dim
  Operand dout, dq, dk, dv;
  int64_t batch = 0, query_len = 0, key_len = 0;  // packed: lengths of the whole
  int heads = 0, kv_heads = 0;
  const int32_t *cu_q = nullptr, *cu_k = nullptr;  // [B + 1]; null if not packed
  int64_t cu_q_stride = 1, cu_k_stride = 1;        // in elements
  const int32_t* subtree_end = nullptr;            // null: none
  int64_t subtree_row = 0, subtree_col = 0;        // strides in elements
  float scale = 0, softcap = 0;
  bool causal = false;
  int64_t window_left = -1, window_right = -1;
  int threads = 1;

  int group() const { return heads / kv_heads; }
};

struct Span {
  int32_t lo, hi;  // [lo, hi)
};

// Which queries of a sequence see which keys: per key always one run of them.
struct Visible {
  const int32_t *lo, *hi;   // queries [lo, hi) see the key; (max, 0) where none does
  const Span *seen, *full;  // per panel of keys: queries that may see one of them, that see all
  const int64_t* area;      // per panel: visible pairs in the panels before it
};

struct Sequence {
  int64_t batch;             // index in the operands, 0 if packed
  int64_t q_begin, k_begin;  // tokens before it, 0 if not packed
  int64_t query_len, key_len;
  Visible visible;
};

// What one thread does at a time: query rows of a kv head in the forward pass, keys of it in the
// backward pass.
struct Block {
  int64_t sequence;
  int head;            // kv head
  int64_t begin, end;  // rows or keys
  int64_t head_index;  // forward: its place among the packed heads
  int64_t partial;     // backward: where its part of dQ goes, in rows; -1 if it has all of it
};

// Parts of the dQ of one head that are added in their order.
struct Sum {
  int64_t sequence;
  int head;
  int64_t first, count;  // partial of the first, and how many
};

struct AttentionPlan {
  int panel = 0;    // keys or rows in a packed panel
  int threads = 1;  // that have something to do
  std::vector<Sequence> sequences;
  std::vector<int32_t> bounds;
  std::vector<Span> spans;
  std::vector<int64_t> areas;
  std::vector<Block> blocks;
  std::vector<Sum> sums;               // backward
  std::vector<int64_t> packed_begin;   // forward: keys before a packed head
  std::vector<int64_t> first_of_head;  // forward: blocks of a head, when a thread takes it whole
  bool whole_heads = false;            // forward: each thread packs the keys of its own heads
  int64_t packed_keys = 0;             // forward: keys in all packed heads, padded
  int64_t partial_rows = 0;            // backward
  int64_t max_keys = 0, max_rows = 0, max_block = 0;  // of a sequence (padded), of a block
};

constexpr int kBlockRows = 192;  // a multiple of the rows of every micro-kernel

int64_t round_up(int64_t x, int64_t to);
// cu_seqlens, subtree_end: throws std::invalid_argument.
void check_values(const AttentionArgs& args);
AttentionPlan plan_forward(const AttentionArgs& args, int panel);
AttentionPlan plan_backward(const AttentionArgs& args, int panel);

void attention_forward(const AttentionArgs& args, const std::string& isa);
void attention_backward(const AttentionArgs& args, const std::string& isa);

}  // namespace ridgeline
