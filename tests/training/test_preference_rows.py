"""Packing to a budget, and batches of rows."""

import dataclasses

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from preference_cases import (
    PAD,
    check_batch,
    check_packing,
    pair_sequences,
    random_pairs,
    random_sequences,
)

from ridgeline.training.preference import (
    Batch,
    Counts,
    collate,
    first_fit_decreasing,
    of_pair,
    of_responses,
    of_sequences,
)


@settings(max_examples=150, deadline=None)
@given(st.integers(1, 30), st.data())
def test_first_fit_decreasing(budget, data):
    lengths = data.draw(st.lists(st.integers(1, budget), max_size=40))
    check_packing(lengths, budget)
    rows = first_fit_decreasing(lengths, budget)
    assert sorted(i for row in rows for i in row) == list(range(len(lengths)))
    assert all(sum(lengths[i] for i in row) <= budget for row in rows)


def test_packing_is_fast_enough_for_a_data_set():
    lengths = [1 + (i * 7919) % 1000 for i in range(20_000)]
    rows = first_fit_decreasing(lengths, 4096)
    assert len(rows) == -(-sum(lengths) // 4096)  # so many short ones fill every row


@pytest.mark.parametrize(
    ("lengths", "budget", "error", "message"),
    [
        ([3, 9, 2, 12], 8, ValueError, r"at most 8 .* budget, got .*\[1\] 9, lengths\[3\] 12$"),
        ([9] * 8, 8, ValueError, r"lengths\[4\] 9 and 3 more"),
        ([0], 8, ValueError, r"lengths\[0\]: expected at least 1, got 0"),
        ([2.0], 8, TypeError, r"lengths\[0\]: expected an int, got float"),
        ([2], 0, ValueError, "budget: expected at least 1, got 0"),
    ],
    ids=["which", "many", "empty", "float", "budget"],
)  # fmt: skip
def test_bad_lengths_are_named(lengths, budget, error, message):
    with pytest.raises(error, match=message):
        first_fit_decreasing(lengths, budget)


@pytest.mark.parametrize("budget", [None, 29, 64], ids=["one-a-row", "tight", "wide"])
@pytest.mark.parametrize("seed", range(6))
def test_batches_of_pairs(budget, seed):
    pairs = random_pairs(seed, 6)
    batch = collate([of_pair(*p) for p in pairs], budget=budget, pad_token_id=PAD)
    check_batch(batch, pair_sequences(pairs))
    if budget is not None:
        assert batch.input_ids.shape[1] <= budget


@pytest.mark.parametrize("seed", range(6))
def test_batches_of_any_trees(seed):
    forest = [random_sequences(10 * seed + i) for i in range(4)]
    batch = collate([of_sequences(x) for x in forest], budget=60, pad_token_id=PAD)
    check_batch(batch, [one for sequences in forest for one in sequences])


def test_padding_sees_itself_alone():
    batch = collate(
        [of_pair([1], [2], [3]), of_pair([1, 1], [2, 2], [3])], pad_token_id=7, length=9
    )
    assert batch.input_ids[0].tolist() == [1, 2, 1, 3, 7, 7, 7, 7, 7]
    assert batch.subtree_end[0].tolist() == [2, 2, 4, 4, 5, 6, 7, 8, 9]
    assert batch.position_ids[0].tolist() == [0, 1, 0, 1, 0, 0, 0, 0, 0]
    assert batch.shift_labels[0].tolist() == [2, -100, 3] + [-100] * 6


def test_counts():
    pairs = [([1] * 10, [2, 2], [3, 3]), ([1], [4], [4])]
    one = collate([of_pair(*p) for p in pairs], budget=20, pad_to_multiple_of=8).counts
    expected = Counts(trees=2, responses=4, equal_responses=1, rows=1, logical_tokens=28)
    assert one == dataclasses.replace(expected, physical_tokens=19, row_tokens=24)
    assert one.shared_fraction == pytest.approx(1 - 19 / 28)
    assert one.row_fill == pytest.approx(19 / 24)
    assert one.packing_ratio == 2
    both = one + collate([of_responses([1] * 10, [[2]])]).counts
    assert (both.trees, both.rows, both.logical_tokens, both.row_tokens) == (3, 2, 39, 35)
    assert (Counts().shared_fraction, Counts().row_fill, Counts().packing_ratio) == (0, 1, 0)


def test_without_sharing_responses_keep_their_numbers():
    pairs = random_pairs(3)
    alone = [of_responses(prompt, [response]) for prompt, response in pair_sequences(pairs)]
    batch = collate(alone, budget=40, pad_token_id=PAD)
    check_batch(batch, pair_sequences(pairs))
    assert batch.counts.shared_fraction == 0


def test_a_batch_moves_and_comes_back():
    batch = collate([of_pair(*p) for p in random_pairs(1)])
    moved = batch.to("meta")
    assert all(x.is_meta for x in moved.tensors().values())
    again = Batch(**batch.tensors(), counts=batch.counts)
    assert again.sequences() == batch.sequences()
    assert list(batch.model_inputs()) == ["input_ids", "position_ids", "subtree_end"]
    assert torch.equal(batch.model_inputs()["subtree_end"], batch.subtree_end)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"trees": []}, "trees: expected at least one, got none"),
        ({"budget": 6}, r"expected at most 6 tokens, the budget, got lengths\[1\] 7"),
        ({"length": 6}, "length: expected at least 7, the longest row, got 6"),
        ({"pad_token_id": -1}, "pad_token_id: expected at least 0, got -1"),
        ({"pad_to_multiple_of": 0}, "pad_to_multiple_of: expected at least 1, got 0"),
    ],
    ids=lambda x: next(iter(x)) if isinstance(x, dict) else None,
)
def test_bad_batches_are_named(change, message):
    trees = [of_pair([1], [2], [3]), of_pair([1, 2, 3], [2], [3, 4])]
    with pytest.raises(ValueError, match=message):
        collate(**({"trees": trees} | change))
