"""FP8 on Hopper against the float64 oracle over what the inputs stand for."""

from dataclasses import replace

import pytest
import torch
from hopper_attention_cases import PACKED
from hopper_attention_fp8_cases import odd, quantized, run, violation

from ridgeline.ops.attention.hopper.turned import turned
from ridgeline.ops.attention.tiles import Problem
from ridgeline.testing.tolerance import truth

WAYS = [("tensor",) * 3, ("head",) * 3, ("sequence", "tensor", "head"), (64, 64, 64), (8, 128, 64)]
WIDTHS = [(32, 16), (96, 96), (128, 128), (192, 128), (64, 192), (256, 256)]
MASKS = {
    "full": {},
    "causal": {"causal": True},
    "window": {"window": (70, 20)},
    "softcap": {"softcap": 3.0, "causal": True},
    "tree": {"tree": "nested", "lengths": [(170, 170)]},
}


@pytest.mark.parametrize("ways", WAYS, ids=str)
def test_scales_of_every_layout(ways: tuple) -> None:
    case, meant, scales = quantized(1, ways, kv_heads=2, causal=True, lengths=[(90, 170)] * 2)
    assert violation(meant, *run(case, scales)) is None


@pytest.mark.parametrize("name", MASKS)
def test_every_mask(name: str) -> None:
    case, meant, scales = quantized(2, (64, 64, 64), **MASKS[name])
    assert violation(meant, *run(case, scales)) is None


@pytest.mark.parametrize("options", [{}, {"causal": True}, {"tree": "nested"}], ids=str)
def test_packed_sequences(options: dict) -> None:
    """They begin anywhere among the 16 keys that change places."""
    case, meant, scales = quantized(3, ("sequence",) * 3, **PACKED | options)
    assert violation(meant, *run(case, scales)) is None


@pytest.mark.parametrize(
    ("dim", "value_dim"), [(32, 16), (96, 96), (128, 128), (192, 128), (64, 192), (256, 256)]
)
def test_every_width(dim: int, value_dim: int) -> None:
    case, meant, scales = quantized(4, (64, 128, 128), dim=dim, value_dim=value_dim, causal=True)
    assert violation(meant, *run(case, scales)) is None


def test_the_same_bits_under_other_schedules() -> None:
    case, _, scales = quantized(5, (64, 64, 64), causal=True)
    first = run(case, scales)
    for seed in (1, 2):
        assert all(torch.equal(a, b) for a, b in zip(run(case, scales, seed), first, strict=True))


def test_scales_may_be_negative_or_zero_or_far_apart() -> None:
    case, meant, scales = odd(6)
    assert violation(meant, *run(case, scales)) is None


def test_a_nan_reaches_only_rows_that_see_its_key() -> None:
    case, meant, scales = quantized(7, (64, 64, 64), causal=True, lengths=[(90, 90)])
    case.v[0, 20] = torch.nan
    out, lse = run(case, scales)
    assert out[0, 20:].isnan().all()
    clean = replace(meant, v=meant.v.nan_to_num())
    exact = truth(clean)[0].forward.out
    assert not out[0, :20].isnan().any()
    assert (out[0, :20] - exact[0, :20]).norm() < 0.05 * exact[0, :20].norm()
    assert lse.isfinite().all()


def test_values_are_turned(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each 16 keys as threads have them, and zeros, not what was there, behind the last."""
    filled = lambda *shape, **options: torch.full(shape, torch.nan, **options)  # noqa: E731
    monkeypatch.setattr(torch, "empty", filled)
    v = torch.randn(2, 40, 3, 24).to(torch.float8_e4m3fn)
    problem = Problem(v, v, v, None, None, None, 1.0, False, -1, -1, 0.0)
    found = turned(v, problem).float()
    padded = torch.cat([v.float(), torch.zeros(2, 8, 3, 24)], 1)
    order = [key for t in range(4) for key in (2 * t, 2 * t + 1, 2 * t + 8, 2 * t + 9)]
    want = padded.unflatten(1, (3, 16))[:, :, order].flatten(1, 2)
    assert torch.equal(found, want.permute(0, 2, 3, 1))
