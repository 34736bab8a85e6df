// What of attention does not depend on the instruction set: values of lengths, visibility per key,
// and who does what. Only `whole_heads` depends on the number of threads, and no result does.
#include "attention.h"

#include <algorithm>
#include <limits>
#include <stdexcept>

namespace ridgeline {
namespace {

constexpr int32_t kMany = std::numeric_limits<int32_t>::max();
// The backward pass of few heads is split over keys; each part costs a dQ to be added.
constexpr int64_t kBackwardBlocks = 8;
constexpr int64_t kMinSplitKeys = 256;
constexpr int64_t kPartialBytes = 64 << 20;
constexpr double kOneThreadProducts = 1 << 20;  // a parallel region costs more than these

void check_lengths(const char* name, const int32_t* cu, int64_t stride, int64_t batch,
                   int64_t total) {
  const auto fail = [&](const char* what, int64_t expected, int64_t got) {
    throw std::invalid_argument(std::string(name) + what + std::to_string(expected) + ", got " +
                                std::to_string(got));
  };
  if (cu[0] != 0) fail(": expected the first value ", 0, cu[0]);
  for (int64_t b = 0; b < batch; b++)
    if (cu[(b + 1) * stride] < cu[b * stride])
      fail(": expected at least the value before, ", cu[b * stride], cu[(b + 1) * stride]);
  if (cu[batch * stride] != total) fail(": expected the last value ", total, cu[batch * stride]);
}

Sequence sequence(const AttentionArgs& a, int64_t b) {
  if (!a.cu_q) return {b, 0, 0, a.query_len, a.key_len, {}};
  const int32_t *q = a.cu_q + b * a.cu_q_stride, *k = a.cu_k + b * a.cu_k_stride;
  return {0, q[0], k[0], q[a.cu_q_stride] - q[0], k[a.cu_k_stride] - k[0], {}};
}

int32_t subtree_end(const AttentionArgs& a, const Sequence& s, int64_t key) {
  return a.subtree_end[s.batch * a.subtree_row + (s.k_begin + key) * a.subtree_col];
}

// The queries that see a key, by the positions p (bottom-right aligned) that do.
Span queries_of(const AttentionArgs& a, const Sequence& s, int64_t key) {
  const int64_t shift = s.key_len - s.query_len;  // position of query 0
  int64_t lo = 0, hi = s.query_len;
  if (a.causal || a.subtree_end) lo = std::max(lo, key - shift);
  if (a.window_right >= 0) lo = std::max(lo, key - a.window_right - shift);
  if (a.window_left >= 0) hi = std::min(hi, key + a.window_left + 1 - shift);
  if (a.subtree_end) hi = std::min(hi, int64_t(subtree_end(a, s, key)) - shift);
  if (lo >= hi) return {kMany, 0};
  return {int32_t(lo), int32_t(hi)};
}

// Fills the bounds of each key (padded to whole panels), the spans and areas of each panel.
void find_visible(const AttentionArgs& a, const Sequence& s, int panel, int32_t* lo, int32_t* hi,
                  Span* seen, Span* full, int64_t* area) {
  area[0] = 0;
  for (int64_t begin = 0, p = 0; begin < s.key_len; begin += panel, p++) {
    seen[p] = {kMany, 0}, full[p] = {0, kMany}, area[p + 1] = area[p];
    for (int64_t key = begin; key < begin + panel; key++) {
      const Span rows = key < s.key_len ? queries_of(a, s, key) : Span{kMany, 0};
      lo[key] = rows.lo, hi[key] = rows.hi;
      seen[p] = {std::min(seen[p].lo, rows.lo), std::max(seen[p].hi, rows.hi)};
      full[p] = {std::max(full[p].lo, rows.lo), std::min(full[p].hi, rows.hi)};
      area[p + 1] += std::max(0, rows.hi - std::min(rows.lo, rows.hi));
    }
  }
}

AttentionPlan plan_sequences(const AttentionArgs& a, int panel) {
  AttentionPlan plan;
  plan.panel = panel;
  int64_t keys = 0, panels = 0;
  // Sequences of one length share what is visible, unless each has its own subtrees.
  const bool shared = !a.cu_k && !a.subtree_end;
  for (int64_t b = 0; b < a.batch; b++) {
    const Sequence s = sequence(a, b);
    plan.sequences.push_back(s);
    const int64_t padded = round_up(s.key_len, panel);
    if (b == 0 || !shared) keys += padded, panels += padded / panel + 1;
    plan.max_keys = std::max(plan.max_keys, padded);
    plan.max_rows = std::max(plan.max_rows, s.query_len * a.group());
  }
  plan.bounds.resize(2 * keys), plan.spans.resize(2 * panels), plan.areas.resize(panels);
  int32_t* bounds = plan.bounds.data();
  Span* spans = plan.spans.data();
  int64_t* areas = plan.areas.data();
  for (Sequence& s : plan.sequences) {
    if (shared && s.batch > 0) {
      s.visible = plan.sequences[0].visible;
      continue;
    }
    const int64_t padded = round_up(s.key_len, panel), n = padded / panel + 1;
    find_visible(a, s, panel, bounds, bounds + padded, spans, spans + n, areas);
    s.visible = {bounds, bounds + padded, spans, spans + n, areas};
    bounds += 2 * padded, spans += 2 * n, areas += n;
  }
  return plan;
}

// How many threads find work in pairs of a query row and a key.
int threads_for(const AttentionArgs& a, const AttentionPlan& plan, double pairs) {
  const int64_t blocks = std::max<int64_t>(1, int64_t(plan.blocks.size()));
  if (pairs * (a.q.dim + a.v.dim) < kOneThreadProducts) return 1;
  return int(std::min<int64_t>(a.threads, blocks));
}

// Keys of a head cut where its visible area divides into `count` equal parts.
void cut_keys(const Sequence& s, int64_t index, int head, int64_t count, int64_t group,
              AttentionPlan& plan) {
  const int64_t panels = round_up(s.key_len, plan.panel) / plan.panel;
  const int64_t* area = s.visible.area;
  if (count > 1) plan.sums.push_back({index, head, plan.partial_rows, count});
  for (int64_t i = 0, begin = 0; i < count; i++) {
    const int64_t want = area[panels] / count * (i + 1);
    int64_t end = std::lower_bound(area, area + panels, want) - area;
    if (i == count - 1) end = panels;
    end = std::max(begin, end);
    const int64_t last = std::min(s.key_len, end * plan.panel);
    plan.blocks.push_back(
        {index, head, begin * plan.panel, last, 0, count > 1 ? plan.partial_rows : -1});
    plan.max_block = std::max(plan.max_block, last - begin * plan.panel);
    if (count > 1) plan.partial_rows += s.query_len * group;
    begin = end;
  }
}

}  // namespace

int64_t round_up(int64_t x, int64_t to) { return (x + to - 1) / to * to; }

void check_values(const AttentionArgs& a) {
  if (a.cu_q) {
    check_lengths("cu_seqlens_q", a.cu_q, a.cu_q_stride, a.batch, a.query_len);
    check_lengths("cu_seqlens_k", a.cu_k, a.cu_k_stride, a.batch, a.key_len);
  }
  if (!a.subtree_end) return;
  for (int64_t b = 0; b < a.batch; b++) {
    const Sequence s = sequence(a, b);
    for (int64_t key = 0; key < s.key_len; key++)
      if (subtree_end(a, s, key) <= key)
        throw std::invalid_argument(
            "subtree_end: expected more than the key's index " + std::to_string(key) + ", got " +
            std::to_string(subtree_end(a, s, key)) + " in sequence " + std::to_string(b));
  }
}

AttentionPlan plan_forward(const AttentionArgs& a, int panel) {
  AttentionPlan plan = plan_sequences(a, panel);
  double total = 0, largest = 0;
  for (int64_t i = 0; i < int64_t(plan.sequences.size()); i++) {
    const Sequence& s = plan.sequences[i];
    const int64_t rows = s.query_len * a.group();
    for (int head = 0; head < a.kv_heads && rows > 0; head++) {
      const int64_t index = int64_t(plan.packed_begin.size());
      plan.packed_begin.push_back(plan.packed_keys);
      plan.first_of_head.push_back(int64_t(plan.blocks.size()));
      plan.packed_keys += round_up(s.key_len, panel);
      const double cost = double(rows) * double(s.key_len + 1);
      total += cost, largest = std::max(largest, cost);
      for (int64_t r = 0; r < rows; r += kBlockRows)
        plan.blocks.push_back({i, head, r, std::min(rows, r + kBlockRows), index, -1});
    }
  }
  plan.first_of_head.push_back(int64_t(plan.blocks.size()));
  const int64_t heads = int64_t(plan.packed_begin.size());
  plan.threads = threads_for(a, plan, total);
  plan.whole_heads = largest * plan.threads * (heads % plan.threads == 0 ? 1 : 4) <= total;
  if (plan.whole_heads) return plan;
  // The longest first, so that the threads end together.
  const auto keys = [&](const Block& b) {
    const Sequence& s = plan.sequences[b.sequence];
    const int64_t last = (b.end - 1) / a.group() + s.key_len - s.query_len;
    return a.causal || a.subtree_end ? std::min(s.key_len, last + 1) : s.key_len;
  };
  std::stable_sort(plan.blocks.begin(), plan.blocks.end(),
                   [&](const Block& x, const Block& y) { return keys(x) > keys(y); });
  return plan;
}

AttentionPlan plan_backward(const AttentionArgs& a, int panel) {
  AttentionPlan plan = plan_sequences(a, panel);
  int64_t heads = 0, bytes = 0;
  double pairs = 0;
  for (const Sequence& s : plan.sequences) {
    heads += a.kv_heads;
    bytes += s.query_len * a.heads * round_up(a.q.dim, plan.panel) * int64_t(sizeof(float));
    pairs += double(s.query_len * a.heads) * double(s.key_len);
  }
  const int64_t by_heads = (kBackwardBlocks + heads - 1) / std::max<int64_t>(1, heads);
  const int64_t by_bytes = kPartialBytes / std::max<int64_t>(1, bytes);
  for (int64_t i = 0; i < int64_t(plan.sequences.size()); i++) {
    const Sequence& s = plan.sequences[i];
    const int64_t by_keys = s.key_len / kMinSplitKeys;
    const int64_t count = std::max<int64_t>(1, std::min({by_heads, by_bytes, by_keys}));
    for (int head = 0; head < a.kv_heads; head++) cut_keys(s, i, head, count, a.group(), plan);
  }
  plan.threads = threads_for(a, plan, pairs);
  return plan;
}

void attention_forward(const AttentionArgs& args, const std::string& isa) {
  const Isa& chosen = find_isa(isa);
  check_values(args);
  chosen.attention_forward(args, plan_forward(args, chosen.panel));
}

void attention_backward(const AttentionArgs& args, const std::string& isa) {
  const Isa& chosen = find_isa(isa);
  check_values(args);
  chosen.attention_backward(args, plan_backward(args, chosen.panel));
}

}  // namespace ridgeline
