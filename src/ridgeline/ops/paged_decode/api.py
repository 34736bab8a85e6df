"""Decode attention over a paged cache that keeps K and V apart: MHA, MQA, GQA."""

import torch
from torch import Tensor

from ridgeline.ops.common import check
from ridgeline.ops.common.dispatch import Impl
from ridgeline.ops.paged_decode import op


def paged_decode(
    q: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    block_table: Tensor,
    cache_seqlens: Tensor,
    *,
    softmax_scale: float | None = None,
    causal: bool = True,
    window: tuple[int | None, int | None] | None = None,
    softcap: float = 0.0,
    k_scale: Tensor | float | None = None,
    v_scale: Tensor | float | None = None,
    num_splits: int = 0,
    return_lse: bool = False,
    impl: Impl = "auto",
) -> Tensor | tuple[Tensor, Tensor]:
    """Attention of the newest ``L_q`` tokens of each sequence over its paged K and V.

    The last of the ``L_q`` queries stands at position ``cache_seqlens - 1`` (bottom-right
    alignment), so the new tokens' K and V must already be in the cache. Split-KV decoding as in
    Flash-Decoding, with pages as in PagedAttention (Kwon et al., arXiv 2309.06180).

    Args:
        q: ``[B, L_q, h_q, d]``, L_q >= 1, last dim contiguous; bfloat16, float16, float32 or
            float64.
        k_cache: ``[num_pages, page_size, h_kv, d]``, any strides with a contiguous last dim; the
            dtype of ``q`` or float8_e4m3fn. ``h_kv`` divides ``h_q``; query head i reads kv head
            ``i // (h_q / h_kv)``.
        v_cache: ``[num_pages, page_size, h_kv, d_v]``, dtype of ``k_cache``.
        block_table: ``[B, max_pages]`` int32, the page ids of each sequence in order. Entries
            beyond a sequence's last page, or wholly behind its window, are never read.
        cache_seqlens: ``[B]`` int32, cached tokens including the new ones. A query that sees
            no token gives 0 and an lse of -inf: those of a sequence of length 0, and causal ones
            that stand before the start of a sequence shorter than ``L_q``.
        softmax_scale: factor of the scores, default ``d ** -0.5``.
        causal: a query sees no token after its own position.
        window: ``(left, right)`` tokens seen before and after the query's position, inclusive;
            ``None`` for unbounded.
        softcap: if positive, scores become ``softcap * tanh(score / softcap)``.
        k_scale, v_scale: what to multiply an FP8 cache by: a number (rounded to float32),
            float32 ``[h_kv]``, or float32 ``[num_pages, page_size, h_kv, n]`` for n blocks of the
            head dim.
        num_splits: 0 lets the scheduler balance the work over the whole batch. A positive number
            cuts each sequence by its own length alone: results are bitwise batch invariant.
        return_lse: also return the natural log-sum-exp of the scores.
        impl: "auto" or the name of an implementation; an explicit choice never falls back.

    Returns:
        ``[B, L_q, h_q, d_v]`` in the dtype of ``q``; with ``return_lse`` also ``[B, L_q, h_q]``
        in float32 (float64 for float64 queries).

    Raises:
        TypeError, ValueError: an argument has the wrong type, shape, dtype, device, stride or
            value, or ``impl`` does not support the call. Not differentiable.
    """
    for name, x in (("q", q), ("k_cache", k_cache), ("v_cache", v_cache)):
        check.tensor(name, x)
    op.check_shapes(q, k_cache, v_cache, block_table, cache_seqlens)
    if softmax_scale is None:
        softmax_scale = q.shape[-1] ** -0.5
    left, right = check.window("window", window)
    out, lse = torch.ops.ridgeline.paged_decode.default(
        q,
        k_cache,
        v_cache,
        block_table,
        cache_seqlens,
        check.finite("softmax_scale", softmax_scale),
        check.flag("causal", causal),
        left,
        right,
        check.finite("softcap", softcap, minimum=0.0),
        check.scale("k_scale", k_scale, "k_cache", k_cache),
        check.scale("v_scale", v_scale, "v_cache", v_cache),
        check.count("num_splits", num_splits),
        check.name_of_impl(impl),
    )
    return (out, lse) if check.flag("return_lse", return_lse) else out
