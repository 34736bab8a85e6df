"""What ``attention`` computes, in eager PyTorch, and its gradient; float64 computes in float64.

One sequence after another, with the scores of all its heads at once. In the backward, with
``p`` the probabilities, ``dp = dout v^T`` and ``t = tanh(score / softcap)``:

- ``dscore = p (dp - sum_j p dp + dlse)``, times ``1 - t^2`` under a soft cap;
- ``dq = scale * dscore k``, ``dk = scale * dscore^T q``, ``dv = p^T dout``.
"""

from collections.abc import Iterator

import torch
from torch import Tensor

from ridgeline.ops.common import masks
from ridgeline.ops.common.softmax import masked_softmax

Index = int | slice


def forward(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cu_seqlens_q: Tensor | None,
    cu_seqlens_k: Tensor | None,
    subtree_end: Tensor | None,
    softmax_scale: float,
    causal: bool,
    window_left: int,
    window_right: int,
    softcap: float,
    out: Tensor,
    lse: Tensor,
) -> None:
    """Fills ``out [..., h_q, d_v]`` and ``lse [..., h_q]``."""
    dtype = lse.dtype
    for rows, keys in sequences(q, cu_seqlens_q, cu_seqlens_k):
        ends = None if subtree_end is None else subtree_end[keys]
        queries, key, value = _grouped(q[rows], k.shape[-2], dtype), k[keys].to(dtype), v[keys]
        scores, _ = _scores(queries, key, softmax_scale, softcap)
        mask = visible(queries, key, ends, causal, window_left, window_right)
        p, row_lse = masked_softmax(scores, mask)
        out[rows] = torch.einsum("hgij,jhd->ihgd", p, value.to(dtype)).flatten(1, 2)
        lse[rows] = row_lse.flatten(0, 1).T


def backward(
    dout: Tensor,
    dlse: Tensor | None,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cu_seqlens_q: Tensor | None,
    cu_seqlens_k: Tensor | None,
    subtree_end: Tensor | None,
    softmax_scale: float,
    causal: bool,
    window_left: int,
    window_right: int,
    softcap: float,
    dq: Tensor | None,
    dk: Tensor | None,
    dv: Tensor | None,
) -> None:
    """Fills those of ``dq``, ``dk``, ``dv`` that are not ``None``."""
    dtype, kv_heads = _accumulator(q), k.shape[-2]
    for rows, keys in sequences(q, cu_seqlens_q, cu_seqlens_k):
        ends = None if subtree_end is None else subtree_end[keys]
        queries, key, value = _grouped(q[rows], kv_heads, dtype), k[keys].to(dtype), v[keys]
        scores, slope = _scores(queries, key, softmax_scale, softcap)
        mask = visible(queries, key, ends, causal, window_left, window_right)
        p, _ = masked_softmax(scores, mask)
        grad = _grouped(dout[rows], kv_heads, dtype)
        if dv is not None:
            dv[keys] = torch.einsum("hgij,ihgd->jhd", p, grad)
        if dq is None and dk is None:
            continue
        dp = torch.einsum("ihgd,jhd->hgij", grad, value.to(dtype))
        dp = dp - (p * dp).sum(-1, keepdim=True)
        if dlse is not None:
            row = dlse[rows].to(dtype).T.unflatten(0, (kv_heads, -1))[..., None]
            dp = dp + row.masked_fill(~mask.any(-1, keepdim=True), 0.0)
        ds = p * dp * slope * softmax_scale
        if dq is not None:
            dq[rows] = torch.einsum("hgij,jhd->ihgd", ds, key).flatten(1, 2)
        if dk is not None:
            dk[keys] = torch.einsum("hgij,ihgd->jhd", ds, queries)


def sequences(
    q: Tensor, cu_seqlens_q: Tensor | None, cu_seqlens_k: Tensor | None
) -> Iterator[tuple[Index, Index]]:
    """What to index queries and keys with, for each sequence."""
    if cu_seqlens_q is None:
        yield from ((b, b) for b in range(q.shape[0]))
        return
    starts_q, starts_k = cu_seqlens_q.tolist(), cu_seqlens_k.tolist()
    for b in range(len(starts_q) - 1):
        yield slice(starts_q[b], starts_q[b + 1]), slice(starts_k[b], starts_k[b + 1])


def visible(
    q: Tensor,
    k: Tensor,
    subtree_end: Tensor | None,
    causal: bool,
    window_left: int,
    window_right: int,
) -> Tensor:
    """Which keys of one sequence its queries see, ``[L_q, L_k]`` bool."""
    query_len, length = q.shape[0], k.shape[0]
    mask = masks.visible(length, query_len, 0, causal, window_left, window_right).to(q.device)
    if subtree_end is not None:
        mask &= masks.in_subtree(subtree_end, query_len)
    return mask


def _scores(q: Tensor, k: Tensor, scale: float, softcap: float) -> tuple[Tensor, Tensor | float]:
    """Scores ``[h_kv, g, L_q, L_k]``, and the slope of the soft cap there."""
    scores = torch.einsum("ihgd,jhd->hgij", q, k) * scale
    if softcap == 0:
        return scores, 1.0
    t = torch.tanh(scores / softcap)
    return softcap * t, 1 - t * t


def _grouped(x: Tensor, kv_heads: int, dtype: torch.dtype) -> Tensor:
    """``[L, h_q, d]`` as ``[L, h_kv, g, d]``."""
    return x.to(dtype).unflatten(1, (kv_heads, x.shape[1] // kv_heads))


def _accumulator(q: Tensor) -> torch.dtype:
    return torch.float64 if q.dtype == torch.float64 else torch.float32
