"""What ``paged_decode`` computes, in eager PyTorch; float64 queries compute in float64."""

import torch
from torch import Tensor

from ridgeline.ops.common import masks, paging
from ridgeline.ops.common.softmax import masked_softmax


def paged_decode(
    q: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    block_table: Tensor,
    cache_seqlens: Tensor,
    softmax_scale: float,
    causal: bool,
    window_left: int,
    window_right: int,
    softcap: float,
    k_scale: Tensor | None,
    v_scale: Tensor | None,
    out: Tensor,
    lse: Tensor,
) -> None:
    """Fills ``out [B, L_q, h_q, d_v]`` and ``lse [B, L_q, h_q]``, one sequence after another."""
    batch, query_len, heads, _ = q.shape
    num_pages, page_size, kv_heads, _ = k_cache.shape
    lengths = cache_seqlens.tolist()
    first = [masks.first_visible(n, query_len, window_left) for n in lengths]
    paging.check_values(block_table, cache_seqlens, page_size, num_pages, first)
    paging.check_scale_values("k_scale", k_scale)
    paging.check_scale_values("v_scale", v_scale)
    dtype = lse.dtype
    for b in range(batch):
        start, stop = first[b], lengths[b]
        pages = block_table[b]
        k = paging.dequantize(k_cache, k_scale, "k_scale", pages, start, stop, dtype)
        v = paging.dequantize(v_cache, v_scale, "v_scale", pages, start, stop, dtype)
        rows = q[b].to(dtype).unflatten(1, (kv_heads, heads // kv_heads))
        scores = torch.einsum("ihgd,nhd->ihgn", rows, k) * softmax_scale
        if softcap > 0:
            scores = softcap * torch.tanh(scores / softcap)
        mask = masks.visible(stop, query_len, start, causal, window_left, window_right)
        p, row_lse = masked_softmax(scores, mask.to(q.device)[:, None, None])
        out[b] = torch.einsum("ihgn,nhd->ihgd", p, v).flatten(1, 2)
        lse[b] = row_lse.flatten(1, 2)
