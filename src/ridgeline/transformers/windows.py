"""Sliding windows over trees, whose tokens stand further apart in the row than in the sequence."""

from dataclasses import dataclass

import torch
from torch import Tensor

from ridgeline.layers.rows import depths, require


@dataclass(frozen=True)
class Segments:
    """A row cut where a branch begins: each piece continues one path of keys.

    ``cu_seqlens_q`` and ``cu_seqlens_k [n + 1]`` int32; ``keys [total_k]`` int64, what to index the
    flattened keys of the batch with. The queries need no index: the pieces are in their order.
    """

    cu_seqlens_q: Tensor
    cu_seqlens_k: Tensor
    keys: Tensor


def segments(subtree_end: Tensor, window: int) -> Segments | None:
    """The pieces of ``subtree_end [B, L]``; ``None`` where the window cuts nothing.

    The keys that several branches see are taken once for each.

    Args:
        window: tokens that a query sees, itself included.

    Raises:
        RuntimeError: inside ``torch.compile`` a sequence is longer than the window.
    """
    deepest = depths(subtree_end).max()
    if torch.compiler.is_compiling():
        require(
            deepest < window,
            "subtree_end: expected sequences no longer than sliding_window under torch.compile, "
            "which cannot cut the row where its branches begin",
        )
        return None
    if int(deepest) < window:
        return None
    length = subtree_end.shape[1]
    query_lens, key_lens, keys = [], [], []
    for b, ends in enumerate(subtree_end.cpu().clamp(max=length)):
        # Within a piece no subtree ends, so what its first token sees, all of it see.
        cuts = torch.cat((ends.new_zeros(1), ends)).unique().tolist()
        for start, stop in zip(cuts, [*cuts[1:], length], strict=True):
            if start == stop:
                continue
            before = (ends[:start] > start).nonzero()[:, 0]
            before = before[max(len(before) - window + 1, 0) :]  # no query sees further back
            path = torch.cat((before, torch.arange(start, stop)))
            query_lens.append(stop - start)
            key_lens.append(len(path))
            keys.append(path + b * length)
    device = subtree_end.device
    return Segments(
        _starts(query_lens).to(device), _starts(key_lens).to(device), torch.cat(keys).to(device)
    )


def _starts(lengths: list[int]) -> Tensor:
    return torch.tensor([0, *lengths]).cumsum(0).to(torch.int32)
