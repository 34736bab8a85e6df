"""Causal attention of whole sequences, for training and prefill, by torch's own kernels."""

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor


def causal_attention(
    q: Tensor, k: Tensor, v: Tensor, softmax_scale: float, query_lens: Sequence[int] | None = None
) -> Tensor:
    """``q [B, L, h_q, d]``, ``k [B, L, h_kv, d]``, ``v [B, L, h_kv, d_v]`` -> ``[B, L, h_q, d_v]``.

    ``query_lens``: the real tokens of each left-padded sequence. Padding is neither read nor seen;
    its rows give 0.
    """
    length = q.shape[1]
    if query_lens is None or all(n == length for n in query_lens):
        return _sdpa(q, k, v, softmax_scale)
    out = q.new_zeros(*q.shape[:3], v.shape[-1])
    for b, n in enumerate(query_lens):
        real = (slice(b, b + 1), slice(length - n, length))
        out[real] = _sdpa(q[real], k[real], v[real], softmax_scale)
    return out


def _sdpa(q: Tensor, k: Tensor, v: Tensor, softmax_scale: float) -> Tensor:
    value_dim = v.shape[-1]
    # torch's fused CPU kernel takes one width for keys and values, and as many heads as queries.
    if value_dim < q.shape[-1]:
        v = F.pad(v, (0, q.shape[-1] - value_dim))
    groups = q.shape[2] // k.shape[2]
    q, k, v = (x.transpose(1, 2) for x in (q, _repeat(k, groups), _repeat(v, groups)))
    out = F.scaled_dot_product_attention(q, k, v, is_causal=True, scale=softmax_scale)
    return out.transpose(1, 2)[..., :value_dim]


def _repeat(x: Tensor, groups: int) -> Tensor:
    """``[B, L, h, d]`` -> ``[B, L, h * groups, d]``, each head ``groups`` times in a row."""
    if groups == 1:
        return x
    return x.unsqueeze(3).expand(-1, -1, -1, groups, -1).flatten(2, 3)
