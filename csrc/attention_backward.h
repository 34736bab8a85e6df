// The backward pass, transposed: rows of a tile are keys, its lanes are query rows. So P^T and dS^T
// are left operands of dV and dK as they come out of the registers, and dS^T is the right operand
// of dQ^T = K^T dS^T.
//
// A block is a run of keys of one kv head. It goes over the query rows in chunks whose packed
// operands and dQ stay in cache while all its keys pass. dK and dV of its keys are complete; dQ is
// complete if the block has all keys of the head, otherwise the parts are added in their order.
#pragma once

#include <omp.h>

#include <algorithm>

#include "attention_gemm.h"
#include "attention_pack.h"
#include "scratch.h"
#include "softmax.h"

namespace ridgeline::RIDGELINE_ISA {

// From a dot product to P, and to what multiplies dP - delta.
struct Derivative {
  float factor;            // logits in base 2 a dot product
  float softcap, inverse;  // inverse: scale / softcap

  RIDGELINE_INLINE Derivative of(float scale, float softcap) {
    return {scale * kLog2e, softcap, softcap > 0 ? scale / softcap : 0.0f};
  }
};

// P^T of kRows keys by kPanel query rows: rounded into `p`, and into `d` as the derivative of the
// logits has it. `rows`: the query rows that see a key, from the panel's first; null: all.
template <class E, bool CAPPED>
__attribute__((noinline)) void probabilities(const typename E::Number* keys, int64_t ld,
                                             const typename E::Number* q, int steps,
                                             const Derivative& f, const float* lse,
                                             const Span* rows, int32_t begin, float* d,
                                             typename E::Number* p, int64_t ldp) {
  Results<E> s;
  fill(s, Vec::set(0.0f), Vec::set(0.0f));
  multiply_add(s, keys, ld, q, steps);
  for (int i = 0; i < E::kRows; i++) {
    Vec x[2];
    for (int j = 0; j < 2; j++) {
      const Vec shift = Vec::load(lse + j * E::W);
      Vec slope = Vec::set(1.0f), logit;
      if (CAPPED) {
        const Vec t = tanh(s.x[i][j] * Vec::set(f.inverse));
        slope = Vec::fma(Vec::set(0.0f) - t, t, slope);
        logit = t * Vec::set(f.softcap * kLog2e) - shift;
      } else {
        logit = s.x[i][j] * Vec::set(f.factor) - shift;
      }
      if (rows) {
        const int at = begin + j * E::W;
        logit = Vec::mask_outside(logit, rows[i].lo - at, rows[i].hi - at);
      }
      x[j] = exp2(logit);
      (CAPPED ? x[j] * slope : x[j]).store(d + i * E::kPanel + j * E::W);
    }
    E::put(p + i * ldp, x[0], x[1]);
  }
}

// dS^T = d * (V dO^T - delta): as left operand into `ds`, as right operand into `steps_out`.
template <class E>
__attribute__((noinline)) void score_gradients(const typename E::Number* values, int64_t ld,
                                               const typename E::Number* dout, int steps,
                                               const float* minus_delta, const float* d,
                                               typename E::Number* ds, int64_t ldp,
                                               typename E::Number* steps_out) {
  Results<E> s;
  fill(s, Vec::load(minus_delta), Vec::load(minus_delta + E::W));
  multiply_add(s, values, ld, dout, steps);
  RIDGELINE_UNROLL for (int i = 0; i < E::kRows; i += E::kPair) {
    Vec x[E::kPair][2];
    RIDGELINE_UNROLL for (int e = 0; e < E::kPair; e++) {
      RIDGELINE_UNROLL for (int j = 0; j < 2; j++) x[e][j] =
          s.x[i + e][j] * Vec::load(d + (i + e) * E::kPanel + j * E::W);
      E::put(ds + (i + e) * ldp, x[e][0], x[e][1]);
    }
    E::put_step(steps_out + i * E::kPanel, x);
  }
}

template <class E>
class Backward {
  using T = typename E::Element;
  using Math = typename E::Math;
  using Number = typename E::Number;
  static constexpr int kRows = E::kRows, kPanel = E::kPanel, W = E::W;
  static constexpr int kKeys = E::kKeys, kTileRows = E::kTileRows, kChunk = E::kChunkRows;
  static constexpr int kStrips = kKeys / kRows, kTilePanels = kTileRows / kPanel;
  static_assert(kKeys % kRows == 0 && kKeys % kPanel == 0, "strips and panels fill a tile");
  static_assert(kTileRows % kPanel == 0 && kChunk % kTileRows == 0, "tiles fill a chunk");
  static_assert(kRows % E::kPair == 0, "a strip has whole steps");

