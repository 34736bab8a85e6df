// The forward pass. A block of query rows goes over the key panels that one of its queries sees, a
// few at a time; strips of kRows rows take the scores, the online softmax and the product with V
// while everything is in cache.
#pragma once

#include <omp.h>

#include <algorithm>

#include "attention_gemm.h"
#include "attention_pack.h"
#include "scratch.h"
#include "softmax.h"

namespace ridgeline::RIDGELINE_ISA {

template <class E>
class Forward {
  using T = typename E::Element;
  using Math = typename E::Math;
  using Number = typename E::Number;
  static constexpr int kRows = E::kRows, kPanel = E::kPanel, W = E::W;
  // Keys in one step of the online softmax. Longer steps rescale less often; K and V of a step
  // should stay in L2 while the strips pass over them.
  static constexpr int kStepPanels = E::kStepKeys / kPanel, kStepKeys = kStepPanels * kPanel;
  static_assert(kBlockRows % kRows == 0, "strips fill a block");

 public:
  Forward(const AttentionArgs& a, const AttentionPlan& plan)
      : a_(a),
        plan_(plan),
        key_(a.q.dim),
        value_(a.v.dim),
        // Scores become logits at once where a factor alone would not do.
        explicit_logits_(a.softcap > 0 || !(a.scale > 0)),
        logits_{a.scale, a.softcap},
        factor_(explicit_logits_ ? 1.0f : a.scale * kLog2e) {}

  void run() const {
    const int64_t packed = (key_.row + value_.columns) * int64_t(sizeof(Number));
    const int64_t all = plan_.packed_keys * packed + plan_.packed_keys / kPanel;
    const int64_t shared = plan_.whole_heads ? 0 : align64(all);
    const int64_t each = align64(Scratch(*this, nullptr).bytes);
    char* memory = workspace(shared + each * plan_.threads);
    const int64_t heads = int64_t(plan_.packed_begin.size()), blocks = int64_t(plan_.blocks.size());
#pragma omp parallel num_threads(plan_.threads)
    {
      const Scratch mine(*this, memory + shared + each * omp_get_thread_num());
      if (plan_.whole_heads) {
#pragma omp for schedule(dynamic, 1)
        for (int64_t h = 0; h < heads; h++) {
          const Block* block = plan_.blocks.data() + plan_.first_of_head[h];
          const Block* end = plan_.blocks.data() + plan_.first_of_head[h + 1];
          for (int64_t p = 0; p < panels(*block); p++) pack_panel(*block, p, mine.kv);
          for (; block < end; block++) run_block(*block, mine.kv, mine);
        }
      } else {
        for (int64_t i = 0; i < blocks; i++) {
          const Block& block = plan_.blocks[i];
          if (block.begin > 0) continue;
          const Packed kv = packed_head(memory, block);
#pragma omp for schedule(static) nowait
          for (int64_t p = 0; p < panels(block); p++) pack_panel(block, p, kv);
        }
#pragma omp barrier
#pragma omp for schedule(dynamic, 1)
        for (int64_t i = 0; i < blocks; i++)
          run_block(plan_.blocks[i], packed_head(memory, plan_.blocks[i]), mine);
      }
    }
  }

