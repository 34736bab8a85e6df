"""Attention masks of padded batches: how many tokens of a row are real, and where they stand."""

from collections.abc import Sequence

import torch
from torch import Tensor


def real_lengths(mask: Tensor | None, batch: int, columns: int, cached: bool) -> list[int] | None:
    """Real tokens of each row among the last ``columns``; ``None`` where none needs care.

    Args:
        mask: attention mask ``[B, >= columns]``, nonzero for real tokens. Padding stands left of
            them. It may stand right of them, where causal attention never sees it, unless the
            columns are to be ``cached``.

    Raises:
        ValueError: the mask has another shape, or padding stands where it must not.
    """
    if mask is None:
        return None
    if mask.dim() != 2 or mask.shape[0] != batch or mask.shape[1] < columns:
        raise ValueError(
            f"attention_mask: expected shape [{batch}, n] with n >= {columns}, "
            f"got {list(mask.shape)}"
        )
    real = mask[:, mask.shape[1] - columns :] != 0
    if real.all():
        return None
    padded_left = not (real[:, :-1] & ~real[:, 1:]).any()
    padded_right = not (~real[:, :-1] & real[:, 1:]).any()
    if padded_right and not padded_left and not cached:
        return None
    if not padded_left:
        where = "" if not cached else " of a forward with a cache"
        raise ValueError(f"attention_mask: expected padding on the left only{where}")
    return real.sum(dim=1).tolist()


def real_tokens(
    mask: Tensor | None, lengths: Sequence[int] | None, columns: int, device: torch.device
) -> Tensor | None:
    """``[B, columns]`` bool, False for padding; ``None`` where there is none.

    Args:
        mask: as of ``real_lengths``.
        lengths: real tokens of each row where they were moved to its front (``to_left``).
    """
    if lengths is not None:
        return torch.arange(columns, device=device) < torch.tensor(lengths, device=device)[:, None]
    if mask is None:
        return None
    real = mask[:, mask.shape[1] - columns :] != 0
    return None if real.all() else real


def positions(
    start: Sequence[int], lengths: Sequence[int] | None, columns: int, device: torch.device
) -> Tensor:
    """``[B, columns]``: position of each column's token where row b has ``start[b]`` before it.

    Of row b the last ``lengths[b]`` columns are real (all of them if ``None``); the positions of
    padding mean nothing.
    """
    lengths = [columns] * len(start) if lengths is None else lengths
    first = [s + n - columns for s, n in zip(start, lengths, strict=True)]
    column = torch.arange(columns, device=device)
    return column + torch.tensor(first, device=device)[:, None]


def to_left(x: Tensor, lengths: Sequence[int]) -> Tensor:
    """``x [B, L, ...]`` with the last ``lengths[b]`` entries of row b moved to its front.

    With its padding on the right, a row needs no mask under causal attention.
    """
    return _roll(x, [n - x.shape[1] for n in lengths])


def to_right(x: Tensor, lengths: Sequence[int]) -> Tensor:
    """The inverse of ``to_left``."""
    return _roll(x, [x.shape[1] - n for n in lengths])


def _roll(x: Tensor, shifts: Sequence[int]) -> Tensor:
    column = torch.arange(x.shape[1], device=x.device)
    source = (column - torch.tensor(shifts, device=x.device)[:, None]) % x.shape[1]
    return x[torch.arange(x.shape[0], device=x.device)[:, None], source]
