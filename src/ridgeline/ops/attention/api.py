"""Attention with K and V apart, for training and prefill: MHA, MQA, GQA, expanded MLA and GLA."""

import torch
from torch import Tensor

from ridgeline.ops.attention import fp8, op
from ridgeline.ops.common import check
from ridgeline.ops.common.dispatch import Impl


def attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    causal: bool = False,
    softmax_scale: float | None = None,
    window: tuple[int | None, int | None] | None = (None, None),
    softcap: float = 0.0,
    cu_seqlens_q: Tensor | None = None,
    cu_seqlens_k: Tensor | None = None,
    max_seqlen_q: int | None = None,
    max_seqlen_k: int | None = None,
    subtree_end: Tensor | None = None,
    q_scale: Tensor | float | None = None,
    k_scale: Tensor | float | None = None,
    v_scale: Tensor | float | None = None,
    deterministic: bool = False,
    return_lse: bool = False,
    impl: Impl = "auto",
) -> Tensor | tuple[Tensor, Tensor]:
    """Exact attention of a batch of sequences, or of packed sequences; differentiable.

    Query i of a sequence with ``L_q`` queries and ``L_k`` keys stands at position
    ``i + L_k - L_q`` (bottom-right alignment), so a chunk of a prefill needs no other option than
    ``causal``. The method is FlashAttention's (Dao et al., arXiv 2205.14135); the mathematics is
    in the operation's README.

    Args:
        q: ``[B, L_q, h_q, d]``, or packed ``[total_q, h_q, d]``; any strides with a contiguous
            last dim; bfloat16, float16, float32, float64, or float8_e4m3fn (forward only).
        k: ``[B, L_k, h_kv, d]`` or ``[total_k, h_kv, d]``, dtype of ``q``. ``h_kv`` divides
            ``h_q``; query head i reads kv head ``i // (h_q / h_kv)``.
        v: ``[B, L_k, h_kv, d_v]`` or ``[total_k, h_kv, d_v]``, dtype of ``q``.
        causal: a query sees no key after its own position.
        softmax_scale: factor of the scores, default ``d ** -0.5``.
        window: ``(left, right)`` keys seen before and after the query's position, inclusive;
            ``None`` for unbounded. Combines with ``causal`` and ``subtree_end``.
        softcap: if positive, scores become ``softcap * tanh(score / softcap)``.
        cu_seqlens_q, cu_seqlens_k: ``[B + 1]`` int32, where each packed sequence starts, and the
            total. Both or none.
        max_seqlen_q, max_seqlen_k: hints, at least the length of the longest sequence.
        subtree_end: ``[B, L_k]`` or ``[total_k]`` int32, indices within the sequence: a query at
            position p sees key j if and only if ``j <= p < subtree_end[j]``. It describes packed
            documents, shared prefixes and trees (see ``ridgeline.subtree_end``).
        q_scale, k_scale, v_scale: what to multiply FP8 inputs by, default 1: a number, or float32
            ``[h]``, ``[B, h]``, or (not packed) ``[B, n_blocks, h]`` with h the heads of that
            input, where a block is the power of two n of rows with ``ceil(L / n) == n_blocks``.
        deterministic: ask for gradients that are the same bits in every run. Only the gradient of
            ``q`` by "hopper" is not unless asked: it then takes 7 products a tile instead of 5.
            ``torch.use_deterministic_algorithms`` asks too.
        return_lse: also return the natural log-sum-exp of the scores; differentiable too.
        impl: "auto" or the name of an implementation; an explicit choice never falls back.

    Returns:
        ``[B, L_q, h_q, d_v]`` or ``[total_q, h_q, d_v]`` in the dtype of ``q`` (bfloat16 for FP8);
        with ``return_lse`` also ``[B, L_q, h_q]`` or ``[total_q, h_q]`` in float32 (float64 for
        float64 queries). A query that sees no key gives 0 and -inf.

    Raises:
        TypeError, ValueError: an argument has the wrong type, shape, dtype, device, stride or
            value, or ``impl`` does not support the call.
    """
    for name, x in (("q", q), ("k", k), ("v", v)):
        check.tensor(name, x)
    if subtree_end is not None:
        check.tensor("subtree_end", subtree_end)
    op.check_shapes(q, k, v, cu_seqlens_q, cu_seqlens_k, subtree_end)
    batch = q.shape[0] if cu_seqlens_q is None else cu_seqlens_q.shape[0] - 1
    if softmax_scale is None:
        softmax_scale = q.shape[-1] ** -0.5
    left, right = check.window("window", window)
    out, lse = torch.ops.ridgeline.attention.default(
        q,
        k,
        v,
        cu_seqlens_q,
        cu_seqlens_k,
        None if max_seqlen_q is None else check.count("max_seqlen_q", max_seqlen_q),
        None if max_seqlen_k is None else check.count("max_seqlen_k", max_seqlen_k),
        subtree_end,
        fp8.check_scale("q_scale", q_scale, q, batch),
        fp8.check_scale("k_scale", k_scale, k, batch),
        fp8.check_scale("v_scale", v_scale, v, batch),
        check.finite("softmax_scale", softmax_scale),
        check.flag("causal", causal),
        left,
        right,
        check.finite("softcap", softcap, minimum=0.0),
        check.flag("deterministic", deterministic),
        check.name_of_impl(impl),
    )
    return (out, lse) if check.flag("return_lse", return_lse) else out