 public:
  Backward(const AttentionArgs& a, const AttentionPlan& plan)
      : a_(a),
        plan_(plan),
        key_(a.q.dim),
        value_(a.v.dim),
        // Rows of dQ^T, which both strips and transpositions have to fill.
        dims_(std::max(pad(a.q.dim, kRows), key_.row)),
        derivative_(Derivative::of(a.scale, a.softcap)) {}

  void run() const {
    const int64_t parts = align64(plan_.partial_rows * key_.row * int64_t(sizeof(float)));
    const int64_t each = align64(Scratch(*this, nullptr).bytes);
    char* memory = workspace(parts + each * plan_.threads);
    float* partials = reinterpret_cast<float*>(memory);
    const int64_t blocks = int64_t(plan_.blocks.size()), sums = int64_t(plan_.sums.size());
#pragma omp parallel num_threads(plan_.threads)
    {
      const Scratch mine(*this, memory + parts + each * omp_get_thread_num());
      mine.clear();
#pragma omp for schedule(dynamic, 1)
      for (int64_t i = 0; i < blocks; i++) Run(*this, plan_.blocks[i], mine, partials).all();
      if (a_.dq.base)
        for (int64_t i = 0; i < sums; i++) {
          const int64_t rows = plan_.sequences[plan_.sums[i].sequence].query_len * a_.group();
#pragma omp for schedule(static) nowait
          for (int64_t r = 0; r < rows; r++) add_parts(plan_.sums[i], r, rows, partials);
        }
    }
  }

 private:
  // A thread's memory.
  struct Scratch {
    Scratch(const Backward& f, char* begin) {
      const int64_t chunk = std::min<int64_t>(kChunk, pad_rows(f.plan_.max_rows));
      const int64_t keys = (f.plan_.max_block + kKeys - 1) / kKeys * kKeys;
      Cutter memory(begin);
      k = memory.take<Number>(kKeys * f.key_.row);
      v = memory.take<Number>(kKeys * f.value_.row);
      k_columns = memory.take<Number>(kKeys * f.dims_);
      cleared = memory.at() - begin;
      d = memory.take<float>(kRows * kPanel);
      p = memory.take<Number>(kKeys * kTileRows);
      ds = memory.take<Number>(kKeys * kTileRows);
      ds_steps = memory.take<Number>(kKeys * kTileRows);
      q_columns = memory.take<Number>(chunk * f.key_.row);
      q_steps = memory.take<Number>(chunk * f.key_.columns);
      dout_columns = memory.take<Number>(chunk * f.value_.row);
      dout_steps = memory.take<Number>(chunk * f.value_.columns);
      dq = memory.take<float>(chunk * f.dims_);
      lse = memory.take<float>(chunk);
      minus_delta = memory.take<float>(chunk);
      packed = memory.take<char>(kChunk / kPanel);
      dk = memory.take<float>(keys * f.key_.columns);
      dv = memory.take<float>(keys * f.value_.columns);
      stride = chunk * kPanel;
      bytes = memory.at() - begin;
    }
    static int64_t pad_rows(int64_t rows) { return (rows + kTileRows - 1) / kTileRows * kTileRows; }
    // Rows of padding are multiplied, their results not used: zeros keep that quick.
    void clear() const { std::memset(k, 0, cleared); }

    Number *k, *v, *k_columns, *p, *ds, *ds_steps;
    Number *q_columns, *q_steps, *dout_columns, *dout_steps;
    float *d, *dq, *lse, *minus_delta, *dk, *dv;
    char* packed;
    int64_t stride, cleared, bytes;
  };

  // The keys of a tile, whose query rows count from the chunk's first.
  struct Keys {
    int64_t begin;  // in the sequence
    int count, strips;
    Span rows[kKeys], seen[kStrips], full[kStrips];
    Span all;
  };

  // A block's way through its chunks and tiles.
  class Run {
   public:
    Run(const Backward& f, const Block& b, const Scratch& mine, float* partials)
        : f_(f),
          a_(f.a_),
          b_(b),
          s_(f.plan_.sequences[b.sequence]),
          m_(mine),
          part_(b.partial < 0 ? nullptr : partials + b.partial * f.key_.row),
          rows_(s_.query_len * a_.group()),
          q_(query_rows<T>(a_.q)),
          out_(query_rows<T>(a_.out)),
          dout_(query_rows<T>(a_.dout)),
          dq_(query_rows<T>(a_.dq)),
          lse_(query_rows<float>(a_.lse)),
          dlse_(query_rows<float>(a_.dlse)) {}