 private:
  // Keys and values of one head: [panels][row][kPanel], and for each kPanel dims [keys][kPanel];
  // which panels have values that are not finite.
  struct Packed {
    Number *keys, *values;
    int64_t value_stride;
    bool* spoilt;
  };
  // A thread's memory.
  struct Scratch {
    Scratch(const Forward& f, char* begin) {
      Cutter memory(begin);
      q = memory.take<Number>(kBlockRows * f.key_.row);
      out = memory.take<float>(kBlockRows * f.value_.columns);
      m = memory.take<float>(kBlockRows);
      l = memory.take<float>(kBlockRows);
      scores = memory.take<float>(kRows * kStepKeys);
      // Numbers as wide as a float take the scores' place.
      p = sizeof(Number) == 4 ? reinterpret_cast<Number*>(scores)
                              : memory.take<Number>(kRows * kStepKeys);
      panels = memory.take<int32_t>(f.plan_.max_keys / kPanel);
      const int64_t keys = f.plan_.whole_heads ? f.plan_.max_keys : 0;
      kv.keys = memory.take<Number>(keys * f.key_.row);
      kv.values = memory.take<Number>(keys * f.value_.columns);
      kv.value_stride = keys * kPanel;
      kv.spoilt = memory.take<bool>(keys / kPanel);
      clean = memory.take<Number>(kPanel * kPanel);
      rows = memory.take<float>(kRows * kPanel);
      bytes = memory.at() - begin;
    }
    Number *q, *p, *clean;
    float *out, *m, *l, *scores, *rows;
    int32_t* panels;
    Packed kv;
    int64_t bytes;
  };
  // kRows rows of a block, whose queries are [first, last]; `head` is the head of its first row.
  struct Strip {
    int64_t row;
    int32_t first, last;
    int head;
  };

  const Sequence& sequence(const Block& b) const { return plan_.sequences[b.sequence]; }
  int64_t panels(const Block& b) const { return (sequence(b).key_len + kPanel - 1) / kPanel; }
  Packed packed_head(char* memory, const Block& b) const {
    Number* keys = reinterpret_cast<Number*>(memory);
    const int64_t begin = plan_.packed_begin[b.head_index];
    return {keys + begin * key_.row, keys + plan_.packed_keys * key_.row + begin * value_.columns,
            panels(b) * kPanel * kPanel,
            reinterpret_cast<bool*>(keys + plan_.packed_keys * (key_.row + value_.columns)) +
                begin / kPanel};
  }
  template <class P>
  Rows<P> query_rows(const Operand& x, const Block& b) const {
    const Sequence& s = sequence(b);
    return {x, s.batch, s.q_begin, int64_t(b.head) * a_.group(), a_.group()};
  }

  void pack_panel(const Block& b, int64_t p, const Packed& kv) const {
    const Sequence& s = sequence(b);
    if (s.visible.seen[p].lo >= s.visible.seen[p].hi) return;
    const Rows<T> k(a_.k, s.batch, s.k_begin, b.head, 1), v(a_.v, s.batch, s.k_begin, b.head, 1);
    const int32_t *lo = s.visible.lo + p * kPanel, *hi = s.visible.hi + p * kPanel;
    const auto seen = [&](const Rows<T>& x) {
      return [&, x](int i) -> const T* { return lo[i] < hi[i] ? x(p * kPanel + i) : nullptr; };
    };
    pack_columns<E>(seen(k), kPanel, key_.dim, kv.keys + p * kPanel * key_.row, kPanel);
    Number* values = kv.values + p * kPanel * kPanel;
    pack_steps<E>(seen(v), kPanel, value_.dim, values, kv.value_stride);
    kv.spoilt[p] = !finite(values, kv.value_stride);
  }
  // 0 times a number that is not finite is NaN.
  bool finite(const Number* values, int64_t stride) const {
    const Number zeros[E::kPair] = {};
    Vec sum = Vec::set(0.0f);
    for (int d = 0; d < value_.columns; d += kPanel, values += stride)
      for (int i = 0; i < kPanel * kPanel; i += W * E::kPair)
        sum = Math::dot(sum, Math::load(values + i), Math::spread(zeros));
    return sum.sum() == 0.0f;
  }

