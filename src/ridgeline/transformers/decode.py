"""Decode steps over the caches of transformers, read where they lie."""

import torch
from torch import Tensor

from ridgeline.ops.paged_decode import paged_decode


def decode(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    span: Tensor | None,
    scale: float,
    window: int | None,
    softcap: float,
) -> Tensor:
    """Attention of new tokens over a cache that holds them already.

    Args:
        query: ``[B, L_q, h_q, d]``, the last ``L_q`` tokens of each row.
        key, value: ``[B, h_kv, S, d]`` and ``[B, h_kv, S, d_v]``.
        span: ``[B, 2, 1, 1]`` int32, first key and end of each row; ``None``: all S.
        window: keys that a query sees, itself included; ``None``: all.

    Returns:
        ``[B, L_q, h_q, d_v]``.
    """
    pages_k, pages_v, table, lengths = pages(key, value, span)
    return paged_decode(
        query,
        pages_k,
        pages_v,
        table,
        lengths,
        softmax_scale=scale,
        window=None if window is None else (window - 1, None),
        softcap=softcap,
    )


def pages(first: Tensor, second: Tensor, span: Tensor | None) -> tuple[Tensor, ...]:
    """Two caches ``[B, h, S, d]`` as pages, with their block table and lengths.

    A row is one page of S tokens. Where rows begin at tokens of their own (left padding), every
    token is a page, so that no key need move.
    """
    batch, _, length, _ = first.shape
    device = first.device
    if span is None:
        table = torch.arange(batch, dtype=torch.int32, device=device)[:, None]
        lengths = torch.full((batch,), length, dtype=torch.int32, device=device)
        return first.transpose(1, 2), second.transpose(1, 2), table, lengths
    if _tokens_a_row(first) is None or _tokens_a_row(first) != _tokens_a_row(second):
        first, second = first.contiguous(), second.contiguous()
    begin, end = span[:, :, 0, 0].unbind(1)
    row = torch.arange(batch, dtype=torch.int32, device=device) * _tokens_a_row(first)
    token = torch.arange(length, dtype=torch.int32, device=device)
    table = (row + begin)[:, None] + token
    return _token_pages(first), _token_pages(second), table, end - begin


def _tokens_a_row(cache: Tensor) -> int | None:
    """How many token strides lie between two rows; ``None`` where they are no multiple."""
    row, _, token, _ = cache.stride()
    return None if token == 0 or row % token else row // token


def _token_pages(cache: Tensor) -> Tensor:
    """``[B, h, S, d]`` as ``[pages, 1, h, d]``: page ``b * tokens_a_row + s`` is token s of row b.

    Pages between the rows overlap tokens of other heads; no table names them.
    """
    batch, heads, length, dim = cache.shape
    _, head, token, last = cache.stride()
    count = (batch - 1) * _tokens_a_row(cache) + length
    return cache.as_strided((count, 1, heads, dim), (token, token, head, last))
