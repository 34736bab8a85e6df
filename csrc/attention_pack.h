// Rows of elements into operands of attention_gemm.h. A null row is packed as zeros: behind the end
// of a sequence, or where a NaN that nobody sees would spread through a product with 0.
#pragma once

#include "attention.h"
#include "simd.h"

namespace ridgeline::RIDGELINE_ISA {

RIDGELINE_INLINE int pad(int n, int to) { return (n + to - 1) / to * to; }

// The rows of one kv head of a sequence: token r / group, head r % group of the head's group.
template <class T>
class Rows {
 public:
  Rows(const Operand& x, int64_t batch, int64_t token, int64_t head, int group)
      : base_(x.base
                  ? x.base + batch * x.batch_stride + token * x.token_stride + head * x.head_stride
                  : nullptr),
        token_stride_(x.token_stride),
        head_stride_(x.head_stride),
        group_(group) {}
  T* operator()(int64_t r) const {
    const int64_t token = group_ == 1 ? r : r / group_;
    return reinterpret_cast<T*>(base_ + token * token_stride_ +
                                (r - token * group_) * head_stride_);
  }
  explicit operator bool() const { return base_ != nullptr; }

 private:
  char* base_;
  int64_t token_stride_, head_stride_;
  int group_;
};

// Widths of operands: `dim` as steps of a right operand, as a left operand's row, as columns.
template <class E>
struct Widths {
  explicit Widths(int dim)
      : dim(dim),
        steps((dim + E::kPair - 1) / E::kPair),
        row(pad(dim, E::W * E::kPair)),
        columns(pad(dim, E::kPanel)) {}
  int dim, steps, row, columns;
};

// kPanel rows become the columns of a right operand, steps along their elements; `get(i)` gives row
// i or null. Words are `stride` apart from step to step.
template <class E, class Get>
void pack_columns(const Get& get, int count, int dim, typename E::Number* out, int64_t stride) {
  constexpr int W = E::W;
  for (int c = 0; c < count; c += W) {
    const typename E::Element* row[W];
    for (int i = 0; i < W; i++) row[i] = get(c + i);
    for (int d = 0; d < dim; d += W * E::kPair) {
      Vec x[W];
      RIDGELINE_UNROLL for (int i = 0; i < W; i++) x[i] =
          row[i] ? E::words(row[i], d, dim) : Vec::set(0.0f);
      Vec::transpose(x);
      float* words = reinterpret_cast<float*>(out) + d / E::kPair * stride + c;
      RIDGELINE_UNROLL for (int i = 0; i < W; i++) x[i].store(words + i * stride);
    }
  }
}

// Rows become the steps of right operands whose columns are their elements: one operand for each
// kPanel elements, `stride` numbers apart.
template <class E, class Get>
void pack_steps(const Get& get, int count, int dim, typename E::Number* out, int64_t stride) {
  for (int r = 0; r < count; r += E::kPair) {
    const typename E::Element* row[E::kPair];
    RIDGELINE_UNROLL for (int i = 0; i < E::kPair; i++) row[i] = get(r + i);
    for (int d = 0; d < dim; d += E::kPanel)
      E::pack_step(row, d, dim, out + d / E::kPanel * stride + r * E::kPanel);
  }
}

template <class E, class Get>
void pack_rows(const Get& get, int count, const Widths<E>& width, typename E::Number* out) {
  for (int r = 0; r < count; r++)
    E::pack_row(get(r), width.dim, width.row, out + int64_t(r) * width.row);
}

}  // namespace ridgeline::RIDGELINE_ISA
