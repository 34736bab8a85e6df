"""Random shapes, strides, dtypes and options against the float64 oracle."""

import pytest
import torch

from ridgeline.testing import (
    assert_matches,
    implementations,
    merge_case,
    paged_case,
    run,
    tied_case,
)
from ridgeline.testing.generate import FP8, KERNEL_DTYPES
from ridgeline.testing.run import threads

CASES = 100  # for each implementation and operation; each implementation gets seeds of its own
SEEDS = [
    pytest.param(impl, 1000 * n + seed, id=f"{impl}-{1000 * n + seed}")
    for n, impl in enumerate(implementations())
    for seed in range(CASES)
]


@pytest.mark.parametrize(("implementation", "seed"), SEEDS)
def test_paged_decode(implementation: str, seed: int) -> None:
    case = paged_case(seed)
    with threads(2 if seed % 4 == 0 else 1):
        out, lse = run(case, implementation)
    assert_matches(case, out, lse)


@pytest.mark.parametrize(("implementation", "seed"), SEEDS)
def test_tied_decode(implementation: str, seed: int) -> None:
    case = tied_case(seed)
    with threads(2 if seed % 4 == 0 else 1):
        out, lse = run(case, implementation)
    assert_matches(case, out, lse)


@pytest.mark.parametrize("seed", range(500))
def test_merge(seed: int) -> None:
    case = merge_case(seed)
    assert_matches(case, *run(case))


@pytest.mark.parametrize("make", [paged_case, tied_case])
@pytest.mark.parametrize("seed", range(100))
def test_reference_in_float64(make, seed: int) -> None:
    case = make(seed, dtype=torch.float64)
    out, lse = run(case, "reference")
    assert out.dtype == lse.dtype == torch.float64
    assert_matches(case, out, lse)


@pytest.mark.parametrize("make", [paged_case, tied_case])
@pytest.mark.parametrize("seed", range(100))
def test_reference_of_fp8_caches(make, seed: int) -> None:
    case = make(seed, dtypes=[*KERNEL_DTYPES, torch.float64], cache_dtype=FP8)
    assert_matches(case, *run(case, "reference"))


@pytest.mark.parametrize("make", [paged_case, tied_case])
@pytest.mark.parametrize("seed", range(20))
def test_auto(make, seed: int) -> None:
    case = make(seed)
    assert_matches(case, *run(case, "auto"))
