"""Packed sequences: the checks on ``cu_seqlens`` and on what is counted within a sequence."""

import torch
from torch import Tensor

from ridgeline.ops.common import check


def check_pair(cu_seqlens_q: Tensor | None, cu_seqlens_k: Tensor | None) -> None:
    """Both or none, ``[B + 1]`` int32; what can be said without reading a value."""
    if cu_seqlens_q is None and cu_seqlens_k is None:
        return
    check.tensor("cu_seqlens_q", cu_seqlens_q)
    check.tensor("cu_seqlens_k", cu_seqlens_k)
    check.shape("cu_seqlens_q", cu_seqlens_q, ("B + 1",))
    check.shape("cu_seqlens_k", cu_seqlens_k, tuple(cu_seqlens_q.shape))
    for name, x in (("cu_seqlens_q", cu_seqlens_q), ("cu_seqlens_k", cu_seqlens_k)):
        check.dtype(name, x, (torch.int32,))
        if x.shape[0] == 0:
            raise ValueError(f"{name}: expected shape [B + 1], got [0]")


def check_lengths(side: str, x: Tensor, cu_seqlens: Tensor | None, longest: int | None) -> None:
    """Values of ``cu_seqlens_<side>`` of ``x [total, ...]``, and of ``max_seqlen_<side>``."""
    name, total = f"cu_seqlens_{side}", x.shape[0]
    if cu_seqlens is None:
        most = x.shape[1]
    else:
        lengths = cu_seqlens.diff()
        if cu_seqlens[0] != 0 or cu_seqlens[-1] != total or (lengths < 0).any():
            raise ValueError(
                f"{name}: expected to rise from 0 to {total} (the rows of {side}), "
                f"got {cu_seqlens.tolist()}"
            )
        most = int(lengths.max()) if lengths.numel() else 0
    if longest is not None and longest < most:
        raise ValueError(
            f"max_seqlen_{side}: expected at least {most}, the longest sequence, got {longest}"
        )


def check_ends(subtree_end: Tensor, cu_seqlens_k: Tensor | None) -> None:
    """Every entry is beyond its own index in the sequence."""
    index = positions(subtree_end, cu_seqlens_k)
    bad = subtree_end <= index
    if bad.any():
        at = tuple(int(i) for i in bad.nonzero()[0])
        raise ValueError(
            f"subtree_end: expected more than its own index ({int(index.expand_as(bad)[at])}), "
            f"got {int(subtree_end[at])} at {list(at)}"
        )


def positions(x: Tensor, cu_seqlens: Tensor | None) -> Tensor:
    """The index of each key in its sequence, for ``x [B, L]`` (as ``[L]``) or ``[total]``."""
    index = torch.arange(x.shape[-1], device=x.device)
    if cu_seqlens is None:
        return index
    starts = cu_seqlens[:-1].long()
    return index - starts.repeat_interleave(cu_seqlens.diff().long())
