"""Random shapes, strides and options against the float64 oracle, and planted poison."""

from dataclasses import replace

import pytest
import torch
from triton_cases import DTYPES, HALF, MAKERS, small

from ridgeline.testing import assert_matches, merge_case, paged_case, poisoned, problem, run
from ridgeline.testing.cases import MergeCase
from ridgeline.testing.generate import FP8
from ridgeline.testing.poison import ENTRIES, VALUES

CASES = 12  # of each kind, implementation and operation


def equal(a, b) -> bool:
    return all(torch.equal(x, y) and not x.isnan().any() for x, y in zip(a, b, strict=True))


@pytest.mark.parametrize("seed", range(CASES))
@pytest.mark.parametrize("make", MAKERS)
def test_any_shape(make, seed: int, triton_impl: str) -> None:
    """Few heads and short sequences, which cost the interpreter least; everything else is drawn."""
    heads = {"kv_heads": 1 + seed % 2, "group": (1, 3, 8, 20)[seed % 4]}
    lengths = [(17, 3), (70, 0, 33), (150,), (1, 2)][seed % 4]
    case = make(100 + seed, DTYPES, **heads, lengths=lengths)
    assert_matches(case, *run(case, triton_impl))


@pytest.mark.parametrize("kind", ["number", "head", "block", 1])
@pytest.mark.parametrize("make", MAKERS)
def test_fp8_caches(make, kind: str | int, triton_impl: str) -> None:
    for seed in range(2):
        case = small(make, seed, cache_dtype=FP8, scale_kind=kind, lengths=[33, 5])
        assert_matches(case, *run(case, triton_impl))


@pytest.mark.parametrize("seed", range(60))
def test_merge(seed: int) -> None:
    case = merge_case(seed, dtype=(HALF, torch.float32, torch.bfloat16)[seed % 3])
    assert_matches(case, *run(case, "triton"))


@pytest.mark.parametrize("entry", ENTRIES)
@pytest.mark.parametrize("value", VALUES)
@pytest.mark.parametrize("make", MAKERS)
def test_unread_memory_is_garbage(make, value: float, entry: int, triton_impl: str) -> None:
    for seed in range(2):
        case = small(make, seed)
        assert equal(run(poisoned(case, value, entry), triton_impl), run(case, triton_impl))


@pytest.mark.parametrize("left", [0, 3, 20])
def test_pages_behind_the_window_are_garbage(left: int, triton_impl: str) -> None:
    case = small(paged_case, 1, lengths=[70, 33, 8, 3], window=(left, None))
    assert equal(run(poisoned(case, torch.nan, ENTRIES[0]), triton_impl), run(case, triton_impl))


@pytest.mark.parametrize("make", MAKERS)
def test_every_output_is_written(make) -> None:
    for seed in range(3):
        case = small(make, seed, num_splits=seed)
        assert equal(run(case, "triton-16", fill=torch.nan), run(case, "triton-16", fill=0.0))


@pytest.mark.parametrize("make", MAKERS)
def test_prefetch_changes_no_bit(make) -> None:
    case = small(make, 3)
    off = run(case, "triton-16", prefetch=0)
    assert all(equal(run(case, "triton-16", prefetch=tiles), off) for tiles in (1, 2, 50))


@pytest.mark.parametrize("op", ["paged_decode", "tied_decode", "merge"])
def test_the_suite_finds_nothing(op) -> None:
    assert problem(of_interpreter, op, fp8=True, half=HALF) is None


def of_interpreter(case):
    """Merging float64 is not Triton's: such cases run in float32."""
    if isinstance(case, MergeCase) and case.lses.dtype == torch.float64:
        exact = run(case)
        case = replace(case, outs=case.outs.float(), lses=case.lses.float())
        assert_matches(case, *run(case, "triton"))
        return exact
    return run(case, "triton-16")
