"""What ``tied_decode`` computes, in eager PyTorch; float64 queries compute in float64."""

import torch
from torch import Tensor

from ridgeline.ops.common import masks, paging
from ridgeline.ops.common.softmax import masked_softmax


def tied_decode(
    q_nope: Tensor,
    q_rope: Tensor,
    state_cache: Tensor,
    rope_cache: Tensor,
    block_table: Tensor,
    cache_seqlens: Tensor,
    softmax_scale: float,
    causal: bool,
    state_scale: Tensor | None,
    out: Tensor,
    lse: Tensor,
) -> None:
    """Fills ``out [B, L_q, h_q, d_s]`` and ``lse [B, L_q, h_q]``, one sequence after another."""
    _, query_len, heads, nope_dim = q_nope.shape
    num_pages, page_size, state_heads, _ = state_cache.shape
    paging.check_values(block_table, cache_seqlens, page_size, num_pages)
    paging.check_scale_values("state_scale", state_scale)
    dtype, groups = lse.dtype, (state_heads, heads // state_heads)
    for b, length in enumerate(cache_seqlens.tolist()):
        pages = block_table[b]
        state = paging.dequantize(state_cache, state_scale, "state_scale", pages, 0, length, dtype)
        rope = paging.gather(rope_cache, pages, 0, length).to(dtype)
        nope_rows = q_nope[b].to(dtype).unflatten(1, groups)
        rope_rows = q_rope[b].to(dtype).unflatten(1, groups)
        scores = torch.einsum("ihgd,nhd->ihgn", nope_rows, state[..., :nope_dim])
        scores = (scores + torch.einsum("ihgd,nd->ihgn", rope_rows, rope)) * softmax_scale
        mask = masks.visible(length, query_len, 0, causal, -1, -1)
        p, row_lse = masked_softmax(scores, mask.to(q_nope.device)[:, None, None])
        out[b] = torch.einsum("ihgn,nhd->ihgd", p, state).flatten(1, 2)
        lse[b] = row_lse.flatten(1, 2)
