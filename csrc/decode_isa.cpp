// The decode loop for one instruction set; compiled once for each with its flags and namespace.
// Nothing here instantiates a standard container: such code could be shared with files compiled
// for a lesser machine.
#include <omp.h>

#include "engine_fp32.h"
#include "scratch.h"
#ifdef __AVX512BF16__
#include "engine_bf16.h"
#endif

namespace ridgeline::RIDGELINE_ISA {
namespace {

// The visible tokens [lo, hi) of query i of sequence b.
struct Visible {
  int64_t lo, hi;
  Visible(const DecodeArgs& a, int b, int i) {
    const int64_t length = a.length(b), position = length - a.query_len + i;
    lo = a.window_left < 0 ? 0 : std::max<int64_t>(0, position - a.window_left);
    hi = a.causal ? position + 1 : length;
    if (a.window_right >= 0) hi = std::min(hi, position + a.window_right + 1);
    hi = std::min(hi, length);
  }
};

template <class Engine>
class Decode {
  using T = typename Engine::Element;

 public:
  Decode(const DecodeArgs& a, const Schedule& s)
      : a_(a),
        s_(s),
        engine_(a.q_nope.dim, a.q_rope.dim, a.value.dim, a.rows()),
        rows_(engine_.out_rows()),
        width_(engine_.out_width()),
        query_bytes_(engine_.query_bytes()),
        score_bytes_(align64(engine_.score_bytes(s.tile))),
        state_floats_(align64(s.max_heads * rows_ * (width_ + 2) * 4) / 4),
        scratch_bytes_(Scratch(*this, nullptr).bytes) {}

  void run() {
    char* memory = workspace(scratch_bytes_ * s_.threads + s_.partials * state_floats_ * 4);
    partials_ = reinterpret_cast<float*>(memory + scratch_bytes_ * s_.threads);
    const int64_t pieces = int64_t(s_.pieces.size()), groups = int64_t(s_.groups.size());
    const int64_t rows = int64_t(a_.rows()) * s_.max_heads;
#pragma omp parallel num_threads(s_.threads)
    {
      const Scratch mine(*this, memory + scratch_bytes_ * omp_get_thread_num());
      mine.clear();
#pragma omp for schedule(dynamic, 1)
      for (int64_t i = 0; i < pieces; i++) piece(s_.pieces[i], mine);
#pragma omp for schedule(static)
      for (int64_t i = 0; i < groups * rows; i++)
        merge(s_.groups[i / rows], int(i % rows), mine.row);
    }
  }

 private:
  // A thread's memory; `query` holds all heads of a piece, `score` and `corr` one.
  struct Scratch {
    Scratch(const Decode& d, char* begin) {
      Cutter memory(begin);
      query = memory.take<char>(d.query_bytes_ * d.s_.max_heads);
      lo = memory.take<int>(d.rows_);
      hi = memory.take<int>(d.rows_);
      row = memory.take<float>(d.width_);
      cleared = memory.at() - begin;
      score = memory.take<char>(d.score_bytes_);
      corr = memory.take<float>(d.rows_);
      state = memory.take<float>(d.state_floats_);
      bytes = memory.at() - begin;
    }
    // The padding of queries and of rows is zeros.
    void clear() const { std::memset(query, 0, cleared); }

    char *query, *score;
    int *lo, *hi;
    float *row, *corr, *state;
    int64_t cleared, bytes;
  };

  // A state holds (O, m, l) of the heads of a piece.
  float* out_of(float* state, int h) const { return state + h * rows_ * width_; }
  float* m_of(float* state, int h) const {
    return state + s_.max_heads * rows_ * width_ + 2 * h * rows_;
  }
  float* l_of(float* state, int h) const { return m_of(state, h) + rows_; }

  void pack_queries(const Piece& p, char* buffer) const {
    const int group = a_.group();
    for (int h = p.head_begin; h < p.head_end; h++)
      for (int r = 0; r < a_.rows(); r++) {
        const int64_t i = r / group, head = int64_t(h) * group + r % group;
        const auto row = [&](const Queries& q) {
          return reinterpret_cast<const T*>(q.base + p.batch * q.batch_stride + i * q.token_stride +
                                            head * q.head_stride);
        };
        engine_.pack_query(buffer + (h - p.head_begin) * engine_.query_bytes(), r, row(a_.q_nope),
                           a_.q_rope.dim ? row(a_.q_rope) : nullptr);
      }
  }

