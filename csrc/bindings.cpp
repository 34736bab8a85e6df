// The Python module: raw pointers, shapes and strides in, no torch headers, so that one build
// serves every version of torch. The caller has checked shapes and dtypes; values of lengths and
// page ids are checked here.
#include <nanobind/nanobind.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/tuple.h>
#include <nanobind/stl/vector.h>

#include "attention.h"
#include "decode.h"
#include "roofs.h"

namespace nb = nanobind;
using namespace ridgeline;

namespace {

// Pointer, shape, strides in elements, bytes an element.
using View = std::tuple<uintptr_t, std::vector<int64_t>, std::vector<int64_t>, int>;

const char* pointer(const View& v) { return reinterpret_cast<const char*>(std::get<0>(v)); }
int64_t size(const View& v, int i) { return std::get<1>(v)[i]; }
int64_t stride(const View& v, int i) { return std::get<2>(v)[i] * std::get<3>(v); }

Dtype dtype_of(const std::string& name) {
  if (name == "bfloat16") return Dtype::kBFloat16;
  if (name == "float16") return Dtype::kFloat16;
  if (name == "float32") return Dtype::kFloat32;
  throw std::invalid_argument("dtype: expected bfloat16, float16 or float32, got " + name);
}

Queries queries(const View& q) {
  return {pointer(q), stride(q, 0), stride(q, 1), stride(q, 2), int(size(q, 3))};
}
// [num_pages, page_size, heads, dim], or [num_pages, page_size, dim] of one head.
CachedOperand cached(const View& x) {
  const bool heads = std::get<1>(x).size() == 4;
  return {pointer(x), stride(x, 0), stride(x, 1), heads ? stride(x, 2) : 0,
          int(size(x, heads ? 3 : 2))};
}

struct Common {
  std::string dtype;
  View table, lengths, out, lse;
  float scale;
  bool causal;
  int num_splits, threads, prefetch;
};

DecodeArgs common_args(const Common& c, const View& q, const View& cache) {
  DecodeArgs a;
  a.dtype = dtype_of(c.dtype);
  a.q_nope = queries(q);
  a.key = cached(cache);
  a.batch = int(size(q, 0)), a.query_len = int(size(q, 1)), a.heads = int(size(q, 2));
  a.kv_heads = int(size(cache, 2)), a.num_pages = size(cache, 0), a.page_size = size(cache, 1);
  a.table = reinterpret_cast<const int32_t*>(pointer(c.table));
  a.table_row = std::get<2>(c.table)[0], a.table_col = std::get<2>(c.table)[1];
  a.max_pages = size(c.table, 1);
  a.lengths = reinterpret_cast<const int32_t*>(pointer(c.lengths));
  a.lengths_stride = std::get<2>(c.lengths)[0];
  a.out = const_cast<char*>(pointer(c.out));
  a.lse = reinterpret_cast<float*>(const_cast<char*>(pointer(c.lse)));
  a.scale = c.scale, a.causal = c.causal, a.num_splits = c.num_splits, a.threads = c.threads;
  a.prefetch = c.prefetch;
  return a;
}

void paged_decode(const View& q, const View& k_cache, const View& v_cache, const View& table,
                  const View& lengths, const View& out, const View& lse, const std::string& dtype,
                  float scale, bool causal, int64_t window_left, int64_t window_right,
                  float softcap, int num_splits, int threads, const std::string& isa,
                  int prefetch) {
  const Common c{dtype, table, lengths, out, lse, scale, causal, num_splits, threads, prefetch};
  DecodeArgs a = common_args(c, q, k_cache);
  a.value = cached(v_cache);
  a.window_left = window_left, a.window_right = window_right, a.softcap = softcap;
  nb::gil_scoped_release release;
  decode(a, isa);
}

void tied_decode(const View& q_nope, const View& q_rope, const View& state_cache,
                 const View& rope_cache, const View& table, const View& lengths, const View& out,
                 const View& lse, const std::string& dtype, float scale, bool causal,
                 int num_splits, int threads, const std::string& isa, int prefetch) {
  const Common c{dtype, table, lengths, out, lse, scale, causal, num_splits, threads, prefetch};
  DecodeArgs a = common_args(c, q_nope, state_cache);
  a.q_rope = queries(q_rope);
  a.rope = cached(rope_cache);
  a.value = a.key;
  a.tied = true;
  nb::gil_scoped_release release;
  decode(a, isa);
}

// [B, L, heads, dim] or packed [total, heads, dim], the last dim only if `has_dim`.
Operand operand(const std::optional<View>& x, bool has_dim = true) {
  if (!x) return {};
  const int dims = int(std::get<1>(*x).size()) - (has_dim ? 1 : 0), token = dims - 2;
  return {const_cast<char*>(pointer(*x)), token > 0 ? stride(*x, 0) : 0, stride(*x, token),
          stride(*x, token + 1), has_dim ? int(size(*x, dims)) : 0};
}

using MaybeView = std::optional<View>;
// q, k, v, out, lse, cu_seqlens_q, cu_seqlens_k, subtree_end
using Tensors = std::tuple<View, View, View, View, View, MaybeView, MaybeView, MaybeView>;
// dtype, softmax_scale, causal, window_left, window_right, softcap, threads
using Options = std::tuple<std::string, float, bool, int64_t, int64_t, float, int>;

AttentionArgs attention_args(const Tensors& tensors, const Options& options) {
  const auto& [q, k, v, out, lse, cu_q, cu_k, subtree_end] = tensors;
  AttentionArgs a;
  a.q = operand(q), a.k = operand(k), a.v = operand(v), a.out = operand(out);
  a.lse = operand(lse, false);
  const int token = cu_q ? 0 : 1;
  a.batch = cu_q ? size(*cu_q, 0) - 1 : size(q, 0);
  a.query_len = size(q, token), a.key_len = size(k, token);
  a.heads = int(size(q, token + 1)), a.kv_heads = int(size(k, token + 1));
  if (cu_q) {
    a.cu_q = reinterpret_cast<const int32_t*>(pointer(*cu_q)),
    a.cu_q_stride = std::get<2>(*cu_q)[0];
    a.cu_k = reinterpret_cast<const int32_t*>(pointer(*cu_k)),
    a.cu_k_stride = std::get<2>(*cu_k)[0];
  }
  if (subtree_end) {
    const std::vector<int64_t>& strides = std::get<2>(*subtree_end);
    a.subtree_end = reinterpret_cast<const int32_t*>(pointer(*subtree_end));
    a.subtree_row = strides.size() == 2 ? strides[0] : 0, a.subtree_col = strides.back();
  }
  const auto& [dtype, scale, causal, window_left, window_right, softcap, threads] = options;
  a.dtype = dtype_of(dtype), a.scale = scale, a.causal = causal, a.softcap = softcap;
  a.window_left = window_left, a.window_right = window_right, a.threads = threads;
  return a;
}

void attention_forward_call(const Tensors& tensors, const Options& options,
                            const std::string& isa) {
  const AttentionArgs a = attention_args(tensors, options);
  nb::gil_scoped_release release;
  attention_forward(a, isa);
}

void attention_backward_call(const Tensors& tensors, const Options& options, const View& dout,
                             const MaybeView& dlse, const MaybeView& dq, const MaybeView& dk,
                             const MaybeView& dv, const std::string& isa) {
  AttentionArgs a = attention_args(tensors, options);
  a.dout = operand(dout), a.dlse = operand(dlse, false);
  a.dq = operand(dq), a.dk = operand(dk), a.dv = operand(dv);
  nb::gil_scoped_release release;
  attention_backward(a, isa);
}

}  // namespace

NB_MODULE(_core, m) {
  m.doc() = "Ridgeline's CPU kernels; called through ridgeline.ops, which checks the arguments.";
  m.def("paged_decode", &paged_decode);
  m.def("tied_decode", &tied_decode);
  m.def("attention_forward", &attention_forward_call);
  m.def("attention_backward", &attention_backward_call);
  m.def("isas", [] {
    std::vector<std::string> names;
    for (const Isa& isa : isas()) names.push_back(isa.name);
    return names;
  });
  m.def("read_all", [](uintptr_t data, int64_t bytes, int threads) {
    nb::gil_scoped_release release;
    return read_all(reinterpret_cast<const char*>(data), bytes, threads);
  });
  m.attr("compiler") = __VERSION__;
}
