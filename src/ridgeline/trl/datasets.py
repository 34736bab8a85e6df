"""Preference data: what is refused before a step is taken, and what is counted."""

from collections.abc import Iterator
from dataclasses import dataclass, fields
from typing import Any

from datasets import Dataset, IterableDataset

EXAMPLES = 5  # row numbers that a message names


@dataclass(frozen=True)
class PairCounts:
    """What became of a dataset.

    Attributes:
        pairs: preference pairs to train or evaluate on.
        dropped: pairs left out because their prompt alone fills ``max_length``.
        truncated: pairs of which a sequence is cut to ``max_length``.
        equal: pairs whose responses are equal. They stay, as in TRL, and teach nothing.
    """

    pairs: int
    dropped: int
    truncated: int
    equal: int

    def __str__(self) -> str:
        found = ((f.name, getattr(self, f.name)) for f in fields(self))
        return ", ".join(f"{count} {name}" for name, count in found)


def check_columns(name: str, dataset: Dataset | IterableDataset) -> None:
    """Refuses a dataset that is no preference data.

    Args:
        name: "train", "eval" or the name of one of several evaluation sets.

    Raises:
        ValueError: a column is missing, or a text is empty (the message names its rows).
        TypeError: a column holds neither texts nor messages.
    """
    first = next(iter(dataset), None)
    if first is None:
        raise ValueError(f"{name} dataset: expected preference pairs, got none")
    missing = [column for column in ("chosen", "rejected") if column not in first]
    if missing:
        raise ValueError(
            f"{name} dataset: expected the columns prompt, chosen and rejected (prompt may be left "
            f"out where chosen and rejected begin with it), got {', '.join(sorted(first))}"
        )
    columns = [column for column in ("prompt", "chosen", "rejected") if column in first]
    for column in columns:
        value = first[column]
        if not isinstance(value, str | list):
            raise TypeError(
                f"{name} dataset: expected texts or lists of messages in {column!r}, "
                f"got {type(value).__name__}"
            )
    if isinstance(dataset, IterableDataset):
        return  # its rows pass once; the collator meets an empty one
    for column in columns:
        empty = [i for i, value in enumerate(_values(dataset, column)) if _is_empty(value)]
        if empty:
            raise ValueError(
                f"{name} dataset: expected no empty text, got one in {column!r} of row "
                f"{_some(empty)}"
            )


def count_pairs(name: str, dataset: Dataset, before: int, max_length: int | None) -> PairCounts:
    """Counts a tokenised dataset, from ``before`` rows of which it was made.

    Raises:
        ValueError: nothing is left, or a prompt or response has no tokens.
    """
    if not len(dataset):
        raise ValueError(
            f"{name} dataset: expected a pair whose prompt is shorter than max_length "
            f"({max_length}), got none among {before}"
        )
    truncated = equal = 0
    empty: dict[str, list[int]] = {"prompt": [], "chosen": [], "rejected": []}
    rows = (_values(dataset, f"{column}_ids") for column in empty)
    for i, ids in enumerate(zip(*rows, strict=True)):
        for column, tokens in zip(empty, ids, strict=True):
            if not tokens:
                empty[column].append(i)
        prompt, chosen, rejected = ids
        length = len(prompt) + max(len(chosen), len(rejected))
        truncated += max_length is not None and length > max_length
        equal += chosen == rejected
    for column, found in empty.items():
        if found:
            raise ValueError(
                f"{name} dataset: expected at least one token of {column!r} apart from what the "
                f"tokenizer merges across its end, got none in row {_some(found)} of those left"
            )
    return PairCounts(len(dataset), before - len(dataset), truncated, equal)


def _values(dataset: Dataset, column: str) -> Iterator[Any]:
    for batch in dataset.select_columns([column]).iter(batch_size=1000):
        yield from batch[column]


def _is_empty(value: str | list) -> bool:
    """Whether a text, or the last of some messages, says nothing."""
    if isinstance(value, list):
        return not value or not (value[-1].get("content") or value[-1].get("tool_calls"))
    return not value


def _some(rows: list[int]) -> str:
    more = f" and {len(rows) - EXAMPLES} more" if len(rows) > EXAMPLES else ""
    return ", ".join(map(str, rows[:EXAMPLES])) + more
