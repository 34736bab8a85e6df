"""Which tokens a query row sees."""

import torch
from torch import Tensor


def visible(
    length: int, query_len: int, start: int, causal: bool, window_left: int, window_right: int
) -> Tensor:
    """``[query_len, length - start]`` bool, bottom-right aligned; -1 is an unbounded side.

    Query i stands at position ``length - query_len + i`` of a sequence of ``length`` tokens.
    """
    position = torch.arange(length - query_len, length)[:, None]
    token = torch.arange(start, length)[None, :]
    mask = torch.ones(query_len, max(length - start, 0), dtype=torch.bool)
    if causal:
        mask &= token <= position
    if window_left >= 0:
        mask &= token >= position - window_left
    if window_right >= 0:
        mask &= token <= position + window_right
    return mask


def first_visible(length: int, query_len: int, window_left: int) -> int:
    """The first token that any query of the step sees; pages before it are never read."""
    return 0 if window_left < 0 else max(0, length - query_len - window_left)


def in_subtree(subtree_end: Tensor, query_len: int) -> Tensor:
    """``[query_len, length]`` bool: query position p and key j with ``j <= p < subtree_end[j]``."""
    length = subtree_end.shape[0]
    position = torch.arange(length - query_len, length, device=subtree_end.device)[:, None]
    key = torch.arange(length, device=subtree_end.device)[None, :]
    return (key <= position) & (position < subtree_end)
