"""The vector that describes packed documents, shared prefixes and trees; and their positions.

Tokens are laid out depth first. Every token carries the index at which the subtree of its segment
ends, so that a query at p sees key j if and only if ``j <= p < subtree_end[j]``. The layout of
preference pairs is that of prefix sharing (Wang and Hegde, arXiv 2410.20305).

>>> pair = of_pair(prompt=3, chosen=2, rejected=1)
>>> pair.subtree_end.tolist()
[7, 7, 5, 5, 5, 7, 7]
>>> pair.position_ids.tolist()
[0, 1, 2, 3, 4, 2, 3]
"""

from collections.abc import Sequence
from itertools import accumulate
from typing import NamedTuple

import torch
from torch import Tensor

from ridgeline.ops.common import check as _check
from ridgeline.ops.common import packing


class Layout(NamedTuple):
    """A row of L tokens: ``subtree_end [L]`` int32, ``position_ids [L]`` int64, on the CPU.

    A token's position counts its ancestors: what it would be in its sequence alone.
    """

    subtree_end: Tensor
    position_ids: Tensor


def of_documents(lengths: Sequence[int]) -> Layout:
    """Documents one after another, none seeing another."""
    return of_tree([-1] * len(_counts("lengths", lengths)), lengths)


def of_pair(prompt: int, chosen: int, rejected: int) -> Layout:
    """``prompt | chosen | last prompt token again | rejected``, of P + C + 1 + R tokens.

    The repeated token gives the rejected response a position of its own to be predicted from.

    Args:
        prompt, chosen, rejected: numbers of tokens; of the prompt at least 1.

    Raises:
        TypeError, ValueError: a length is not a possible number of tokens.
    """
    chosen, rejected = _check.count("chosen", chosen), _check.count("rejected", rejected)
    return of_responses(prompt, (chosen, rejected))


def of_responses(prompt: int, responses: Sequence[int]) -> Layout:
    """A prompt with G responses, each but the first behind a copy of the last prompt token.

    ``prompt | response 0 | last prompt token | response 1 | last prompt token | ...``, of
    P + sum(responses) + G - 1 tokens; without responses P tokens.

    Args:
        prompt: tokens of the prompt, at least 1.
        responses: tokens of each response.

    Raises:
        TypeError, ValueError: a length is not a possible number of tokens.
    """
    _check.count("prompt", prompt, minimum=1)
    branches = [1 + n for n in _counts("responses", responses)] or [1]
    return of_tree([-1] + [0] * len(branches), [prompt - 1, *branches])


def of_tree(parents: Sequence[int], lengths: Sequence[int]) -> Layout:
    """Any trees of segments, depth first: a segment sees its ancestors and, causally, itself.

    Args:
        parents: for each segment the index of its parent, -1 for a root. Depth first: a parent is
            the segment before, or one of that one's ancestors.
        lengths: tokens of each segment, 0 or more.

    Raises:
        TypeError, ValueError: a length or parent is impossible, or the order is not depth first.
    """
    counts = _counts("lengths", lengths)
    if len(parents) != len(counts):
        raise ValueError(f"parents: expected one for each of {len(counts)} lengths, got {parents}")
    stops = list(accumulate(counts))
    ends, first = list(stops), [0] * len(counts)
    path: list[int] = []  # the segment before, behind its ancestors
    for i, parent in enumerate(parents):
        _check.count(f"parents[{i}]", parent, minimum=-1)
        if parent >= 0 and parent not in path:
            raise ValueError(
                f"parents[{i}]: expected -1 or one of {path} (depth first), got {parent}"
            )
        while path and path[-1] != parent:
            path.pop()
        for ancestor in path:
            ends[ancestor] = stops[i]
        first[i] = first[parent] + counts[parent] if path else 0
        path.append(i)
    sizes = torch.tensor(counts, dtype=torch.int64)
    starts = torch.tensor([0, *stops[:-1]][: len(counts)], dtype=torch.int64)
    shift = torch.tensor(first, dtype=torch.int64) - starts
    end = torch.tensor(ends, dtype=torch.int32).repeat_interleave(sizes)
    return Layout(end, torch.arange(len(end)) + shift.repeat_interleave(sizes))


def concat(layouts: Sequence[Layout]) -> Layout:
    """Several layouts in one row, none seeing another."""
    starts = [0, *accumulate(len(layout.subtree_end) for layout in layouts)]
    ends = [x.subtree_end + start for x, start in zip(layouts, starts, strict=False)]
    empty = of_documents([])
    return Layout(
        torch.cat([empty.subtree_end, *ends]),
        torch.cat([empty.position_ids, *(x.position_ids for x in layouts)]),
    )


def check(subtree_end: Tensor, cu_seqlens_k: Tensor | None = None, *, nested: bool = True) -> None:
    """Whether a vector is one that ``attention`` takes and, if ``nested``, one of trees.

    Args:
        subtree_end: ``[L_k]``, ``[B, L_k]``, or ``[total_k]`` with ``cu_seqlens_k``, int32.
        cu_seqlens_k: ``[B + 1]`` int32, of packed sequences.
        nested: also check that subtrees contain one another or are disjoint:
            ``subtree_end[k] <= subtree_end[j]`` wherever ``j < k < subtree_end[j]``. ``attention``
            takes other vectors too, whose masks are not trees. Reads every value on the host.

    Raises:
        TypeError, ValueError: it is not, at which index and why.
    """
    _check.tensor("subtree_end", subtree_end)
    _check.dtype("subtree_end", subtree_end, (torch.int32,))
    if cu_seqlens_k is not None:
        packing.check_pair(cu_seqlens_k, cu_seqlens_k)
        _check.shape("subtree_end", subtree_end, ("total_k",))
        packing.check_lengths("k", subtree_end, cu_seqlens_k, None)
    elif subtree_end.dim() not in (1, 2):
        raise ValueError(
            f"subtree_end: expected shape [L_k] or [B, L_k], got {list(subtree_end.shape)}"
        )
    packing.check_ends(subtree_end, cu_seqlens_k)
    if not nested:
        return
    if cu_seqlens_k is not None:
        rows = subtree_end.split(cu_seqlens_k.diff().tolist())
    else:
        rows = subtree_end if subtree_end.dim() == 2 else subtree_end[None]
    for b, row in enumerate(rows):
        _check_nested(b, row.clamp(max=len(row)).tolist())


def _check_nested(b: int, ends: list[int]) -> None:
    open_ends: list[int] = []  # of the subtrees that hold the token at hand, outermost first
    for j, end in enumerate(ends):
        while open_ends and open_ends[-1] <= j:
            open_ends.pop()
        if open_ends and end > open_ends[-1]:
            raise ValueError(
                f"subtree_end: expected nested subtrees, got the end {end} at index {j} of "
                f"sequence {b}, inside a subtree that ends at {open_ends[-1]}"
            )
        open_ends.append(end)


def _counts(name: str, lengths: Sequence[int]) -> list[int]:
    counts = [_check.count(f"{name}[{i}]", n) for i, n in enumerate(lengths)]
    _check.count(f"sum({name})", sum(counts))
    return counts