    void all() {
      const int64_t keys = (b_.end - b_.begin + kKeys - 1) / kKeys * kKeys;
      std::memset(m_.dk, 0, keys * f_.key_.columns * sizeof(float));
      std::memset(m_.dv, 0, keys * f_.value_.columns * sizeof(float));
      for (chunk_ = 0; chunk_ < rows_; chunk_ += kChunk) {
        chunk_rows_ = int(std::min<int64_t>(kChunk, rows_ - chunk_));
        std::memset(m_.packed, 0, kChunk / kPanel);
        for (int64_t key = b_.begin; key < b_.end; key += kKeys) tile(key);
        if (dq_) store_dq();
      }
      store_rows(m_.dk, f_.key_, a_.scale, a_.dk);
      store_rows(m_.dv, f_.value_, 1.0f, a_.dv);
    }

   private:
    template <class P>
    Rows<P> query_rows(const Operand& x) const {
      return {x, s_.batch, s_.q_begin, int64_t(b_.head) * a_.group(), a_.group()};
    }
    Rows<T> key_rows(const Operand& x) const { return {x, s_.batch, s_.k_begin, b_.head, 1}; }

    void tile(int64_t key) {
      Keys keys;
      find_rows(key, keys);
      if (keys.all.lo >= keys.all.hi) return;
      pack_keys(keys);
      for (int r = keys.all.lo / kTileRows * kTileRows; r < keys.all.hi; r += kTileRows) {
        const int first = r / kPanel;
        const int end = std::min((chunk_rows_ + kPanel - 1) / kPanel, first + kTilePanels);
        for (int p = first; p < end; p++)
          if (!m_.packed[p]) pack_queries(p);
        multiply(keys, first, end);
      }
    }

    // The chunk's rows that see the keys.
    void find_rows(int64_t begin, Keys& keys) const {
      keys.begin = begin;
      keys.count = int(std::min<int64_t>(kKeys, b_.end - begin));
      keys.strips = (keys.count + kRows - 1) / kRows;
      keys.all = {kChunk, 0};
      for (int i = 0; i < keys.strips; i++) {
        Span &seen = keys.seen[i] = {kChunk, 0}, &full = keys.full[i] = {0, kChunk};
        for (int key = i * kRows; key < (i + 1) * kRows; key++) {
          const Span rows = keys.rows[key] = rows_of(begin + key);
          if (rows.lo < rows.hi) seen = {std::min(seen.lo, rows.lo), std::max(seen.hi, rows.hi)};
          full = {std::max(full.lo, rows.lo), std::min(full.hi, rows.hi)};
        }
        keys.all = {std::min(keys.all.lo, seen.lo), std::max(keys.all.hi, seen.hi)};
      }
    }
    Span rows_of(int64_t key) const {
      if (key >= b_.end) return {0, 0};
      const int64_t group = a_.group();
      const auto within = [&](int64_t query) {
        return int32_t(std::clamp<int64_t>(query * group - chunk_, 0, chunk_rows_));
      };
      const Span rows{within(s_.visible.lo[key]), within(s_.visible.hi[key])};
      return rows.lo < rows.hi ? rows : Span{0, 0};
    }

    void pack_keys(const Keys& keys) const {
      const auto seen = [&](const Rows<T>& x) {
        return [&, x](int i) -> const T* {
          const int64_t key = keys.begin + i;
          return i < keys.count && s_.visible.lo[key] < s_.visible.hi[key] ? x(key) : nullptr;
        };
      };
      const Rows<T> k = key_rows(a_.k), v = key_rows(a_.v);
      pack_rows<E>(seen(k), keys.strips * kRows, f_.key_, m_.k);
      pack_rows<E>(seen(v), keys.strips * kRows, f_.value_, m_.v);
      if (dq_)
        E::pack_transposed(seen(k), pad(keys.strips * kRows, kPanel), f_.key_.dim, m_.k_columns,
                           kKeys);
    }

