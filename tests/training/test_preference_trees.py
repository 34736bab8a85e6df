"""Trees of tokens stand for their sequences, whatever these share."""

import re

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from preference_cases import check_tree, check_trie, pair_sequences, random_pairs, random_sequences

from ridgeline.ops.attention import subtree_end
from ridgeline.training.preference import of_pair, of_responses, of_sequences, trees

IDS = st.lists(st.integers(0, 2**31), min_size=1, max_size=8)
FEW = st.lists(st.integers(0, 1), min_size=1, max_size=5)  # tokens that often agree


@settings(max_examples=60, deadline=None)
@given(IDS, IDS, IDS)
def test_pairs_in_the_layout_of_prefix_sharing(prompt, chosen, rejected):
    tree = of_pair(prompt, chosen, rejected)
    check_tree(tree, [(prompt, chosen), (prompt, rejected)])
    assert tree.input_ids.tolist() == [*prompt, *chosen, prompt[-1], *rejected]
    layout = subtree_end.of_pair(len(prompt), len(chosen), len(rejected))
    assert torch.equal(tree.subtree_end, layout.subtree_end)
    assert torch.equal(tree.position_ids, layout.position_ids)
    assert tree.logical_tokens == 2 * len(prompt) + len(chosen) + len(rejected)


@settings(max_examples=60, deadline=None)
@given(IDS, st.lists(FEW, min_size=1, max_size=5))
def test_a_prompt_with_responses(prompt, responses):
    tree = of_responses(prompt, responses)
    check_tree(tree, [(prompt, response) for response in responses])
    assert len(tree) == len(prompt) + sum(map(len, responses)) + len(responses) - 1


@settings(max_examples=200, deadline=None)
@given(st.lists(st.tuples(FEW, FEW), min_size=1, max_size=8))
def test_any_sequences(sequences):
    check_trie(sequences)


@pytest.mark.parametrize("seed", range(40))
def test_sequences_within_one_another(seed):
    check_trie(random_sequences(seed))


def test_a_trie_shares_inside_responses_and_between_prompts():
    sequences = [([1, 2, 3], [4, 5, 6]), ([1, 2, 3], [4, 5, 7]), ([1, 2, 8], [9])]
    tree = of_sequences(sequences)
    # 5 is repeated, from which both 6 and 7 are predicted; 2 is not: nothing scored follows it.
    assert tree.input_ids.tolist() == [1, 2, 3, 4, 5, 6, 5, 7, 8, 9]
    assert tree.position_ids.tolist() == [0, 1, 2, 3, 4, 5, 4, 5, 2, 3]
    assert tree.subtree_end.tolist() == [10, 10, 8, 8, 6, 6, 8, 8, 10, 10]
    check_tree(tree, sequences)


def test_equal_sequences_are_shared_whole_and_counted():
    tree = of_sequences([([1], [2, 3])] * 3)
    assert len(tree) == 3
    assert tree.equal_responses == 2
    pair = of_pair([1], [2, 3], [2, 3])
    assert (len(pair), pair.equal_responses) == (6, 1)


def test_a_deep_comb():
    sequences = [([0] * (n + 1), [1, 2]) for n in range(40)]
    tree = of_sequences(sequences)
    check_tree(tree, sequences)
    assert len(tree) == 40 + 2 * 40


@pytest.mark.parametrize("kind", [tuple, np.array, torch.tensor, np.uint16, torch.int32])
def test_kinds_of_ids(kind):
    pair = random_pairs(0, 1)[0]
    convert = kind
    if kind is np.uint16:
        convert = lambda x: np.array(x, np.uint16)  # noqa: E731
    elif kind is torch.int32:
        convert = lambda x: torch.tensor(x, dtype=torch.int32)  # noqa: E731
    check_tree(of_pair(*map(convert, pair)), pair_sequences([pair]))
    assert trees.ids("x", [np.int64(3)]).tolist() == [3]


EMPTY, NO_INTEGERS = "expected at least one token, got none", "expected token ids, integers, got"
BAD = [
    ("prompt", lambda: of_pair([], [1], [1]), ValueError, EMPTY),
    ("chosen", lambda: of_pair([1], [], [1]), ValueError, EMPTY),
    ("rejected", lambda: of_pair([1], [1], []), ValueError, EMPTY),
    ("prompt", lambda: of_pair("ab", [1], [1]), TypeError, "expected a list of token ids, got str"),
    ("chosen[0]", lambda: of_pair([1], [1.5], [1]), TypeError, "an int, got float"),
    ("rejected[1]", lambda: of_pair([1], [1], [2, True]), TypeError, "an int, got bool"),
    ("rejected[0]", lambda: of_pair([1], [1], ["a"]), TypeError, "an int, got str"),
    ("chosen[1]", lambda: of_pair([1], [3, -100], [1]), ValueError, "of at least 0, got -100"),
    ("prompt", lambda: of_pair(torch.ones(2), [1], [1]), TypeError, f"{NO_INTEGERS} torch.float"),
    ("prompt", lambda: of_pair(np.ones(2, bool), [1], [1]), TypeError, f"{NO_INTEGERS} bool"),
    ("prompt", lambda: of_pair(np.ones((2, 1), int), [1], [1]), ValueError, "[n], got [2, 1]"),
    ("responses", lambda: of_responses([1], []), ValueError, "expected at least one, got none"),
    ("responses[1]", lambda: of_responses([1], [[1], []]), ValueError, EMPTY),
    ("sequences", lambda: of_sequences([]), ValueError, "expected at least one, got none"),
    ("sequences[0][1]", lambda: of_sequences([([1], [])]), ValueError, EMPTY),
    ("sequences[0][0]", lambda: of_sequences([([], [1])]), ValueError, EMPTY),
]  # fmt: skip


@pytest.mark.parametrize("i", range(len(BAD)), ids=lambda i: f"{BAD[i][0]}-{i}")
def test_bad_ids_are_named(i):
    name, call, error, message = BAD[i]
    with pytest.raises(error, match="^" + re.escape(f"{name}: ") + ".*" + re.escape(message)):
        call()
