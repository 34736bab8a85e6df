"""Queries of a batch, ``[B, L_q, ...]``, or packed, ``[total_q, ...]``."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from ridgeline.ops.common import check, packing


@dataclass(frozen=True)
class Group:
    """Sequences with equally many queries."""

    sequences: Tensor | None  # [n] int64; None: all of the call
    rows: Tensor | None  # [n, L_q] int64 of packed queries; None: all in order
    length: int

    def rows_of(self, x: Tensor) -> Tensor:
        """``[n, L_q, ...]`` of queries ``x``."""
        if self.rows is not None:
            return x[self.rows]
        return x.view(-1, self.length, *x.shape[1:]) if x.dim() == 3 else x

    def sequences_of(self, x: Tensor) -> Tensor:
        """``[n, ...]`` of ``x [B, ...]``."""
        return x if self.sequences is None else x[self.sequences]


@dataclass(frozen=True)
class Queries:
    """How the queries of a call lie; ``cu_seqlens`` is ``None`` for a batch."""

    batch: int
    total: int
    cu_seqlens: Tensor | None
    device: torch.device

    @cached_property
    def lengths(self) -> Tensor:
        """``[B]`` int32"""
        if self.cu_seqlens is not None:
            return self.cu_seqlens.diff()
        length = self.total // max(self.batch, 1)
        return torch.full((self.batch,), length, dtype=torch.int32, device=self.device)

    def packed(self, x: Tensor) -> Tensor:
        """``[total_q, ...]``"""
        return x if self.cu_seqlens is not None else x.flatten(0, 1)

    def starts(self) -> Tensor:
        """``cu_seqlens [B + 1]`` int32 of ``packed``."""
        if self.cu_seqlens is not None:
            return self.cu_seqlens
        zero = self.lengths.new_zeros(1)
        return torch.cat((zero, self.lengths.cumsum(0, dtype=torch.int32)))

    def groups(self) -> Iterator[Group]:
        """Nothing is padded: sequences of one length at a time. Reads packed lengths on the host.

        Decode steps among the chunks of prefills are one group, whatever the longest chunk.
        """
        if self.total == 0:
            return
        if self.cu_seqlens is None:
            yield Group(None, None, self.total // self.batch)
            return
        lengths = sorted(set(self.lengths.tolist()) - {0})
        if len(lengths) == 1 and lengths[0] * self.batch == self.total:
            yield Group(None, None, lengths[0])
            return
        for length in lengths:
            sequences = (self.lengths == length).nonzero().squeeze(1)
            index = torch.arange(length, device=sequences.device)
            yield Group(sequences, self.cu_seqlens[sequences, None] + index, length)


def lay_out(q: Tensor, cu_seqlens_q: Tensor | None, max_seqlen_q: int | None) -> Queries:
    """Check the layout of ``q`` and its ``cu_seqlens_q``."""
    if max_seqlen_q is not None:
        check.count("max_seqlen_q", max_seqlen_q)
    if cu_seqlens_q is None:
        check.shape("q", q, ("B", "L_q", "h_q", "d"))
        packing.check_lengths("q", q, None, max_seqlen_q)
        return Queries(q.shape[0], q.shape[0] * q.shape[1], None, q.device)
    check.shape("q", q, ("total_q", "h_q", "d"))
    check_starts("cu_seqlens_q", cu_seqlens_q, "q", q, None)
    if q.device.type == "cpu":
        packing.check_lengths("q", q, cu_seqlens_q, max_seqlen_q)
    return Queries(cu_seqlens_q.shape[0] - 1, q.shape[0], cu_seqlens_q, q.device)


def check_starts(name: str, cu_seqlens: Tensor, of: str, x: Tensor, batch: int | None) -> None:
    """``cu_seqlens [B + 1]`` int32, rising from 0 to the rows of ``x`` as far as the host sees."""
    check.tensor(name, cu_seqlens)
    check.shape(name, cu_seqlens, ("B + 1" if batch is None else batch + 1,))
    check.dtype(name, cu_seqlens, (torch.int32,))
    check.same_device(**{of: x, name: cu_seqlens})
    if cu_seqlens.shape[0] == 0:
        raise ValueError(f"{name}: expected shape [B + 1], got [0]")
    if x.device.type != "cpu":
        return
    total = x.shape[0]
    if cu_seqlens[0] != 0 or cu_seqlens[-1] != total or (cu_seqlens.diff() < 0).any():
        raise ValueError(
            f"{name}: expected to rise from 0 to {total} (the rows of {of}), "
            f"got {cu_seqlens.tolist()}"
        )