  void piece(const Piece& p, const Scratch& mine) const {
    float* state = p.partial < 0 ? mine.state : partials_ + p.partial * state_floats_;
    const int heads = p.head_end - p.head_begin, size = s_.tile;
    for (int h = 0; h < heads; h++) {
      std::memset(out_of(state, h), 0, rows_ * width_ * 4);
      for (int r = 0; r < rows_; r++) m_of(state, h)[r] = -kInf, l_of(state, h)[r] = 0.0f;
    }
    pack_queries(p, mine.query);
    const Logits logits{a_.scale, a_.softcap};
    Tile tile, ahead;
    Prefetch prefetch;
    for (int64_t t = p.token_begin; t < p.token_end; t += size) {
      locate(a_, p, t, int(std::min<int64_t>(size, p.token_end - t)), size, tile);
      const int64_t next = t + int64_t(a_.prefetch) * size;
      if (a_.prefetch && next < p.token_end) {
        const int count = int(std::min<int64_t>(size, p.token_end - next));
        locate(a_, p, next, count, count, ahead);
        prefetch.start(a_, p, ahead, sizeof(T), engine_.prefetch_steps(size, heads));
      } else {
        prefetch.stop();
      }
      const bool edge = visible_part(p, t, tile.tokens, mine.lo, mine.hi);
      for (int h = 0; h < heads; h++) {
        engine_.scores(mine.query + h * query_bytes_, tile, size, h * a_.key.head_stride,
                       mine.score, prefetch);
        const bool grew = engine_.softmax(mine.score, size, logits, edge, mine.lo, mine.hi,
                                          m_of(state, h), l_of(state, h), mine.corr);
        engine_.values(mine.score, tile, size, h * a_.value.head_stride, grew, mine.corr,
                       out_of(state, h), prefetch);
      }
      prefetch.finish();
    }
    if (p.partial < 0)
      for (int r = 0; r < heads * a_.rows(); r++) emit(p, r, state, 1, mine.row);
  }

  // Fills lo and hi with each row's part of the tile at `begin`; false if every row sees all of it.
  bool visible_part(const Piece& p, int64_t begin, int tokens, int* lo, int* hi) const {
    bool edge = tokens < s_.tile;
    const int group = a_.group();
    for (int i = 0; i < a_.query_len; i++) {
      const Visible seen(a_, p.batch, i);
      const int from = int(std::clamp<int64_t>(seen.lo - begin, 0, tokens));
      const int to = int(std::clamp<int64_t>(seen.hi - begin, 0, tokens));
      edge |= from > 0 || to < tokens;
      for (int g = 0; g < group; g++) lo[i * group + g] = from, hi[i * group + g] = to;
    }
    return edge;
  }

  void merge(const Group& group, int r, float* row) const {
    const Piece& p = s_.pieces[group.first];
    if (r >= (p.head_end - p.head_begin) * a_.rows()) return;
    emit(p, r, partials_ + p.partial * state_floats_, group.count, row);
  }

  // Writes row r (of heads x rows) of a piece from `count` partial states, one behind another:
  // out = sum w_s O_s / sum w_s l_s with w_s = 2^(m_s - m).
  void emit(const Piece& p, int r, float* states, int count, float* row) const {
    const int h = r / a_.rows(), q = r % a_.rows();
    float top = -kInf, den = 0.0f;
    for (int s = 0; s < count; s++) top = std::max(top, m_of(states + s * state_floats_, h)[q]);
    for (int64_t d = 0; d < width_; d++) row[d] = 0.0f;
    for (int s = 0; s < count; s++) {
      float* part = states + s * state_floats_;
      const float w = std::exp2(m_of(part, h)[q] - finite_max(top));
      const float* o = out_of(part, h) + q * width_;
      den += w * l_of(part, h)[q];
      for (int64_t d = 0; d < width_; d += Vec::kWidth)
        Vec::fma(Vec::set(w), Vec::load(o + d), Vec::load(row + d)).store(row + d);
    }
    const float inverse = den == 0.0f ? 0.0f : 1.0f / den;
    for (int64_t d = 0; d < width_; d++) row[d] *= inverse;
    const int64_t group = a_.group(), i = q / group, head = (p.head_begin + h) * group + q % group;
    const int64_t index = (int64_t(p.batch) * a_.query_len + i) * a_.heads + head;
    engine_.store_row(row, reinterpret_cast<T*>(a_.out) + index * a_.value.dim);
    a_.lse[index] = den == 0.0f ? -kInf : (top + std::log2(den)) * kLn2;
  }

  const DecodeArgs& a_;
  const Schedule& s_;
  const Engine engine_;
  const int64_t rows_, width_, query_bytes_, score_bytes_, state_floats_, scratch_bytes_;
  float* partials_ = nullptr;
};

}  // namespace

void decode(const DecodeArgs& a, const Schedule& s) {
  switch (a.dtype) {
    case Dtype::kBFloat16:
#ifdef __AVX512BF16__
      return Decode<EngineBf16>(a, s).run();
#else
      return Decode<EngineFp32<BFloat16>>(a, s).run();
#endif
    case Dtype::kFloat16:
      return Decode<EngineFp32<Float16>>(a, s).run();
    case Dtype::kFloat32:
      return Decode<EngineFp32<float>>(a, s).run();
  }
}

}  // namespace ridgeline::RIDGELINE_ISA
