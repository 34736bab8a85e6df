"""A few cases that find bugs planted in the backward kernels, and none in what is right."""

from collections.abc import Iterator
from unittest import mock

import pytest
from hopper_attention_backward_cases import SHARED, Replayed, gradients, small
from hopper_planting import planted, problem

from ridgeline.ops.attention.hopper import backward
from ridgeline.ops.common.triton import INTERPRETED

pytestmark = pytest.mark.skipif(not INTERPRETED, reason="bugs are for the interpreter")

# Module, what is right, what is wrong.
BUGS = {
    "delta-dropped": ("backward_dkdv", "(dp - d.numbers_of(n, rows)[None, :])", "dp"),
    "slope-dropped": ("backward_dkdv", "ds * cap_slope(x, scores.softcap)", "ds * 1.0"),
    "unmasked": ("backward_dkdv", 'gl.where(seen, x, float("-inf"))', "x"),
    "own-key-unseen": ("backward_dkdv", "low[:, None] <= position", "low[:, None] < position"),
    "last-row-sees": ("backward_dkdv", "position[None, :] < high", "position[None, :] <= high"),
    "scale-dropped": (
        "backward_dkdv",
        "store_columns(dk, dks, scale,",
        "store_columns(dk, dks, 1.0,",
    ),
    "added-to-the-first-head": (
        "backward_dkdv",
        "(item.head * work.GROUP + member) * lines",
        "(item.head * work.GROUP) * lines",
    ),
    "heads-not-grouped": (
        "backward_dkdv",
        "reader = item.head * work.GROUP + member",
        "reader = item.head + member",
    ),
    "lines-of-the-first-sequence": (
        "backward_work",
        "line.to(gl.int32) * self.BLOCK_M",
        "line.to(gl.int32) * 0",
    ),
    "last-rows-left": (
        "backward_work",
        "return count // self.BLOCK_M, row",
        "return count // self.BLOCK_M - 1, row",
    ),
    "whole-tiles-masked-again": ("backward_work", "row == item.full_begin,", "row < 0,"),
    "tree-of-the-last-end": ("backward_work", "full_high = gl.min(", "full_high = gl.max("),
    "items-of-the-first-head": ("work", "s * section + t % here", "s * section + t * 0"),
    "first-columns-of-dq-alone": ("backward_dkdv", "[line, c * WIDTH]", "[line, 0]"),
    "keys-past-the-end": ("backward_products", "(row < count)", "(row >= 0)"),
    "columns-past-the-end": ("backward_products", "(d < DIM)", "(d >= 0)"),
    "ordered-delta-dropped": ("backward_dq", "(dp - delta[:, None])", "dp"),
    "ordered-unmasked": (
        "backward_dq",
        "work.seen(item, j, position, s_layout), ds, 0.0)",
        "shift[:, None] < 9e9, ds, 0.0)",
    ),
    "ordered-last-tile-left": (
        "backward_dq",
        "(item.masked, 1), item.count)",
        "(item.masked, 1), item.count - 1)",
    ),
    "ordered-numbers-of-the-first-head": (
        "backward_dq",
        "item.entity.to(gl.int64) * self.lines",
        "0",
    ),
    "ordered-other-tiles-of-numbers": ("backward_dq", "tile * self.BLOCK + row", "tile * 32 + row"),
}


def cases() -> Iterator[tuple]:
    """Those first that take least."""
    yield small(1, dim=96, lengths=[(33, 40)], softmax_scale=3.0), {}
    long = small(2, dim=16, value_dim=16, lengths=[(20, 300)])
    yield long, {"deterministic": True}
    narrow = {"dim": 16, "value_dim": 16, "lengths": [(150, 150)]}
    yield small(3, **narrow), SHARED
    yield small(4, tree="any", **narrow), SHARED
    packed = {"packed": True, "lengths": [(70, 80), (66, 66)], "dim": 24, "value_dim": 40}
    packed |= {"kv_heads": 2, "group": 2, "softcap": 0.5, "magnitude": 3.0, "window": (50, None)}
    for deterministic in (False, True):
        yield small(0, **packed), SHARED | {"deterministic": deterministic}


@pytest.fixture(scope="module")
def made() -> Iterator[list[tuple]]:
    with mock.patch.object(backward, "prepare_kernel", Replayed()):
        yield list(cases())


def test_nothing_is_found_in_what_is_right(made: list[tuple]) -> None:
    assert problem(made, gradients) is None


@pytest.mark.parametrize("name", BUGS)
def test_a_bug_is_found(name: str, made: list[tuple]) -> None:
    with planted(*BUGS[name]):
        found = problem(made, gradients)
    assert found is not None
    assert "SyntaxError" not in found
