"""Causal attention of whole sequences, for training and prefill."""

from collections.abc import Sequence

import torch
from torch import Tensor

from ridgeline.ops.attention import attention


def causal_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    softmax_scale: float,
    query_lens: Sequence[int] | None = None,
    subtree_end: Tensor | None = None,
) -> Tensor:
    """``q [B, L, h_q, d]``, ``k [B, L, h_kv, d]``, ``v [B, L, h_kv, d_v]`` -> ``[B, L, h_q, d_v]``.

    ``query_lens``: the real tokens of each left-padded sequence. Padding is neither read nor seen;
    its rows give 0. ``subtree_end [B, L]`` says instead who sees whom in packed rows.
    """
    length = q.shape[1]
    if query_lens is None or all(n == length for n in query_lens):
        return attention(q, k, v, causal=True, softmax_scale=softmax_scale, subtree_end=subtree_end)
    lens = torch.tensor(query_lens, dtype=torch.int32)
    real = (torch.arange(length) >= length - lens[:, None]).to(q.device)
    starts = torch.cat((lens.new_zeros(1), lens.cumsum(0, dtype=torch.int32))).to(q.device)
    packed = attention(
        q[real],
        k[real],
        v[real],
        causal=True,
        softmax_scale=softmax_scale,
        cu_seqlens_q=starts,
        cu_seqlens_k=starts,
        max_seqlen_q=max(query_lens),
        max_seqlen_k=max(query_lens),
    )
    out = packed.new_zeros(*q.shape[:3], v.shape[-1])
    out[real] = packed
    return out
