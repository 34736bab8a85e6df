"""Decode attention over one cached state that is key and value at once: GTA, MLA, GLA."""

import torch
from torch import Tensor

from ridgeline.ops.common import check
from ridgeline.ops.common.dispatch import Impl
from ridgeline.ops.tied_decode import op


def tied_decode(
    q_nope: Tensor,
    q_rope: Tensor,
    state_cache: Tensor,
    rope_cache: Tensor,
    block_table: Tensor,
    cache_seqlens: Tensor,
    *,
    softmax_scale: float,
    causal: bool = True,
    state_scale: Tensor | float | None = None,
    num_splits: int = 0,
    return_lse: bool = False,
    impl: Impl = "auto",
) -> Tensor | tuple[Tensor, Tensor]:
    """Attention of the newest ``L_q`` tokens of each sequence over its paged, tied states.

    ``score = softmax_scale * (q_nope · state[:d_n] + q_rope · rope)``, and the output is the
    softmax-weighted sum of the whole states. Grouped-Tied Attention has ``d_n = d_s / 2``; MLA
    (``h_s = 1``) and Grouped Latent Attention (``h_s > 1``), absorbed, have ``d_n = d_s``
    (Zadouri, Strauss, Dao, arXiv 2505.21487; DeepSeek-V2, arXiv 2405.04434). The RoPE key of a
    token is stored once for all its heads.

    Args:
        q_nope: ``[B, L_q, h_q, d_n]``, d_n <= d_s, L_q >= 1, last dim contiguous; bfloat16,
            float16, float32 or float64.
        q_rope: ``[B, L_q, h_q, d_r]``, d_r >= 0, rotated.
        state_cache: ``[num_pages, page_size, h_s, d_s]``, any strides with a contiguous last dim;
            the dtype of ``q_nope`` or float8_e4m3fn. ``h_s`` divides ``h_q``; query head i reads
            state ``i // (h_q / h_s)``.
        rope_cache: ``[num_pages, page_size, d_r]``, rotated keys in the dtype of ``q_nope``; may
            be a strided view of the same record as ``state_cache``.
        block_table: ``[B, max_pages]`` int32, the page ids of each sequence in order. Entries
            beyond a sequence's last page are never read.
        cache_seqlens: ``[B]`` int32, cached tokens including the new ones. A query that sees
            no token gives 0 and an lse of -inf: those of a sequence of length 0, and causal ones
            that stand before the start of a sequence shorter than ``L_q``.
        softmax_scale: factor of the scores. No default: absorbed widths do not tell it (MLA and
            GLA keep ``(d_h + d_r) ** -0.5`` of their expanded form).
        causal: a query sees no token after its own position.
        state_scale: what to multiply an FP8 state by: a number (rounded to float32),
            float32 ``[h_s]``, or float32 ``[num_pages, page_size, h_s, n]`` for n blocks of the
            state.
        num_splits: 0 lets the scheduler balance the work over the whole batch. A positive number
            cuts each sequence by its own length alone: results are bitwise batch invariant.
        return_lse: also return the natural log-sum-exp of the scores.
        impl: "auto" or the name of an implementation; an explicit choice never falls back.

    Returns:
        ``[B, L_q, h_q, d_s]`` in the dtype of ``q_nope``; with ``return_lse`` also
        ``[B, L_q, h_q]`` in float32 (float64 for float64 queries).

    Raises:
        TypeError, ValueError: an argument has the wrong type, shape, dtype, device, stride or
            value, or ``impl`` does not support the call. Not differentiable.
    """
    for name, x in (
        ("q_nope", q_nope),
        ("q_rope", q_rope),
        ("state_cache", state_cache),
        ("rope_cache", rope_cache),
    ):
        check.tensor(name, x)
    op.check_shapes(q_nope, q_rope, state_cache, rope_cache, block_table, cache_seqlens)
    out, lse = torch.ops.ridgeline.tied_decode.default(
        q_nope,
        q_rope,
        state_cache,
        rope_cache,
        block_table,
        cache_seqlens,
        check.finite("softmax_scale", softmax_scale),
        check.flag("causal", causal),
        check.scale("state_scale", state_scale, "state_cache", state_cache),
        check.count("num_splits", num_splits),
        check.name_of_impl(impl),
    )
    return (out, lse) if check.flag("return_lse", return_lse) else out