  void run_block(const Block& b, const Packed& kv, const Scratch& mine) const {
    const int64_t rows = b.end - b.begin;
    const int padded = pad(int(rows), kRows);
    const Rows<T> q = query_rows<T>(a_.q, b);
    pack_rows<E>([&](int r) { return r < rows ? q(b.begin + r) : nullptr; }, padded, key_, mine.q);
    std::memset(mine.out, 0, padded * value_.columns * sizeof(float));
    for (int r = 0; r < padded; r++) mine.m[r] = -kInf, mine.l[r] = 0.0f;
    const Visible& visible = sequence(b).visible;
    const int count = find_panels(b, visible, mine.panels);
    for (int i = 0; i < count; i += kStepPanels)
      for (int64_t r = 0; r < rows; r += kRows) {
        const int64_t group = a_.group(), begin = b.begin + r;
        const int64_t last = std::min(begin + kRows, b.end) - 1;
        const Strip strip{r, int32_t(begin / group), int32_t(last / group), int(begin % group)};
        run_strip(strip, kv, visible, mine.panels + i, std::min(kStepPanels, count - i), mine);
      }
    const Rows<T> out = query_rows<T>(a_.out, b);
    const Rows<float> lse = query_rows<float>(a_.lse, b);
    for (int64_t r = 0; r < rows; r++)
      store_row(mine.out + r * value_.columns, mine.m[r], mine.l[r], out(b.begin + r),
                lse(b.begin + r));
  }

  // The panels that some query of the block may see.
  int find_panels(const Block& b, const Visible& visible, int32_t* found) const {
    const int64_t first = b.begin / a_.group(), last = (b.end - 1) / a_.group();
    int count = 0;
    for (int64_t p = 0; p < panels(b); p++)
      if (visible.seen[p].lo <= last && first < visible.seen[p].hi) found[count++] = int32_t(p);
    return count;
  }

  void run_strip(const Strip& strip, const Packed& kv, const Visible& visible,
                 const int32_t* candidates, int count, const Scratch& mine) const {
    int32_t chosen[kStepPanels];
    bool apart[kStepPanels];
    const int n = score(strip, kv, visible, candidates, count, mine, chosen, apart);
    if (n == 0) return;
    alignas(64) float correction[kRows];
    const bool rescale = softmax(mine, strip.row, n * kPanel, correction);
    // Panels that lie side by side are one product.
    for (int i = 0, end; i < n; i = end) {
      for (end = i + 1; end < n && chosen[end] == chosen[end - 1] + 1;) {
        if (apart[i] || apart[end]) break;
        end++;
      }
      const int steps = apart[i] ? 0 : (end - i) * kPanel / E::kPair;
      const Number *p = mine.p + i * kPanel, *v = kv.values + int64_t(chosen[i]) * kPanel * kPanel;
      for (int d = 0; d < value_.columns; d += kPanel, v += kv.value_stride) {
        float* out = mine.out + strip.row * value_.columns + d;
        if (i == 0 && rescale)
          rescale_add_product<Math>(p, kStepKeys, v, steps, correction, out, value_.columns);
        else
          add_product<Math>(p, kStepKeys, v, steps, out, value_.columns);
      }
      if (apart[i]) add_row_by_row(strip, kv, visible, chosen[i], p, mine);
    }
  }

  // Each row multiplies a copy of the panel without the keys that it does not see: their P is 0,
  // but some of their values are not finite.
  void add_row_by_row(const Strip& strip, const Packed& kv, const Visible& visible, int64_t panel,
                      const Number* p, const Scratch& mine) const {
    for (int r = 0; r < kRows; r++) {
      const int query = strip.first + (strip.head + r) / a_.group();
      const Number* v = kv.values + panel * kPanel * kPanel;
      for (int d = 0; d < value_.columns; d += kPanel, v += kv.value_stride) {
        for (int i = 0; i < kPanel * kPanel; i++) {
          const int64_t key = panel * kPanel + i / (kPanel * E::kPair) * E::kPair + i % E::kPair;
          const bool seen = visible.lo[key] <= query && query < visible.hi[key];
          mine.clean[i] = seen ? v[i] : Number{};
        }
        float* out = mine.out + strip.row * value_.columns + d;
        for (int j = 0; j < kRows * kPanel; j++)
          mine.rows[j] = out[j / kPanel * value_.columns + j % kPanel];
        add_product<Math>(p, kStepKeys, mine.clean, kPanel / E::kPair, mine.rows, kPanel);
        std::memcpy(out + r * value_.columns, mine.rows + r * kPanel, kPanel * sizeof(float));
      }
    }
  }