    // A panel of query rows, right before its first use.
    void pack_queries(int p) const {
      m_.packed[p] = 1;
      const int64_t begin = chunk_ + int64_t(p) * kPanel, at = p * kPanel;
      // Rows that see nothing have no gradient, whatever they hold.
      const auto seen = [&](int i) { return begin + i < rows_ && *lse_(begin + i) != -kInf; };
      const auto q = [&](int i) -> const T* { return seen(i) ? q_(begin + i) : nullptr; };
      const auto dout = [&](int i) -> const T* { return seen(i) ? dout_(begin + i) : nullptr; };
      pack_columns<E>(q, kPanel, f_.key_.dim, m_.q_columns + at * f_.key_.row, kPanel);
      pack_steps<E>(q, kPanel, f_.key_.dim, m_.q_steps + at * kPanel, m_.stride);
      pack_columns<E>(dout, kPanel, f_.value_.dim, m_.dout_columns + at * f_.value_.row, kPanel);
      pack_steps<E>(dout, kPanel, f_.value_.dim, m_.dout_steps + at * kPanel, m_.stride);
      for (int i = 0; i < kPanel; i++) {
        m_.lse[at + i] = seen(i) ? *lse_(begin + i) * kLog2e : kInf;
        m_.minus_delta[at + i] = seen(i) ? minus_delta(begin + i) : 0.0f;
      }
      std::memset(m_.dq + at * f_.dims_, 0, kPanel * f_.dims_ * sizeof(float));
    }
    // dlse - rowsum(dO * O)
    float minus_delta(int64_t r) const {
      const T *x = out_(r), *y = dout_(r);
      Vec sum = Vec::set(0.0f);
      int d = 0;
      for (; d + W <= f_.value_.dim; d += W)
        sum = Vec::fma(Vec::load(x + d), Vec::load(y + d), sum);
      if (const int rest = f_.value_.dim - d)
        sum = Vec::fma(Vec::load_first(x + d, rest), Vec::load_first(y + d, rest), sum);
      return (dlse_ ? *dlse_(r) : 0.0f) - sum.sum();
    }

    // One tile: keys by the panels [first, end) of query rows.
    void multiply(const Keys& keys, int first, int end) const {
      Span panels[kStrips], strips[kTilePanels];
      const int32_t from = first, to = end;
      for (int p = first; p < end; p++) strips[p - first] = {kStrips, 0};
      for (int i = 0; i < keys.strips; i++) {
        const Span seen = keys.seen[i];
        panels[i] = {std::max(from, seen.lo / kPanel),
                     std::min(to, (seen.hi + kPanel - 1) / kPanel)};
        for (int p = panels[i].lo; p < panels[i].hi; p++) {
          Span& at = strips[p - first];
          at = {std::min(at.lo, i), std::max(at.hi, i + 1)};
        }
      }
      for (int p = first; p < end; p++)
        for (int i = strips[p - first].lo; i < strips[p - first].hi; i++)
          gradients(keys, i, p, p - first, p >= panels[i].lo && p < panels[i].hi);
      for (int i = 0; i < keys.strips; i++) {
        if (panels[i].lo >= panels[i].hi) continue;
        const int64_t key = keys.begin - b_.begin + i * kRows;
        const int64_t left = int64_t(i) * kRows * kTileRows + (panels[i].lo - first) * kPanel;
        if (a_.dv.base)
          accumulate(m_.p + left, m_.dout_steps, panels[i], f_.value_.columns, m_.dv, key);
        if (a_.dk.base)
          accumulate(m_.ds + left, m_.q_steps, panels[i], f_.key_.columns, m_.dk, key);
      }
      if (dq_)
        for (int p = first; p < end; p++) accumulate_dq(p, p - first, strips[p - first]);
    }

    // P^T and dS^T of strip i and panel p, which is panel `at` of the tile; zeros if nothing is
    // seen.
    void gradients(const Keys& keys, int i, int p, int at, bool seen) const {
      Number* steps = m_.ds_steps + (int64_t(at) * kKeys + i * kRows) * kPanel;
      if (!seen) {
        std::memset(steps, 0, kRows * kPanel * sizeof(Number));
        return;
      }
      const int32_t row = p * kPanel, end = std::min(chunk_rows_, row + kPanel);
      const bool full = keys.full[i].lo <= row && keys.full[i].hi >= end;
      const Span* rows = full ? nullptr : keys.rows + i * kRows;
      const int64_t left = int64_t(i) * kRows * kTileRows + at * kPanel;
      const auto probability =
          a_.softcap > 0 ? probabilities<Math, true> : probabilities<Math, false>;
      probability(m_.k + int64_t(i) * kRows * f_.key_.row, f_.key_.row,
                  m_.q_columns + int64_t(row) * f_.key_.row, f_.key_.steps, f_.derivative_,
                  m_.lse + row, rows, row, m_.d, m_.p + left, kTileRows);
      if (!dq_ && !a_.dk.base) return;
      score_gradients<Math>(m_.v + int64_t(i) * kRows * f_.value_.row, f_.value_.row,
                            m_.dout_columns + int64_t(row) * f_.value_.row, f_.value_.steps,
                            m_.minus_delta + row, m_.d, m_.ds + left, kTileRows, steps);
    }

