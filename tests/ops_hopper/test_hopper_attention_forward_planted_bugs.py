"""A few cases that find bugs planted in the forward kernel, and none in what is right."""

from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch
from hopper_attention_cases import plain, run
from hopper_planting import planted, problem

from ridgeline.ops.common.triton import INTERPRETED

pytestmark = pytest.mark.skipif(not INTERPRETED, reason="bugs are for the interpreter")

# Module, what is right, what is wrong.
BUGS = {
    "causal-top-left": ("consumer", "position = item.len_k - item.len_q + (", "position = ("),
    "rows-of-the-first-consumer": ("consumer", "item.begin + C * ROWS", "item.begin"),
    "sums-not-rescaled": (
        "consumer",
        "l = l * gl.convert_layout(alpha",
        "l = l + 0 * gl.convert_layout(alpha",
    ),
    "outputs-not-rescaled": ("values", "(found[i] * by_row,)", "(found[i],)"),
    "nothing-seen-is-nan": (
        "consumer",
        'gl.where(m_new == float("-inf"), 0.0, m_new)',
        "m_new",
    ),
    "rows-past-the-end": ("results", "row < item.len_q * work.PACK", "row >= 0"),
    "columns-past-the-end": ("results", "(d < self.VALUE_DIM)", "(d >= 0)"),
    "unmasked": ("consumer", "item.masked, 1), item.count", "item.masked, 1), item.count - 1"),
    "values-of-the-next-tile": (
        "values",
        "values.tile(n, i), os[i]",
        "values.tile(n + 1, i), os[i]",
    ),
    "one-head-reads-all": (
        "work",
        "return item.entity * self.PACK // self.GROUP",
        "return item.entity * 0",
    ),
    "last-key-unseen": ("work", "position[:, None] < high", "position[:, None] + 1 < high"),
    "own-key-unseen": ("work", "low[None, :] <= position", "low[None, :] < position"),
    "one-masked-too-few": (
        "work",
        "masked = count - (full_end - full_begin)",
        "masked = count - (full_end - full_begin) - 1",
    ),
    "jump-late": ("work", "gl.where(j < item.jump, 0", "gl.where(j <= item.jump, 0"),
    "listed-off-by-one": ("work", "back = self.capacity + 1 -", "back = self.capacity + 0 -"),
    "last-item-twice": ("work", "programs - 1 - p", "programs - 2 - p"),
    "first-sequence-alone": ("work", "block = (t - (start", "block = (t - 0 * (start"),
    "queries-of-the-next-token": (
        "forward",
        "item.begin // work.PACK",
        "item.begin // work.PACK + 1",
    ),
    "keys-where-queries-start": (
        "forward",
        "row = item.start_k.to(gl.int32)",
        "row = item.start_q.to(gl.int32)",
    ),
    "heads-not-packed": ("forward", "reader = item.entity * work.PACK", "reader = item.entity"),
    "second-columns-are-the-first": ("ring", "row, head, FIRST, bar", "row, head, 0, bar"),
}


def cases() -> Iterator[tuple]:
    half = {"dtype": torch.bfloat16, "group": 2, "kv_heads": 2}
    packed = half | {"packed": True, "lengths": [(70, 5), (5, 90), (0, 9), (66, 66)], "dim": 24}
    yield plain(0, **packed, causal=True), {"block_n": 32}
    yield plain(1, **packed | {"lengths": [(5, 5), (90, 90)]}, tree="nested"), {"block_n": 32}
    chunk = plain(1, **half, lengths=[(20, 110)], dim=16, tree="any")
    document = chunk.subtree_end.new_full((1, 110), 110)
    yield replace(chunk, subtree_end=document), {"block_n": 32}
    yield plain(2, **half, dim=48, lengths=[(90, 100)], window=(20, 30)), {"block_n": 32}
    yield plain(3, **half, dim=16, lengths=[(33, 60)], causal=True), {"block_n": 32, "pack": 2}


@pytest.fixture(scope="module")
def made() -> list[tuple]:
    return list(cases())


def test_nothing_is_found_in_what_is_right(made: list[tuple]) -> None:
    assert problem(made, run) is None


@pytest.mark.parametrize("name", BUGS)
def test_a_bug_is_found(name: str, made: list[tuple]) -> None:
    with planted(*BUGS[name]):
        assert problem(made, run) is not None
