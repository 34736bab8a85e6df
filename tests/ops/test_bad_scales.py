"""Scales of FP8 caches: wrong types, shapes and values name the scale."""

import math
from dataclasses import replace

import pytest
import torch

from ridgeline.testing import paged_case, run, tied_case
from ridgeline.testing.cases import DecodeCase
from ridgeline.testing.generate import FP8

FP8_CASE = {"cache_dtype": FP8, "lengths": [9, 4], "kv_heads": 2, "dim": 16, "strides": False}
SCALES = [
    (paged_case, "k_scale", "k_cache"),
    (paged_case, "v_scale", "v_cache"),
    (tied_case, "state_scale", "state_cache"),
]


def case_and_cache(make, cache: str) -> tuple[DecodeCase, torch.Tensor]:
    extra = {"value_dim": 16, "window": None} if make is paged_case else {"nope_dim": 16}
    case = make(0, **FP8_CASE, **extra)
    return case, getattr(case, cache)


@pytest.mark.parametrize(("make", "name", "cache"), SCALES, ids=[row[1] for row in SCALES])
@pytest.mark.parametrize(
    ("scale", "error"),
    [
        (math.nan, ValueError),
        (math.inf, ValueError),
        (True, TypeError),
        ("1", TypeError),
        (torch.tensor(math.nan), ValueError),
        (torch.tensor([0.5, math.inf]), ValueError),
        (torch.tensor([0.5, 0.5, 0.5]), ValueError),
        (torch.tensor([0.5, 0.5], dtype=torch.float64), TypeError),
        (torch.ones(2, 2), ValueError),
        (torch.ones(2, device="meta"), ValueError),
    ],
    ids=str,
)
def test_scales(make, name: str, cache: str, scale: object, error: type[Exception]) -> None:
    case, _ = case_and_cache(make, cache)
    with pytest.raises(error, match=f"{name}: expected"):
        run(replace(case, **{name: scale}), "reference")


@pytest.mark.parametrize(("make", "name", "cache"), SCALES, ids=[row[1] for row in SCALES])
def test_block_scales(make, name: str, cache: str) -> None:
    case, x = case_and_cache(make, cache)
    good = torch.full((*x.shape[:3], 4), 0.5)
    run(replace(case, **{name: good}), "reference")
    for bad in (good[1:], good[..., :3], good[..., :0], good[:, :, :1]):
        with pytest.raises(ValueError, match=rf"{name}.*: expected"):
            run(replace(case, **{name: bad}), "reference")
    nan = good.clone()
    nan[case.block_table[0, 0], 0] = torch.nan
    with pytest.raises(ValueError, match=f"{name}: expected finite"):
        run(replace(case, **{name: nan}), "reference")


def test_unused_block_scales_may_be_garbage() -> None:
    case, x = case_and_cache(tied_case, "state_cache")
    good = torch.full((*x.shape[:3], 4), 0.5)
    garbage = torch.full_like(good, torch.nan)
    for b, length in enumerate(case.cache_seqlens.tolist()):
        for t in range(length):
            garbage[case.block_table[b, t // x.shape[1]], t % x.shape[1]] = 0.5
    clean, dirty = (run(replace(case, state_scale=s), "reference") for s in (good, garbage))
    assert torch.equal(clean[0], dirty[0])


@pytest.mark.parametrize("make", [paged_case, tied_case])
def test_cpu_names_the_dtype_it_lacks(make) -> None:
    with pytest.raises(ValueError, match=r"impl='cpu': .*float8_e4m3fn"):
        run(make(0, **FP8_CASE), "cpu")
