"""A padded batch of pairs, with the rows that the model gets in its place."""

from collections.abc import Callable, Mapping
from dataclasses import astuple, dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ridgeline.training.preference import Batch, Tree, collate, of_pair, of_responses, of_sequences

# Names under which a batch carries its rows, see ``RowCollator``.
INPUT_IDS = "row_input_ids"
POSITION_IDS = "row_position_ids"
SUBTREE_END = "row_subtree_end"
SCORE_INDEX = "row_score_index"
SLOTS = "row_slots"
COUNTS = "row_counts"
ROW_NAMES = (INPUT_IDS, POSITION_IDS, SUBTREE_END, SCORE_INDEX, SLOTS, COUNTS)


@dataclass
class RowCollator:
    """Wraps a collator of TRL's format and adds rows in which pairs share their prompts.

    TRL's batch is ``[2 N, S]``: N chosen sequences, then N rejected ones, padded on the right.
    It stays as it is, since losses and metrics are computed from it. Beside it come

    - ``row_input_ids, row_position_ids, row_subtree_end [R, L]``: what the model computes;
    - ``row_score_index [T]``: positions in the flattened rows that predict a scored token;
    - ``row_slots [T]``: where each of them stands in TRL's flattened ``[2 N, S - 1]``;
    - ``row_counts [7]``: the fields of ``ridgeline.training.preference.rows.Counts``.

    A pair of equal responses is computed once, so that its rewards tie exactly, as TRL's do.
    Of the layouts with and without sharing the smaller one is taken; a batch that neither makes
    smaller carries no rows.

    Args:
        inner: makes TRL's batch of examples.
        prefix_sharing, packing, packing_length: see ``PrefixSharedDPOConfig``.
        pad_token_id: fills rows.
        pad_to_multiple_of: of the rows' length.
    """

    inner: Callable[[list[dict[str, Any]]], Mapping[str, Any]]
    prefix_sharing: bool
    packing: bool
    packing_length: int | None
    pad_token_id: int
    pad_to_multiple_of: int = 1

    def __call__(self, examples: list[dict[str, Any]]) -> dict[str, Any]:
        batch = dict(self.inner(examples))
        chosen, rejected = _sequences(batch)
        layouts = [self._trees(*pair) for pair in zip(chosen, rejected, strict=True)]
        rows = self._collate(layouts)
        if any(len(trees) == 2 for trees in layouts):
            apart = [_apart(*pair) for pair in zip(chosen, rejected, strict=True)]
            rows = min(rows, self._collate(apart), key=lambda x: x.counts.row_tokens)
        if rows.counts.row_tokens >= batch["input_ids"].numel():
            return batch
        return batch | self._tensors(rows, batch["completion_mask"])

    def _trees(self, chosen: "_Sequence", rejected: "_Sequence") -> list[Tree]:
        """One tree of a pair that gains by sharing or is equal, else one for each response."""
        prompt = chosen.prompt
        # TRL's keep_end cuts the two sequences of a long pair at different tokens of the prompt.
        shares = len(prompt) > 1 and torch.equal(prompt, rejected.prompt)
        if self.prefix_sharing and shares and not _equal(chosen, rejected):
            tree = of_pair(prompt, chosen.response, rejected.response)
            if self.packing_length is None or len(tree) <= self.packing_length:
                return [tree]
        return _apart(chosen, rejected)

    def _collate(self, layouts: list[list[Tree]]) -> Batch:
        trees = [tree for layout in layouts for tree in layout]
        budget = None
        if self.packing:
            budget = self.packing_length or sum(map(len, trees))
        return collate(
            trees,
            budget=budget,
            pad_token_id=self.pad_token_id,
            pad_to_multiple_of=self.pad_to_multiple_of,
        )

    def _tensors(self, rows: Batch, completion_mask: Tensor) -> dict[str, Tensor]:
        scored = completion_mask[:, 1:].bool()
        slots = torch.arange(scored.numel()).view(scored.shape)
        pairs = len(scored) // 2
        # Responses of the rows come pair by pair, TRL's sequences all chosen first.
        ordered = [slots[n][scored[n]] for i in range(pairs) for n in (i, pairs + i)]
        return {
            INPUT_IDS: rows.input_ids,
            POSITION_IDS: rows.position_ids,
            SUBTREE_END: rows.subtree_end,
            SCORE_INDEX: rows.score_index,
            SLOTS: torch.cat(ordered),
            COUNTS: torch.tensor(astuple(rows.counts)),
        }


class _Sequence(NamedTuple):
    """``prompt [P]``, what comes before the first scored token, and ``response [C]``."""

    prompt: Tensor
    response: Tensor


def _equal(chosen: _Sequence, rejected: _Sequence) -> bool:
    return all(torch.equal(x, y) for x, y in zip(chosen, rejected, strict=True))


def _apart(chosen: _Sequence, rejected: _Sequence) -> list[Tree]:
    """A tree for each sequence of a pair, and one that is scored twice if they are equal.

    Computed at two places of a row, equal responses would win over each other by rounding.
    """
    if _equal(chosen, rejected):
        return [of_sequences([chosen, rejected])]
    return [of_responses(x.prompt, [x.response]) for x in (chosen, rejected)]


def _sequences(batch: Mapping[str, Any]) -> tuple[list[_Sequence], list[_Sequence]]:
    """Chosen and rejected sequences of a padded batch, without padding."""
    for name in ("input_ids", "attention_mask", "completion_mask"):
        if not isinstance(batch.get(name), Tensor):
            raise ValueError(f"data_collator: expected a batch with the tensor {name!r}")
    mask, completion = batch["attention_mask"].bool(), batch["completion_mask"].bool()
    if (mask[:, 1:] & ~mask[:, :-1]).any():
        raise ValueError("data_collator: expected padding on the right only")
    if (completion[:, :-1] & ~completion[:, 1:] & mask[:, 1:]).any():
        raise ValueError("data_collator: expected completions up to the end of their sequences")
    found = []
    # A first token that is itself scored has nothing to be predicted from: TRL drops it, too.
    prompts = (mask & ~completion).sum(1).clamp(min=1).tolist()
    for ids, length, prompt in zip(batch["input_ids"], mask.sum(1).tolist(), prompts, strict=True):
        if length <= prompt:
            raise ValueError("data_collator: expected a scored token in every sequence, got none")
        found.append(_Sequence(ids[:prompt], ids[prompt:length]))
    half = len(found) // 2
    return found[:half], found[half:]
