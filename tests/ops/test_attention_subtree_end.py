"""``ridgeline.subtree_end``: every layout against the sequences that it stands for."""

import re

import pytest
import torch
from trees import layout_problem, random_segments, seen_by

from ridgeline import subtree_end
from ridgeline.ops.attention.subtree_end import Layout

INT32 = torch.int32


def of(segments) -> Layout:
    parents, lengths = zip(*segments, strict=True)
    return subtree_end.of_tree(parents, lengths)


@pytest.mark.parametrize("seed", range(100))
def test_tree(seed: int) -> None:
    segments = random_segments(seed)
    layout = of(segments)
    assert layout_problem(layout, segments) is None
    assert layout.subtree_end.dtype == INT32
    assert layout.position_ids.dtype == torch.int64
    subtree_end.check(layout.subtree_end)


@pytest.mark.parametrize("lengths", [[], [3], [2, 0, 5, 1], [0, 0]], ids=str)
def test_documents(lengths: list[int]) -> None:
    layout = subtree_end.of_documents(lengths)
    assert layout_problem(layout, [(-1, n) for n in lengths]) is None


def test_pair_by_hand() -> None:
    """prompt 0 1 2 | chosen 3 4 | the last prompt token again 5 | rejected 6."""
    layout = subtree_end.of_pair(3, 2, 1)
    assert layout.subtree_end.tolist() == [7, 7, 5, 5, 5, 7, 7]
    assert layout.position_ids.tolist() == [0, 1, 2, 3, 4, 2, 3]


@pytest.mark.parametrize("sizes", [(1, 1, 1), (5, 3, 4), (1, 0, 7), (9, 2, 0), (2, 0, 0)], ids=str)
def test_pair(sizes: tuple[int, int, int]) -> None:
    """Each response sees the prompt and itself; a repeated token stands for the last of it."""
    prompt, chosen, rejected = sizes
    layout = subtree_end.of_pair(*sizes)
    segments = [(-1, prompt - 1), (0, 1 + chosen), (0, 1 + rejected)]
    assert layout_problem(layout, segments) is None
    want = [*range(prompt + chosen), *range(prompt - 1, prompt + rejected)]
    assert layout.position_ids.tolist() == want


@pytest.mark.parametrize("responses", [[], [4], [3, 0, 5], [1] * 8], ids=str)
@pytest.mark.parametrize("prompt", [1, 2, 6])
def test_responses(prompt: int, responses: list[int]) -> None:
    layout = subtree_end.of_responses(prompt, responses)
    segments = [(-1, prompt - 1), *((0, 1 + n) for n in responses or [0])]
    assert layout_problem(layout, segments) is None
    assert len(layout.subtree_end) == prompt + sum(responses) + max(len(responses), 1) - 1


@pytest.mark.parametrize("seed", range(20))
def test_concat_keeps_each_row_to_itself(seed: int) -> None:
    rows = [random_segments(100 * seed + n) for n in range(seed % 4)]
    joined = []
    for row in rows:
        joined += [(p + len(joined) if p >= 0 else -1, n) for p, n in row]
    layout = subtree_end.concat([of(row) for row in rows])
    assert layout_problem(layout, joined) is None
    subtree_end.check(layout.subtree_end)


def test_a_row_of_two_pairs_counts_from_its_own_start() -> None:
    """Packed input counts within each pair instead."""
    first, second = subtree_end.of_pair(4, 2, 3), subtree_end.of_pair(2, 5, 1)
    row = subtree_end.concat([first, second]).subtree_end
    n = len(first.subtree_end)
    assert torch.equal(row[:n], first.subtree_end)
    assert torch.equal(row[n:] - n, second.subtree_end)
    cu_seqlens = torch.tensor([0, n, len(row)], dtype=INT32)
    packed = torch.cat([first.subtree_end, second.subtree_end])
    subtree_end.check(packed, cu_seqlens)
    with pytest.raises(ValueError, match="subtree_end"):
        subtree_end.check(packed)


def test_what_is_no_tree_is_refused_unless_asked() -> None:
    """A band: attention takes it, no tree has it."""
    band = torch.tensor([2, 3, 4, 4], dtype=INT32)
    subtree_end.check(band, nested=False)
    with pytest.raises(ValueError, match=r"subtree_end: .*nested.* 3 at index 1 of sequence 0"):
        subtree_end.check(band)


@pytest.mark.parametrize("ends", [[4, 2, 4, 4], [9, 7, 3, 2**31 - 1]], ids=str)
def test_an_end_past_the_row_is_its_end(ends: list[int]) -> None:
    subtree_end.check(torch.tensor(ends, dtype=INT32))


def test_check_of_batches() -> None:
    good, bad = [4, 2, 4, 4], [3, 4, 4, 4]
    subtree_end.check(torch.tensor([good, good], dtype=INT32))
    with pytest.raises(ValueError, match="index 1 of sequence 1"):
        subtree_end.check(torch.tensor([good, bad], dtype=INT32))
    subtree_end.check(torch.zeros(3, 0, dtype=INT32))


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda s: s.of_documents([1, -1]), ValueError, "lengths[1]: expected at least 0"),
        (lambda s: s.of_documents([1.5]), TypeError, "lengths[0]: expected an int"),
        (lambda s: s.of_documents([2**31 - 1, 1]), ValueError, "sum(lengths): expected at most"),
        (lambda s: s.of_pair(0, 1, 1), ValueError, "prompt: expected at least 1"),
        (lambda s: s.of_pair(1, -1, 1), ValueError, "chosen: expected at least 0"),
        (lambda s: s.of_pair(1, 1, True), TypeError, "rejected: expected an int"),
        (lambda s: s.of_responses(1, [1, "2"]), TypeError, "responses[1]: expected an int"),
        (lambda s: s.of_tree([-1], [1, 2]), ValueError, "parents: expected one for each of 2"),
        (lambda s: s.of_tree([0], [1]), ValueError, "parents[0]: expected -1 or one of []"),
        (lambda s: s.of_tree([-1, -2], [1, 1]), ValueError, "parents[1]: expected at least -1"),
        (
            lambda s: s.of_tree([-1, 0, 0, 1], [1, 1, 1, 1]),
            ValueError,
            "parents[3]: expected -1 or one of [0, 2] (depth first), got 1",
        ),
        (lambda s: s.check([1]), TypeError, "subtree_end: expected a torch.Tensor"),
        (lambda s: s.check(torch.ones(1).long()), TypeError, "subtree_end: expected dtype int32"),
        (
            lambda s: s.check(torch.ones((), dtype=INT32)),
            ValueError,
            "subtree_end: expected shape [L_k] or [B, L_k], got []",
        ),
        (
            lambda s: s.check(torch.tensor([[1, 2], [2, 1]], dtype=INT32)),
            ValueError,
            "subtree_end: expected more than its own index (1), got 1 at [1, 1]",
        ),
        (
            lambda s: s.check(torch.ones(2, dtype=INT32), torch.tensor([0, 3], dtype=INT32)),
            ValueError,
            "cu_seqlens_k: expected to rise from 0 to 2",
        ),
    ],
)
def test_bad_input(call, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=re.escape(message)):
        call(subtree_end)


def test_the_helper_of_these_tests_sees_what_it_should() -> None:
    """A root of two tokens, a child of one, a grandchild of one, another child of one."""
    segments = [(-1, 2), (0, 1), (1, 1), (0, 1)]
    assert seen_by(segments) == [[0], [0, 1], [0, 1, 2], [0, 1, 2, 3], [0, 1, 4]]
