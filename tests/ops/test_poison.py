"""Garbage where no query looks changes no bit, and every element of the outputs is written."""

import pytest
import torch

from ridgeline.testing import paged_case, poisoned, run, tied_case
from ridgeline.testing.generate import FP8
from ridgeline.testing.poison import ENTRIES, VALUES

MAKERS = [paged_case, tied_case]


def assert_same_bits(a, b) -> None:
    for name, x, y in zip(("out", "lse"), a, b, strict=True):
        assert not x.isnan().any(), f"{name} has NaN"
        assert torch.equal(x, y), f"{name} differs in {int((x != y).sum())} of {x.numel()} elements"


@pytest.mark.parametrize("entry", ENTRIES)
@pytest.mark.parametrize("value", VALUES)
@pytest.mark.parametrize("make", MAKERS)
def test_unread_memory_is_garbage(make, value: float, entry: int, impl: str) -> None:
    for seed in range(30):
        case = make(seed)
        assert_same_bits(run(poisoned(case, value, entry), impl), run(case, impl))


@pytest.mark.parametrize("left", [0, 3, 8, 20])
@pytest.mark.parametrize("value", VALUES)
def test_pages_behind_the_window_are_garbage(left: int, value: float, impl: str) -> None:
    case = paged_case(1, lengths=[70, 33, 8, 3], page_size=8, query_len=2, window=(left, None))
    assert_same_bits(run(poisoned(case, value, ENTRIES[0]), impl), run(case, impl))


@pytest.mark.parametrize("make", MAKERS)
def test_unread_fp8_memory_is_nan(make) -> None:
    for seed in range(20):
        case = make(seed, cache_dtype=FP8)
        clean = run(case, "reference")
        assert_same_bits(run(poisoned(case, torch.nan, ENTRIES[0]), "reference"), clean)


@pytest.mark.parametrize("make", MAKERS)
def test_every_output_is_written(make, cpu_impl: str) -> None:
    for seed in range(40):
        case = make(seed)
        assert_same_bits(run(case, cpu_impl, fill=torch.nan), run(case, cpu_impl, fill=0.0))
