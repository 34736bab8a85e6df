"""Paged caches: the checks on tables, and the gather that the references use."""

from collections.abc import Sequence

import torch
from torch import Tensor

from ridgeline.ops.common import check


def check_table(block_table: Tensor, cache_seqlens: Tensor, batch: int) -> None:
    """Shapes and dtypes; what can be said without reading a value."""
    check.tensor("block_table", block_table)
    check.tensor("cache_seqlens", cache_seqlens)
    check.shape("block_table", block_table, (batch, "max_pages"))
    check.shape("cache_seqlens", cache_seqlens, (batch,))
    check.dtype("block_table", block_table, (torch.int32,))
    check.dtype("cache_seqlens", cache_seqlens, (torch.int32,))


def check_cache(name: str, cache: Tensor, q: Tensor) -> None:
    """``cache [num_pages, page_size, heads, d]`` as a paged cache read by queries ``q``."""
    check.tensor(name, cache)
    check.shape(name, cache, ("num_pages", "page_size", "heads", "d"))
    check.dtype(name, cache, (q.dtype, check.FP8))
    check.contiguous_last_dim(name, cache)
    if cache.shape[1] == 0 or cache.shape[3] == 0:
        raise ValueError(f"{name}: expected page_size >= 1 and d >= 1, got {list(cache.shape)}")


def check_values(
    block_table: Tensor,
    cache_seqlens: Tensor,
    page_size: int,
    num_pages: int,
    first_token: Sequence[int] | None = None,
) -> None:
    """Lengths within the table, and page ids in range for every page that is read.

    ``first_token``, one a sequence: the pages wholly before it are behind the window, not read.
    """
    if cache_seqlens.numel() == 0:
        return
    capacity = block_table.shape[1] * page_size
    for b, length in enumerate(cache_seqlens.tolist()):
        if not 0 <= length <= capacity:
            raise ValueError(
                f"cache_seqlens: expected 0 <= length <= {capacity} "
                f"({block_table.shape[1]} pages of {page_size}), got {length} for sequence {b}"
            )
        start = 0 if first_token is None else first_token[b] // page_size
        used = block_table[b, start : -(-length // page_size)]
        bad = (used < 0) | (used >= num_pages)
        if bad.any():
            page = int(used[bad][0])
            raise ValueError(
                f"block_table: expected page ids in [0, {num_pages}), got {page} for sequence {b}"
            )


def check_scale_values(name: str, scale: Tensor | None) -> None:
    if scale is not None and scale.dim() < 2 and not scale.isfinite().all():
        raise ValueError(f"{name}: expected finite scales, got {scale.tolist()}")


def gather(cache: Tensor, pages: Tensor, start: int, stop: int) -> Tensor:
    """Tokens ``start:stop`` of one sequence, ``[stop - start, ...]``, from its row of pages."""
    page_size = cache.shape[1]
    tokens = torch.arange(start, stop, device=cache.device)
    return cache[pages[tokens // page_size].long(), tokens % page_size]


def dequantize(
    cache: Tensor,
    scale: Tensor | None,
    scale_name: str,
    pages: Tensor,
    start: int,
    stop: int,
    dtype: torch.dtype,
) -> Tensor:
    """``gather`` of a cache ``[..., heads, d]`` in ``dtype``, its FP8 scales applied."""
    x = gather(cache, pages, start, stop).to(dtype)
    if scale is None:
        return x
    if scale.dim() < 2:
        return x * scale.to(dtype).reshape(-1, 1)
    s = gather(scale, pages, start, stop).to(dtype)
    if not s.isfinite().all():
        raise ValueError(
            f"{scale_name}: expected finite scales for every token in use, got NaN or inf"
        )
    return x * s.repeat_interleave(x.shape[-1] // s.shape[-1], dim=-1)
