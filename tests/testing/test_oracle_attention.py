"""The oracle of ``attention`` by hand and by autograd, and its budget against errors on purpose."""

import math
from dataclasses import replace

import pytest
import torch

from ridgeline.testing import AttentionCase, attention_case, run, violations
from ridgeline.testing.naive import naive
from ridgeline.testing.oracle_attention import attention, keys_of
from ridgeline.testing.tolerance import gradient_band

THREE = torch.tensor([1.0, 2.0, 4.0], dtype=torch.float64)
GRADIENTS = ("dq", "dk", "dv")


def three_tokens(**options) -> AttentionCase:
    """Keys log 1, log 2, log 4, values 1, 2, 4, three queries of 1; gradients of 1 and 0."""
    ones = torch.ones(1, 3, 1, 1, dtype=torch.float64)
    keys, values = THREE.log().view(1, 3, 1, 1), THREE.view(1, 3, 1, 1)
    return AttentionCase(ones, keys, values, ones, **options)


@pytest.mark.parametrize(
    ("options", "seen"),
    [
        ({}, ([1, 2, 4], [1, 2, 4], [1, 2, 4])),
        ({"causal": True}, ([1], [1, 2], [1, 2, 4])),
        ({"window": (0, None)}, ([1, 2, 4], [2, 4], [4])),
        ({"window": (1, 0)}, ([1], [1, 2], [2, 4])),
        ({"causal": True, "window": (None, 2)}, ([1], [1, 2], [1, 2, 4])),
        ({"subtree_end": torch.tensor([[3, 2, 3]])}, ([1], [1, 2], [1, 4])),
        ({"subtree_end": torch.tensor([[1, 9, 3]])}, ([1], [2], [2, 4])),
        ({"subtree_end": torch.tensor([[3, 2, 3]]), "window": (1, None)}, ([1], [1, 2], [4])),
    ],
    ids=str,
)
def test_forward_by_hand(options: dict, seen: tuple[list[int], ...]) -> None:
    """Weights are proportional to the values: the result is the sum of squares over the sum."""
    got = attention(three_tokens(**options)).forward
    for i, values in enumerate(seen):
        assert got.out[0, i].item() == pytest.approx(sum(v * v for v in values) / sum(values))
        assert got.lse[0, i].item() == pytest.approx(math.log(sum(values)))


def test_gradients_by_hand() -> None:
    """One query sees all: p = 1/7, 2/7, 4/7, out = 3, ds = p (v - 3) + p dlse."""
    case = three_tokens(dlse=torch.full((1, 1, 1), 0.5, dtype=torch.float64))
    case = replace(case, q=case.q[:, :1], dout=case.dout[:, :1])
    got = attention(case)
    p = [1 / 7, 2 / 7, 4 / 7]
    ds = [a * (v - 3 + 0.5) for a, v in zip(p, (1, 2, 4), strict=True)]
    assert got.dv.exact.flatten().tolist() == pytest.approx(p)
    assert got.dk.exact.flatten().tolist() == pytest.approx(ds)
    assert got.dq.exact.item() == pytest.approx(ds[1] * math.log(2) + ds[2] * math.log(4))


def test_positions_are_bottom_right() -> None:
    case = three_tokens(causal=True)
    assert keys_of(case, 3, -1, None) == []
    assert keys_of(case, 3, 0, None) == [0]
    assert keys_of(replace(case, causal=False, window=(1, 0)), 3, 4, None) == []


def test_naive_of_float64_is_the_oracle() -> None:
    """Two ways of writing the same definition, one differentiated by autograd, agree."""
    for seed in range(60):
        case = attention_case(seed, dtype=torch.float64, magnitude=1.0)
        exact, (out, lse, *gradients) = attention(case), naive(case)
        torch.testing.assert_close(out, exact.forward.out, rtol=1e-11, atol=1e-12)
        torch.testing.assert_close(lse, exact.forward.lse, rtol=1e-11, atol=1e-12)
        for name, got in zip(GRADIENTS, gradients, strict=True):
            torch.testing.assert_close(got, getattr(exact, name).exact, rtol=1e-10, atol=1e-11)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("result", range(5), ids=["out", "lse", *GRADIENTS])
def test_small_errors_are_outside_the_budget(result: int, dtype: torch.dtype) -> None:
    """Some thousand units in the last place of the accumulation, in one element, are found."""
    shape = {"packed": False, "lengths": [(20, 20)], "dim": 16, "value_dim": 16, "group": 1}
    case = attention_case(
        0, dtype=dtype, **shape, magnitude=1.0, window=None, tree=None, softcap=0.0, causal=False
    )
    results = run(case, "reference")
    assert violations(case, *results) is None
    wrong = [x.clone() for x in results]
    x = wrong[result]
    at = (0, 3, 0, 2)[: x.dim()]
    x[at] += 4000 * torch.finfo(dtype).eps * max(0.1, x.abs().max().item())
    assert f"{('out', 'lse', *GRADIENTS)[result]}{list(at)}" in violations(case, *wrong)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_non_finite_gradients_are_outside_the_budget(bad: float) -> None:
    case = attention_case(0, packed=False, lengths=[(5, 5)], dtype=torch.float16)
    results = run(case, "reference")
    for n in (2, 3, 4):
        wrong = [x.clone() for x in results]
        wrong[n].view(-1)[0] = bad
        assert violations(case, *wrong)


def test_gradients_of_what_is_not_seen_have_no_budget() -> None:
    case = attention_case(0, packed=True, lengths=[(0, 4), (4, 0)], dtype=torch.float32)
    results = run(case, "reference")
    assert violations(case, *results) is None
    for n in (2, 3, 4):
        wrong = [x.clone() for x in results]
        wrong[n].view(-1)[0] = 1e-30
        assert violations(case, *wrong)


def test_bands_of_gradients_are_of_the_size_of_roundings() -> None:
    """For scores of about 1: below 1e-3 of the typical gradient in float32, 0.1 in bfloat16."""
    for dtype, most in ((torch.float32, 1e-3), (torch.bfloat16, 0.1)):
        case = attention_case(
            1, dtype=dtype, packed=False, lengths=[(100, 100)], dim=64, magnitude=1.0, softcap=0.0
        )
        exact = attention(case)
        for name in GRADIENTS:
            gradient = getattr(exact, name)
            assert gradient_band(gradient, dtype).mean() < most * gradient.exact.abs().mean()
