"""Rows of several sequences: from positions, padding and trees to one ``subtree_end``."""

from dataclasses import dataclass

import torch
from torch import Tensor

from ridgeline.ops.common import check


@dataclass(frozen=True)
class Layout:
    """Who sees whom in a forward of whole rows.

    ``subtree_end [B, L]`` int32, or ``None`` for plain causal rows. ``branches`` says that tokens
    of one sequence may stand apart, so that distances in the row are not distances in the sequence.
    """

    subtree_end: Tensor | None
    branches: bool = False


def of_rows(
    position_ids: Tensor | None,
    subtree_end: Tensor | None,
    real: Tensor | None,
    documents: Tensor | None = None,
) -> Layout:
    """The layout of whole rows of L tokens, nothing of which was cached before.

    Args:
        position_ids: ``[B, L]`` or ``[1, L]``; ``None`` where the model keeps them to itself.
        subtree_end: ``[B, L]`` int32, the caller's own.
        real: ``[B, L]`` bool, False for padding.
        documents: ``[B, L]`` int32, transformers' reading of ``position_ids``.

    Raises:
        TypeError, ValueError: positions that contradict ``subtree_end`` or leave open what sees
            what, or a ``subtree_end`` of a wrong shape or dtype.
    """
    if documents is not None and position_ids is not None:
        require(
            ((documents.diff() != 0) == (position_ids.diff() != 1)).all(),
            "attention_mask: expected one that cuts rows where position_ids do not step by one and "
            "nowhere else, got another, as of chunked attention",
        )
    if subtree_end is not None:
        if real is not None:
            subtree_end = torch.where(real, subtree_end, _own_end(real))
        if position_ids is not None:
            _check_tree_positions(position_ids, subtree_end, real)
        return Layout(subtree_end, branches=True)
    if position_ids is not None:
        starts = _document_starts(position_ids, real)
        if starts is not None:
            return Layout(_ends_of_documents(starts, real))
    elif documents is not None:
        require(
            (documents == 0).all(),
            "position_ids: expected steps of one in every row, since this model does not hand them "
            "to its attention; describe packed rows by subtree_end",
        )
    return Layout(None if real is None else _ends_of_padding(real))


def require(holds: Tensor, message: str) -> None:
    """Raise ``ValueError`` unless ``holds``, a bool of one element, is true.

    Inside ``torch.compile`` its value is not at hand: there the graph asserts it when it runs, and
    fails with ``RuntimeError``.
    """
    if torch.compiler.is_compiling():
        torch._assert_async(holds, message)
    elif not holds:
        raise ValueError(message)


def check_subtree_end(subtree_end: Tensor, batch: int, length: int) -> None:
    """Type, shape and dtype; ``ridgeline.attention`` checks the values."""
    check.tensor("subtree_end", subtree_end)
    check.shape("subtree_end", subtree_end, (batch, length))
    check.dtype("subtree_end", subtree_end, (torch.int32,))


def behind_cache(length: int, position_ids: Tensor | None, real: Tensor | None) -> Layout:
    """The layout of ``length`` new tokens a row behind cached ones: one sequence a row.

    Args:
        position_ids: ``[B, length]`` or ``[1, length]``.
        real: ``[B, L_k]`` bool of all keys, False for padding.

    Raises:
        ValueError: positions of neighbours that do not step by one.
    """
    if position_ids is not None:
        fine = position_ids.diff() == 1
        if real is not None:
            new = real[:, real.shape[1] - length :]
            fine = fine | ~(new[:, 1:] & new[:, :-1])
        require(
            fine.all(),
            "position_ids: expected steps of one behind cached tokens, got a jump; rows of several "
            "sequences are computed without past_key_values",
        )
    return Layout(None if real is None else _ends_of_padding(real))


def check_packed_positions(position_ids: Tensor, cu_seqlens: Tensor) -> None:
    """Whether positions ``[1, total]`` step by one within each packed sequence."""
    begins = torch.zeros(position_ids.shape[1] + 1, dtype=torch.bool, device=cu_seqlens.device)
    begins = begins.index_fill(0, cu_seqlens.clamp(0, position_ids.shape[1]).long(), True)
    require(
        ((position_ids.diff() == 1) | begins[1:-1]).all(),
        "position_ids: expected steps of one within each sequence of cu_seq_lens_q, got a jump",
    )


def depths(subtree_end: Tensor) -> Tensor:
    """``[B, L]`` int64: how many tokens before it each token sees.

    Every subtree that has ended by q began before q, so what q sees is q less their number.
    """
    length = subtree_end.shape[1]
    ended = torch.zeros_like(subtree_end, dtype=torch.int64)
    ended = torch.nn.functional.pad(ended, (0, 1)).scatter_add(
        1, subtree_end.clamp(max=length).long(), torch.ones_like(ended)
    )
    return _index(subtree_end) - ended.cumsum(1)[:, :length]


def _index(x: Tensor) -> Tensor:
    return torch.arange(x.shape[-1], device=x.device)


def _own_end(x: Tensor) -> Tensor:
    """``[L]`` int32: the end of a token that nothing else sees."""
    return torch.arange(1, x.shape[-1] + 1, dtype=torch.int32, device=x.device)


def _check_tree_positions(position_ids: Tensor, subtree_end: Tensor, real: Tensor | None) -> None:
    depth = depths(subtree_end)
    # The same for all tokens of a tree, whose root is the last token before that sees nothing.
    shift = position_ids - depth
    root = torch.where(depth == 0, _index(depth), 0).cummax(1).values
    fine = shift == shift.gather(1, root)
    require(
        (fine if real is None else fine | ~real).all(),
        "position_ids: expected each token's position to be that of the token it continues plus "
        "one, as subtree_end has it; pass both as ridgeline.subtree_end makes them",
    )


def _document_starts(position_ids: Tensor, real: Tensor | None) -> Tensor | None:
    """``[B, L]`` bool, True where a document but the row's first begins; ``None``: nowhere."""
    if real is None:
        new = position_ids[:, 1:]
        start = new - position_ids[:, :-1] != 1
        known = ~start | (new == 0)
        start = torch.nn.functional.pad(start, (1, 0))
    else:
        # Padding has positions that mean nothing: compare with the last real token before.
        position_ids = position_ids.expand_as(real)
        last_real = torch.where(real, _index(real), -1).cummax(1).values
        before = torch.nn.functional.pad(last_real[:, :-1], (1, 0), value=-1)
        start = (before >= 0) & real & (position_ids <= position_ids.gather(1, before.clamp(min=0)))
        known = ~start | (position_ids == 0)
    require(
        known.all(),
        "position_ids: expected each to be the one before plus one, or 0 where a document begins, "
        "got another jump; rows whose sequences share a prefix need subtree_end",
    )
    if not torch.compiler.is_compiling() and not start.any():
        return None
    return start


def _ends_of_documents(starts: Tensor, real: Tensor | None) -> Tensor:
    length = starts.shape[1]
    begins = torch.where(starts, _index(starts), length)
    later = torch.nn.functional.pad(begins[:, 1:], (0, 1), value=length)
    ends = later.flip(1).cummin(1).values.flip(1).to(torch.int32)
    return ends if real is None else torch.where(real, ends, _own_end(real))


def _ends_of_padding(real: Tensor) -> Tensor:
    """Padding is seen by itself alone, and what follows a row's last token sees no token."""
    stop = torch.where(real, _own_end(real), 0).amax(1, keepdim=True)
    return torch.where(real, stop, _own_end(real))