    // Rows `key` of dK or dV gain the product of a strip with the panels of query rows it sees.
    void accumulate(const Number* left, const Number* steps, Span panels, int columns, float* sum,
                    int64_t key) const {
      const int count = (panels.hi - panels.lo) * kPanel / E::kPair;
      const Number* right = steps + int64_t(panels.lo) * kPanel * kPanel;
      for (int d = 0; d < columns; d += kPanel, right += m_.stride)
        add_product<Math>(left, kTileRows, right, count, sum + key * columns + d, columns);
    }

    // dQ^T of panel p gains the product with the strips that see it.
    void accumulate_dq(int p, int at, Span strips) const {
      if (strips.lo >= strips.hi) return;
      const Number* steps = m_.ds_steps + (int64_t(at) * kKeys + strips.lo * kRows) * kPanel;
      const int count = (strips.hi - strips.lo) * kRows / E::kPair;
      float* dq = m_.dq + int64_t(p) * kPanel * f_.dims_;
      for (int d = 0; d < f_.key_.dim; d += kRows)
        add_product<Math>(m_.k_columns + d * kKeys + strips.lo * kRows, kKeys, steps, count,
                          dq + d * kPanel, kPanel);
    }

    // dQ^T of the chunk's panels back to rows: of dq, or of this block's part of it.
    void store_dq() const {
      const Vec scale = Vec::set(a_.scale);
      for (int r = 0; r < chunk_rows_; r += W)
        for (int d = 0; d < f_.key_.dim; d += W) {
          Vec x[W];
          const float* panel = m_.dq + int64_t(r / kPanel * kPanel) * f_.dims_ + r % kPanel;
          for (int i = 0; i < W; i++)
            x[i] = m_.packed[r / kPanel] ? Vec::load(panel + (d + i) * kPanel) : Vec::set(0.0f);
          Vec::transpose(x);
          const int count = std::min(W, chunk_rows_ - r), dims = std::min(W, f_.key_.dim - d);
          for (int i = 0; i < count; i++) {
            if (part_)
              x[i].store(part_ + (chunk_ + r + i) * f_.key_.row + d);
            else
              (x[i] * scale).store_first(dq_(chunk_ + r + i) + d, dims);
          }
        }
    }

    void store_rows(const float* sum, const Widths<E>& width, float factor,
                    const Operand& to) const {
      if (!to.base) return;
      const Rows<T> out = key_rows(to);
      for (int64_t key = b_.begin; key < b_.end; key++, sum += width.columns)
        for (int d = 0; d < width.dim; d += W)
          (Vec::load(sum + d) * Vec::set(factor))
              .store_first(out(key) + d, std::min(W, width.dim - d));
    }

    const Backward& f_;
    const AttentionArgs& a_;
    const Block& b_;
    const Sequence& s_;
    const Scratch& m_;
    float* const part_;
    const int64_t rows_;
    const Rows<T> q_, out_, dout_, dq_;
    const Rows<float> lse_, dlse_;
    int64_t chunk_ = 0;
    int chunk_rows_ = 0;
  };

  // Row r of dq from the parts of a head.
  void add_parts(const Sum& sum, int64_t r, int64_t rows, const float* partials) const {
    const Sequence& s = plan_.sequences[sum.sequence];
    const Rows<T> dq(a_.dq, s.batch, s.q_begin, int64_t(sum.head) * a_.group(), a_.group());
    for (int d = 0; d < key_.dim; d += W) {
      Vec total = Vec::set(0.0f);
      for (int64_t i = 0; i < sum.count; i++)
        total = total + Vec::load(partials + (sum.first + i * rows + r) * key_.row + d);
      (total * Vec::set(a_.scale)).store_first(dq(r) + d, std::min(W, key_.dim - d));
    }
  }

  const AttentionArgs& a_;
  const AttentionPlan& plan_;
  const Widths<E> key_, value_;
  const int dims_;
  const Derivative derivative_;
};

}  // namespace ridgeline::RIDGELINE_ISA
