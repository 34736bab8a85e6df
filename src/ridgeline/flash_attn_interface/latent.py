"""``tied_decode`` where every state head has a RoPE key of its own."""

import torch
from torch import Tensor

from ridgeline.ops.tied_decode import tied_decode


def tied_decode_by_head(
    q_nope: Tensor,
    q_rope: Tensor,
    state_cache: Tensor,
    rope_cache: Tensor,
    block_table: Tensor,
    cache_seqlens: Tensor,
    *,
    softmax_scale: float,
    causal: bool,
    num_splits: int,
) -> tuple[Tensor, Tensor]:
    """``tied_decode`` with ``rope_cache [num_pages, page_size, h_s, d_r]``, one call a state head.

    Returns ``out [B, L_q, h_q, d_s]`` and ``lse [B, L_q, h_q]``.
    """
    heads = state_cache.shape[2]
    group = q_nope.shape[2] // heads
    parts = []
    for h in range(heads):
        rows = slice(h * group, (h + 1) * group)
        parts.append(
            tied_decode(
                q_nope[:, :, rows],
                q_rope[:, :, rows],
                state_cache[:, :, h : h + 1],
                rope_cache[:, :, h],
                block_table,
                cache_seqlens,
                softmax_scale=softmax_scale,
                causal=causal,
                num_splits=num_splits,
                return_lse=True,
            )
        )
    if heads == 1:
        return parts[0]
    outs, lses = zip(*parts, strict=True)
    return torch.cat(outs, dim=2), torch.cat(lses, dim=2)
