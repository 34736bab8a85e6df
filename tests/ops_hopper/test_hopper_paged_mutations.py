"""Every synchronising line of the producer of pages is needed, and planted bugs are found."""

from collections.abc import Iterator
from functools import cache

import pytest
import torch
from hopper_paged_cases import plain, run
from hopper_planting import planted, problem

from ridgeline.ops.common.triton import INTERPRETED
from ridgeline.testing import PagedCase, assert_matches, poisoned

pytestmark = pytest.mark.skipif(not INTERPRETED, reason="mutations are for the interpreter")


@cache
def case() -> PagedCase:
    """Several items a program, more tiles than stages, two tiles of columns, values to change."""
    made = plain(0, lengths=[150, 20, 70], query_len=66, dim=48, dtype=torch.bfloat16)
    return poisoned(made, torch.nan, 2147480000)


def check(seed: int) -> None:
    assert_matches(case(), *run(case(), seed, block_n=32, stages=2, pack=1, consumers=2))


def test_no_synchronising_line_is_idle() -> None:
    from ridgeline.testing.gluon.mutations import found_by, outcome

    # Those of consumers are the same as without pages.
    found = [m for m in found_by(check) if m.where.startswith(("pages.py", "ring.py"))]
    assert len(found) >= 14
    check(1)
    for seeds in (range(5), range(5, 20)):
        found = [m for m in found if outcome(check, m, seeds).caught is None]
    assert not [str(mutation) for mutation in found]


# Module, what is right, what is wrong.
BUGS = {
    # Without pages rows that are NaN are computed again, and this costs time alone.
    "division-by-nothing": ("results", "gl.where(total == 0.0, 1.0, total)", "total"),
    "values-past-the-end": ("pages", "(row >= low) & (row < high)", "row >= low"),
    "values-behind-the-window": ("pages", "(row >= low) & (row < high)", "row < high"),
    "rows-of-a-group-forgotten": ("pages", "first + GROUP > high", "first > high"),
    "only-ends-are-cut": ("pages", "(low > 0) | (high < work.BLOCK_N)", "high < work.BLOCK_N"),
    "second-columns-unchanged": ("pages", "zero_outside(ring.x1", "zero_outside(ring.x0"),
    "one-page-for-all-parts": ("pages", "desc1, ids[i]", "desc1, ids[0]"),
    "page-from-its-start": ("pages", "% pages.PAGE_SIZE", "* 0"),
    "first-page-unread": ("pages", "token + ROWS > first", "token > first"),
    "last-page-unread": ("pages", "token < item.len_k", "token + ROWS < item.len_k"),
    "parts-in-one-place": ("ring", "tile.slice(PART * ROWS", "tile.slice(0 * ROWS"),
    "lengths-of-the-first": ("work", "gl.load(self.cu_k + b", "gl.load(self.cu_k + 0 * b"),
    "window-of-the-last-query": ("work", "item.len_k - item.len_q - self.left", "item.len_k"),
}


def cases() -> Iterator[tuple]:
    half = {"dtype": torch.bfloat16, "lengths": [150, 70, 5], "query_len": 20}
    for made in (
        plain(1, **half, dim=48, window=(30, None), page_size=32),
        plain(2, **half, dim=16, causal=False, page_size=128, window=(40, None)),
        plain(3, **half, dim=16),
    ):
        yield poisoned(made, torch.nan, -7), {"block_n": 64}


@pytest.fixture(scope="module")
def made() -> list[tuple]:
    return list(cases())


def test_nothing_is_found_in_what_is_right(made: list[tuple]) -> None:
    assert problem(made, run) is None


@pytest.mark.parametrize("name", BUGS)
def test_a_bug_is_found(name: str, made: list[tuple]) -> None:
    with planted(*BUGS[name]):
        assert problem(made, run) is not None
