"""The oracle against results computed by hand, and its budget against errors made on purpose."""

import math
from dataclasses import replace

import pytest
import torch

from ridgeline.testing import (
    MergeCase,
    PagedCase,
    TiedCase,
    expected,
    paged_case,
    run,
    tied_case,
    violations,
)
from ridgeline.testing.naive import naive
from ridgeline.testing.tolerance import bands

INT32 = torch.int32
THREE = torch.tensor([1.0, 2.0, 4.0])


def three_tokens(**options) -> PagedCase:
    """Keys log 1, log 2, log 4 in pages of one token, values 1, 2, 4, two queries of 1."""
    return PagedCase(
        torch.ones(1, 2, 1, 1, dtype=torch.float64),
        THREE.log().double()[[1, 2, 0]].view(3, 1, 1, 1),
        THREE.double()[[1, 2, 0]].view(3, 1, 1, 1),
        torch.tensor([[2, 0, 1]], dtype=INT32),
        torch.tensor([3], dtype=INT32),
        **options,
    )


@pytest.mark.parametrize(
    ("options", "seen"),
    [
        ({}, ([1, 2], [1, 2, 4])),
        ({"causal": False}, ([1, 2, 4], [1, 2, 4])),
        ({"window": (0, None)}, ([2], [4])),
        ({"window": (1, 0)}, ([1, 2], [2, 4])),
        ({"causal": False, "window": (0, 1)}, ([2, 4], [4])),
        ({"causal": False, "window": (None, 0)}, ([1, 2], [1, 2, 4])),
    ],
    ids=str,
)
def test_paged_decode_by_hand(options: dict, seen: tuple[list[int], list[int]]) -> None:
    """Weights are proportional to the values: the result is the sum of squares over the sum."""
    got = expected(three_tokens(**options))
    for i, values in enumerate(seen):
        assert got.out[0, i].item() == pytest.approx(sum(v * v for v in values) / sum(values))
        assert got.lse[0, i].item() == pytest.approx(math.log(sum(values)))


def test_softcap_and_scale_by_hand() -> None:
    got = expected(three_tokens(softmax_scale=2.0, softcap=0.5))
    e = [math.exp(0.5 * math.tanh(2 * math.log(v) / 0.5)) for v in (1, 2, 4)]
    assert got.lse[0, 1].item() == pytest.approx(math.log(sum(e)))
    want = sum(a * v for a, v in zip(e, (1, 2, 4), strict=True)) / sum(e)
    assert got.out[0, 1].item() == pytest.approx(want)


def test_sequence_shorter_than_the_step_by_hand() -> None:
    got = expected(replace(three_tokens(), cache_seqlens=torch.tensor([1], dtype=INT32)))
    assert got.lse[0, :, 0].tolist() == [-math.inf, 0.0]
    assert got.out[0, :, 0, 0].tolist() == [0.0, 1.0]


def test_tied_decode_by_hand() -> None:
    """One token of state (3, 5) and RoPE key 7; another of state (1, 1) and key 0."""
    case = TiedCase(
        torch.tensor([2.0]).view(1, 1, 1, 1),
        torch.tensor([0.1]).view(1, 1, 1, 1),
        torch.tensor([[3.0, 5.0], [1.0, 1.0]]).view(1, 2, 1, 2),
        torch.tensor([[7.0], [0.0]]).view(1, 2, 1),
        torch.zeros(1, 1, dtype=INT32),
        torch.tensor([2], dtype=INT32),
        softmax_scale=0.5,
    )
    first, second = math.exp(0.5 * (2 * 3 + 0.1 * 7)), math.exp(0.5 * 2)
    p = first / (first + second)
    got = expected(case)
    assert got.out.flatten().tolist() == pytest.approx([3 * p + 1 - p, 5 * p + 1 - p], rel=1e-6)
    assert got.lse.item() == pytest.approx(math.log(first + second))


def test_merge_by_hand() -> None:
    outs = torch.tensor([[1.0], [5.0], [math.nan]])
    got = expected(MergeCase(outs, torch.tensor([0.0, math.log(3), -math.inf])))
    assert got.out.item() == pytest.approx((1 + 3 * 5) / 4)
    assert got.lse.item() == pytest.approx(math.log(4))


@pytest.mark.parametrize("make", [paged_case, tied_case])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["fp32", "fp64"])
def test_small_errors_are_outside_the_budget(make, dtype: torch.dtype) -> None:
    """A few ten units in the last place of the accumulation, in one element, are found."""
    case = make(0, dtype=dtype, lengths=[20, 7], magnitude=1.0, dim=16, **_unmasked(make))
    out, lse = run(case, "reference")
    assert violations(case, out, lse) is None
    step = 200 * torch.finfo(dtype).eps
    wrong = out.clone()
    wrong[1, 0, 0, 3] += step * max(1.0, out.abs().max().item())
    assert "out[1, 0, 0, 3]" in violations(case, wrong, lse)
    wrong = lse.clone()
    wrong[0, 0, 0] += step * max(1.0, lse.abs().max().item())
    assert "lse[0, 0, 0]" in violations(case, out, wrong)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_non_finite_results_are_outside_the_budget(bad: float) -> None:
    case = paged_case(0, lengths=[5])
    out, lse = run(case, "reference")
    for x in (out, lse):
        before = x.flatten()[0].item()
        x.view(-1)[0] = bad
        assert violations(case, out, lse)
        x.view(-1)[0] = before


def test_empty_rows_have_no_budget() -> None:
    case = paged_case(0, lengths=[0], dtype=torch.float32)
    out, lse = run(case, "reference")
    for x, value in ((out, 1e-30), (lse, -1e30)):
        before = x.flatten()[0].item()
        x.view(-1)[0] = value
        assert violations(case, out, lse)
        x.view(-1)[0] = before


def test_bands_are_of_the_size_of_roundings() -> None:
    """For scores of about 1 the band of float32 is below 2e-5 of the largest value."""
    case = paged_case(0, dtype=torch.float32, lengths=[200], magnitude=1.0, dim=128, window=None)
    exact = expected(case)
    out, lse = bands(exact, torch.float32, torch.float32)
    assert (out.amax(-1) < 2e-5 * exact.peak).all()
    assert (lse < 5e-5).all()


@pytest.mark.parametrize("make", [paged_case, tied_case])
def test_naive_of_float64_is_the_oracle(make) -> None:
    """Two ways of writing the same definition agree."""
    for seed in range(20):
        case = make(seed, dtype=torch.float64, magnitude=1.0)
        exact, (out, lse) = expected(case), naive(case)
        torch.testing.assert_close(out, exact.out, rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(lse, exact.lse, rtol=1e-12, atol=1e-12)


def _unmasked(make) -> dict:
    return {"window": None, "causal": False} if make is paged_case else {"causal": False}
