"""A cache, contiguous or paged, and the sequences of a call in it.

A contiguous cache ``[B, L, h_kv, d]`` is a paged cache whose pages are its rows: nothing is copied.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from ridgeline.ops.common import check


@dataclass(frozen=True)
class CachedSequences:
    """Sequence b holds tokens ``leftpad[b]`` up to ``length[b]`` of its pages ``table[b]``."""

    k_cache: Tensor  # [num_pages, page_size, h_kv, d]
    v_cache: Tensor  # [num_pages, page_size, h_kv, d_v]
    table: Tensor  # [B, max_pages] int32
    length: Tensor  # [B] int32
    leftpad: Tensor | None  # [B] int32

    @property
    def page_size(self) -> int:
        return self.k_cache.shape[1]

    def pages_and_offsets(self, sequence: Tensor, token: Tensor) -> tuple[Tensor, Tensor]:
        """Where tokens lie in the caches; both int64, broadcast."""
        return self.table[sequence, token // self.page_size].long(), token % self.page_size

    def first_read(self, query_lengths: Tensor, left: int | None) -> Tensor:
        """``[B]`` int64: the first token that a query sees, with ``left`` that of the window."""
        start = self.length.new_zeros(()) if self.leftpad is None else self.leftpad
        start = start.long().expand(self.length.shape[0])
        if left is None:
            return start
        return torch.maximum(start, self.length.long() - query_lengths - left)

    def without_leftpad(self) -> "CachedSequences | None":
        """The same sequences from token 0 on, or ``None`` if strides do not allow it.

        Tokens become pages of one, so that a sequence may start anywhere. Reading pages of one took
        as long as pages of 64 (bfloat16, 8 kv heads of 128, 1 to 32 queries, AVX2).
        """
        if self.leftpad is None:
            return self
        k, v = _tokens(self.k_cache), _tokens(self.v_cache)
        if k is None or v is None or k[1] != v[1]:
            return None
        sequence = torch.arange(self.length.shape[0], device=self.table.device)[:, None]
        token = torch.arange(self.table.shape[1] * self.page_size, device=self.table.device)
        token = (token + self.leftpad[:, None]).clamp(max=max(token.numel() - 1, 0))
        page, offset = self.pages_and_offsets(sequence, token)
        table = (page * k[1] + offset).clamp(0, k[0].shape[0] - 1).int()
        return CachedSequences(k[0], v[0], table, self.length - self.leftpad, None)


def _tokens(cache: Tensor) -> tuple[Tensor, int] | None:
    """``cache`` as pages of one token, and how many of them lie from one page to the next."""
    num_pages, page_size = cache.shape[:2]
    page_stride, stride = cache.stride()[:2]
    if page_size == 1:
        return cache, 1
    if num_pages == 1:
        return cache.transpose(0, 1), page_size
    if num_pages == 0 or stride == 0 or page_stride % stride:
        return None
    ratio = page_stride // stride
    shape = ((num_pages - 1) * ratio + page_size, 1, *cache.shape[2:])
    if shape[0] > 2**31 - 1:  # ids are int32
        return None
    return cache.as_strided(shape, (stride, stride, *cache.stride()[2:])), ratio


def check_caches(k_cache: Tensor, v_cache: Tensor, q: Tensor, written: bool) -> None:
    """Shapes, dtypes, strides; and that they can be written, where they are to be."""
    check.tensor("k_cache", k_cache)
    check.tensor("v_cache", v_cache)
    check.shape("k_cache", k_cache, ("rows", "tokens", "h_kv", q.shape[-1]))
    check.shape("v_cache", v_cache, (*k_cache.shape[:3], "d_v"))
    check.divides("k_cache.shape[2]", k_cache.shape[2], f"q.shape[{q.dim() - 2}]", q.shape[-2])
    check.same_device(q=q, k_cache=k_cache, v_cache=v_cache)
    for name, x in (("k_cache", k_cache), ("v_cache", v_cache)):
        check.dtype(name, x, (q.dtype,))
        check.contiguous_last_dim(name, x)
        if x.shape[1] == 0 or x.shape[3] == 0:
            raise ValueError(f"{name}: expected a page of one token at least, got {list(x.shape)}")
        if not written:
            continue
        if any(n > 1 and stride == 0 for n, stride in zip(x.shape, x.stride(), strict=True)):
            raise ValueError(f"{name}: expected memory of its own for each token, got an expanded")
        if x.is_inference() and not torch.is_inference_mode_enabled():
            raise ValueError(f"{name}: expected a tensor that can be written, got an inference one")


def make_table(
    k_cache: Tensor, page_table: Tensor | None, cache_batch_idx: Tensor | None, batch: int
) -> Tensor:
    """``[B, max_pages]`` int32; ``cache_batch_idx`` picks rows of a cache, or of a table."""
    if page_table is None:
        rows = torch.arange(k_cache.shape[0], dtype=torch.int32, device=k_cache.device)[:, None]
        owner = "k_cache"
    else:
        check.tensor("page_table", page_table)
        check.shape("page_table", page_table, ("B", "max_pages"))
        check.dtype("page_table", page_table, (torch.int32,))
        check.same_device(k_cache=k_cache, page_table=page_table)
        rows, owner = page_table, "page_table"
    if cache_batch_idx is None:
        if rows.shape[0] != batch:
            raise ValueError(f"{owner}: expected {batch} rows as q, got {rows.shape[0]}")
        return rows
    per_sequence("cache_batch_idx", cache_batch_idx, k_cache, batch)
    if cache_batch_idx.device.type == "cpu":
        bad = (cache_batch_idx < 0) | (cache_batch_idx >= rows.shape[0])
        if bad.any():
            raise ValueError(
                f"cache_batch_idx: expected rows of {owner} in [0, {rows.shape[0]}), "
                f"got {int(cache_batch_idx[bad][0])}"
            )
    return rows[cache_batch_idx.long()]


def per_sequence(name: str, x: Tensor, like: Tensor, batch: int) -> Tensor:
    """``x`` as ``[B]`` int32 on the device of the cache ``like``."""
    check.tensor(name, x)
    check.shape(name, x, (batch,))
    check.dtype(name, x, (torch.int32,))
    check.same_device(k_cache=like, **{name: x})
    return x


def check_values(
    sequences: CachedSequences,
    before: Tensor,
    new_lengths: Tensor | None,
    read: Callable[[], Tensor],
) -> None:
    """Lengths, left pads and page ids, where they are on the host; ``before`` appending.

    ``read()`` is ``first_read``. Called once a layer, so it first asks what costs least.
    """
    if before.device.type != "cpu" or before.numel() == 0:
        return
    page_size, max_pages = sequences.page_size, sequences.table.shape[1]
    capacity, leftpad = max_pages * page_size, sequences.leftpad
    new = [0] * len(before) if new_lengths is None else new_lengths.tolist()
    for b, (length, more) in enumerate(zip(before.tolist(), new, strict=True)):
        if not 0 <= length <= capacity - more:
            tokens = f" - {more} new tokens" if more else ""
            raise ValueError(
                f"cache_seqlens: expected 0 <= length <= {capacity}{tokens}, "
                f"got {length} for sequence {b}"
            )
    if leftpad is not None and ((leftpad < 0) | (leftpad > before)).any():
        raise ValueError(
            f"cache_leftpad: expected between 0 and cache_seqlens {before.tolist()}, "
            f"got {leftpad.tolist()}"
        )
    num_pages = sequences.k_cache.shape[0]
    bad = (sequences.table < 0) | (sequences.table >= num_pages)
    if not bad.any():
        return
    first = read() if new_lengths is None else torch.minimum(read(), before)
    page = torch.arange(max_pages)
    bad &= page >= first[:, None] // page_size
    bad &= page * page_size < sequences.length[:, None]
    if bad.any():
        b, at = bad.nonzero()[0].tolist()
        raise ValueError(
            f"page_table: expected page ids in [0, {num_pages}), "
            f"got {int(sequences.table[b, at])} for sequence {b}"
        )


def check_slots(
    slots: tuple[Tensor, Tensor], page_size: int, cache_batch_idx: Tensor | None
) -> None:
    """No two new tokens in one place, where that is on the host."""
    page, offset = slots
    if page.device.type != "cpu":
        return
    if cache_batch_idx is not None and not _distinct(cache_batch_idx):
        raise ValueError(
            f"cache_batch_idx: expected distinct rows with k, got {cache_batch_idx.tolist()}"
        )
    if not _distinct((page * page_size + offset).flatten()):
        raise ValueError("page_table: expected a place of its own for each new token of k")


def apart_from(x: Tensor, *caches: Tensor) -> Tensor:
    """``x``, copied if it may lie where it is to be written (tokens moved within a cache)."""
    storage = x.untyped_storage().data_ptr()
    shared = any(cache.untyped_storage().data_ptr() == storage for cache in caches)
    return x.clone() if shared else x


def _distinct(x: Tensor) -> bool:
    return len(set(x.tolist())) == x.numel()
