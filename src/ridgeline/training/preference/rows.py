"""Trees in padded rows of a batch, and what that saves, counted."""

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from itertools import accumulate

import torch
from torch import Tensor

from ridgeline.ops.common import check
from ridgeline.training.preference.packing import first_fit_decreasing
from ridgeline.training.preference.trees import IGNORE, Tree, read


@dataclass(frozen=True)
class Counts:
    """What a batch holds; counts of several batches can be added.

    Attributes:
        trees: trees, the preference pairs.
        responses: sequences, two a pair.
        equal_responses: those equal to an earlier one of their tree, as a pair's whose chosen is
            its rejected: such a pair teaches nothing.
        rows: rows of the batch.
        logical_tokens: tokens of all sequences written out, without padding.
        physical_tokens: tokens of the trees.
        row_tokens: tokens that are computed, padding included.
    """

    trees: int = 0
    responses: int = 0
    equal_responses: int = 0
    rows: int = 0
    logical_tokens: int = 0
    physical_tokens: int = 0
    row_tokens: int = 0

    def __add__(self, other: "Counts") -> "Counts":
        return Counts(*(getattr(self, f.name) + getattr(other, f.name) for f in fields(self)))

    @property
    def shared_fraction(self) -> float:
        """Part of the logical tokens that is not computed again, 0 to 1."""
        return 1 - _part(self.physical_tokens, self.logical_tokens, 1.0)

    @property
    def row_fill(self) -> float:
        """Part of the computed tokens that is no padding, 0 to 1."""
        return _part(self.physical_tokens, self.row_tokens, 1.0)

    @property
    def packing_ratio(self) -> float:
        """Trees a row."""
        return _part(self.trees, self.rows, 0.0)


@dataclass(frozen=True, eq=False)
class Batch:
    """Rows of L tokens. Responses are numbered tree by tree in the order the trees were given.

    So of pairs, response 2 i is chosen and 2 i + 1 rejected of pair i, however they were packed.

    Attributes:
        input_ids, position_ids, shift_labels: ``[B, L]`` int64 as of ``Tree``; padding has
            position 0 and label -100.
        subtree_end: ``[B, L]`` int32 within the row. A padding token sees and is seen by itself.
        score_index: ``[S]`` int64 into the flattened ``[B * L]``: where scored tokens are
            predicted, response after response.
        response_ids: ``[S]`` int64, the response that each counts for.
        response_lengths: ``[R]`` int64, scored tokens of each response.
        counts: what the batch holds.
    """

    input_ids: Tensor
    position_ids: Tensor
    subtree_end: Tensor
    shift_labels: Tensor
    score_index: Tensor
    response_ids: Tensor
    response_lengths: Tensor
    counts: Counts

    def model_inputs(self) -> dict[str, Tensor]:
        """What a decoder takes whose attention is ``ridgeline``."""
        return {
            "input_ids": self.input_ids,
            "position_ids": self.position_ids,
            "subtree_end": self.subtree_end,
        }

    def tensors(self) -> dict[str, Tensor]:
        """All tensors by name."""
        found = {f.name: getattr(self, f.name) for f in fields(self)}
        return {name: x for name, x in found.items() if isinstance(x, Tensor)}

    def to(self, device: torch.device | str, non_blocking: bool = False) -> "Batch":
        """The batch on a device."""
        moved = {n: x.to(device, non_blocking=non_blocking) for n, x in self.tensors().items()}
        return replace(self, **moved)

    def pin_memory(self) -> "Batch":
        """The batch in pinned memory, as a ``DataLoader`` asks for it."""
        return replace(self, **{name: x.pin_memory() for name, x in self.tensors().items()})

    def sequences(self) -> list[tuple[list[int], list[int]]]:
        """Prompts and responses, read back from the rows."""
        length, found = self.input_ids.shape[1], []
        for index in self.score_index.split(self.response_lengths.tolist()):
            b = int(index[0]) // length
            row = self.input_ids[b], self.subtree_end[b], self.shift_labels[b]
            found.append(read(*row, index - b * length))
        return found


def collate(
    trees: Sequence[Tree],
    *,
    budget: int | None = None,
    pad_token_id: int = 0,
    pad_to_multiple_of: int = 1,
    length: int | None = None,
) -> Batch:
    """Trees as a batch of rows, padded behind.

    Args:
        trees: at least one.
        budget: most tokens of a row, in which trees are packed first-fit-decreasing; ``None`` for
            a row for each tree.
        pad_token_id: at least 0.
        pad_to_multiple_of: of the rows' length.
        length: of all rows, in place of the longest one's.

    Raises:
        ValueError: no trees; trees longer than the budget (which, how long); rows longer than
            ``length``.
        TypeError: a number is no int.
    """
    if not trees:
        raise ValueError("trees: expected at least one, got none")
    check.count("pad_token_id", pad_token_id)
    check.count("pad_to_multiple_of", pad_to_multiple_of, minimum=1)
    sizes = [len(tree) for tree in trees]
    packed = [[i] for i in range(len(trees))]
    if budget is not None:
        packed = first_fit_decreasing(sizes, budget)
    longest = max(sum(sizes[i] for i in row) for row in packed)
    length = longest if length is None else check.count("length", length, minimum=1)
    if longest > length:
        raise ValueError(f"length: expected at least {longest}, the longest row, got {length}")
    length += -length % pad_to_multiple_of

    shape = len(packed), length
    input_ids = torch.full(shape, pad_token_id, dtype=torch.int64)
    position_ids = torch.zeros(shape, dtype=torch.int64)
    shift_labels = torch.full(shape, IGNORE, dtype=torch.int64)
    ends = torch.arange(1, length + 1, dtype=torch.int32).repeat(len(packed), 1)
    origin = [0] * len(trees)
    for b, row in enumerate(packed):
        starts = accumulate((sizes[i] for i in row), initial=0)
        for i, start in zip(row, starts, strict=False):
            tree, span = trees[i], slice(start, start + sizes[i])
            input_ids[b, span] = tree.input_ids
            position_ids[b, span] = tree.position_ids
            shift_labels[b, span] = tree.shift_labels
            ends[b, span] = tree.subtree_end + start
            origin[i] = b * length + start
    response_lengths = torch.tensor([n for tree in trees for n in tree.response_lengths])
    responses = len(response_lengths)
    return Batch(
        input_ids=input_ids,
        position_ids=position_ids,
        subtree_end=ends,
        shift_labels=shift_labels,
        score_index=torch.cat([x.score_index + at for x, at in zip(trees, origin, strict=True)]),
        response_ids=torch.arange(responses).repeat_interleave(response_lengths),
        response_lengths=response_lengths,
        counts=Counts(
            trees=len(trees),
            responses=responses,
            equal_responses=sum(tree.equal_responses for tree in trees),
            rows=len(packed),
            logical_tokens=sum(tree.logical_tokens for tree in trees),
            physical_tokens=sum(sizes),
            row_tokens=input_ids.numel(),
        ),
    )


def _part(part: int, whole: int, empty: float) -> float:
    return part / whole if whole else empty