  // Scores of the strip with the candidates that it sees, side by side: their number. `apart`:
  // which of them need each row's own values.
  int score(const Strip& strip, const Packed& kv, const Visible& visible, const int32_t* candidates,
            int count, const Scratch& mine, int32_t* chosen, bool* apart) const {
    int n = 0;
    for (int i = 0; i < count; i++) {
      const int64_t p = candidates[i];
      const Span seen = visible.seen[p], full = visible.full[p];
      if (seen.lo > strip.last || seen.hi <= strip.first) continue;
      float* s = mine.scores + n * kPanel;
      chosen[n++] = int32_t(p);
      product<Math>(mine.q + strip.row * key_.row, key_.row, kv.keys + p * kPanel * key_.row,
                    key_.steps, s, kStepKeys);
      if (explicit_logits_)
        for (int r = 0; r < kRows; r++)
          for (int j = 0; j < kPanel; j += W)
            logits_(Vec::load(s + r * kStepKeys + j)).store(s + r * kStepKeys + j);
      const bool masked = full.lo > strip.first || full.hi <= strip.last;
      if (masked) mask(s, strip, visible.lo + p * kPanel, visible.hi + p * kPanel);
      apart[n - 1] = masked && kv.spoilt[p];
    }
    return n;
  }

  // -inf where a row's query is not one of those that see the key.
  void mask(float* s, const Strip& strip, const int32_t* lo, const int32_t* hi) const {
    const int group = a_.group();
    int query = strip.first, head = strip.head;
    for (int r = 0; r < kRows; r++, s += kStepKeys) {
      for (int j = 0; j < kPanel; j += W)
        Vec::mask_not_containing(Vec::load(s + j), lo + j, hi + j, query).store(s + j);
      if (++head == group) head = 0, query++;
    }
  }

  // Scores become probabilities; m and l follow, correction says how far sums have to be rescaled.
  bool softmax(const Scratch& mine, int64_t row, int keys, float* correction) const {
    bool rescale = false;
    const Vec factor = Vec::set(factor_);
    for (int r = 0; r < kRows; r++) {
      float* s = mine.scores + r * kStepKeys;
      Vec top[2] = {Vec::set(-kInf), Vec::set(-kInf)};
      for (int j = 0; j < keys; j += kPanel)
        RIDGELINE_UNROLL for (int e = 0; e < 2; e++) top[e] =
            Vec::max(Vec::load(s + j + e * W), top[e]);
      const float m_old = mine.m[row + r];
      const float m = std::max(m_old, Vec::max(top[0], top[1]).max() * factor_);
      const Vec shift = Vec::set(-finite_max(m));
      Vec sum[2] = {Vec::set(0.0f), Vec::set(0.0f)};
      for (int j = 0; j < keys; j += kPanel) {
        Vec p[2];
        RIDGELINE_UNROLL for (int e = 0; e < 2; e++) {
          p[e] = exp2(Vec::fma(Vec::load(s + j + e * W), factor, shift));
          sum[e] = sum[e] + p[e];
        }
        E::put(mine.p + r * kStepKeys + j, p[0], p[1]);
      }
      correction[r] = m > m_old ? ridgeline::RIDGELINE_ISA::correction(m_old, m) : 1.0f;
      rescale |= m > m_old;
      mine.l[row + r] = mine.l[row + r] * correction[r] + (sum[0] + sum[1]).sum();
      mine.m[row + r] = m;
    }
    return rescale;
  }

  void store_row(const float* row, float m, float l, T* out, float* lse) const {
    const Vec inverse = Vec::set(l == 0.0f ? 0.0f : 1.0f / l);
    int d = 0;
    for (; d + W <= value_.dim; d += W) (Vec::load(row + d) * inverse).store(out + d);
    if (d < value_.dim) (Vec::load(row + d) * inverse).store_first(out + d, value_.dim - d);
    *lse = l == 0.0f ? -kInf : (m + std::log2(l)) * kLn2;
  }

  const AttentionArgs& a_;
  const AttentionPlan& plan_;
  const Widths<E> key_, value_;
  const bool explicit_logits_;
  const Logits logits_;
  const float factor_;
};

}  // namespace ridgeline::RIDGELINE_ISA
