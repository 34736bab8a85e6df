"""Random shapes, strides and options against the float64 oracle, and planted poison."""

import pytest
import torch
from triton_cases import DTYPES, HALF, MAKERS, small

from ridgeline.ops.common.triton import INTERPRETED
from ridgeline.testing import assert_matches, merge_case, paged_case, poisoned, run
from ridgeline.testing.poison import ENTRIES, VALUES
from ridgeline.testing.run import triton_implementations
from ridgeline.testing.suite import cases

CASES = 12  # of each operation


def equal(a, b) -> bool:
    return all(torch.equal(x, y) and not x.isnan().any() for x, y in zip(a, b, strict=True))


@pytest.mark.parametrize("seed", range(CASES))
@pytest.mark.parametrize("make", MAKERS)
def test_any_shape(make, seed: int) -> None:
    """Few heads and short sequences, which cost the interpreter least; everything else is drawn."""
    heads = {"kv_heads": 1 + seed % 2, "group": (1, 3, 8, 20)[seed % 4]}
    lengths = [(17, 3), (70, 0), (150,), (1, 2)][seed % 4]
    case = make(100 + seed, DTYPES, **heads, lengths=lengths)
    assert_matches(case, *run(case, triton_implementations()[seed // 4 % 2]))


@pytest.mark.parametrize("seed", range(24))
def test_merge(seed: int) -> None:
    case = merge_case(seed, dtype=(HALF, torch.float32, torch.bfloat16)[seed % 3])
    assert_matches(case, *run(case, "triton"))


@pytest.mark.parametrize(("value", "entry"), [(VALUES[0], ENTRIES[0]), (VALUES[2], ENTRIES[1])])
@pytest.mark.parametrize("make", MAKERS)
def test_unread_memory_is_garbage(make, value: float, entry: int, triton_impl: str) -> None:
    case = small(make, 1, **({"window": None} if make is paged_case else {}))
    assert equal(run(poisoned(case, value, entry), triton_impl), run(case, triton_impl))


@pytest.mark.parametrize("left", [0, 20])
def test_pages_behind_the_window_are_garbage(left: int, triton_impl: str) -> None:
    case = small(paged_case, 1, lengths=[70, 3], window=(left, None))
    assert equal(run(poisoned(case, torch.nan, ENTRIES[0]), triton_impl), run(case, triton_impl))


@pytest.mark.parametrize("make", MAKERS)
@pytest.mark.parametrize("num_splits", [0, 1, 3])
def test_every_output_is_written(make, num_splits: int) -> None:
    case = small(make, 0, num_splits=num_splits)
    assert equal(run(case, "triton-16", fill=torch.nan), run(case, "triton-16", fill=0.0))


@pytest.mark.parametrize("make", MAKERS)
def test_prefetch_changes_no_bit(make) -> None:
    case = small(make, 3)
    off = run(case, "triton-16", prefetch=0)
    assert equal(run(case, "triton-16", prefetch=2), off)


@pytest.mark.parametrize(
    ("op", "impl", "part"),
    [("paged_decode", "triton-16", 3), ("tied_decode", "triton-16", 3), ("attention", "triton", 7)],
)
def test_the_suite(op, impl: str, part: int) -> None:
    """The part that the interpreter has time for; all of it on a GPU."""
    found = cases(op, fp8=True, half=HALF, double=False)
    for case in found[:: part if INTERPRETED else 1]:
        assert_matches(case, *run(case, impl))
