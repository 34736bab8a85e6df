"""FP8 on Hopper against the float64 oracle over what the inputs stand for."""

from dataclasses import replace

import pytest
import torch
from hopper_attention_cases import PACKED, plain
from torch import Tensor

from ridgeline.ops.attention import fp8
from ridgeline.ops.attention.hopper import forward
from ridgeline.ops.common.triton import INTERPRETED
from ridgeline.testing import AttentionCase
from ridgeline.testing.run import launch_attention, on_device
from ridgeline.testing.tolerance import truth


def quantized(
    seed: int, ways: tuple, **chosen: object
) -> tuple[AttentionCase, AttentionCase, dict[str, Tensor]]:
    """A case in FP8, what it stands for in float64, and its scales. Rows differ in size."""
    case = plain(seed, **chosen)
    generator = torch.Generator().manual_seed(seed)
    starts = (case.cu_seqlens_q, case.cu_seqlens_k, case.cu_seqlens_k)
    values, meant, scales = {}, {}, {}
    for name, way, cu_seqlens in zip("qkv", ways, starts, strict=True):
        x = getattr(case, name).float()
        x = x * 2 ** torch.randn(*x.shape[:-1], 1, generator=generator)
        x, scale = fp8.quantize(x, way, cu_seqlens=cu_seqlens, impl="reference")
        values[name], scales[f"{name}_scale"] = x, scale
        meant[name] = fp8.dequantize(x, scale, cu_seqlens=cu_seqlens, dtype=torch.float64)
    meant["dout"] = case.dout.double()
    return replace(case, **values), replace(case, **meant), scales


def run(case: AttentionCase, scales: dict, seed: int = 0) -> tuple[Tensor, Tensor]:
    def launch(*args: object) -> None:
        *given, out, lse = args
        rounded = torch.full_like(out, torch.nan, dtype=torch.bfloat16)
        forward.forward(*given, rounded, lse, **scales)
        found.extend((rounded.cpu(), lse.cpu()))

    found = []
    if INTERPRETED:
        from ridgeline.testing.gluon import interpreted

        with interpreted(seed=seed):
            launch_attention(launch, None, case, torch.nan, False)
    else:
        scales = {name: scale.cuda() for name, scale in scales.items()}
        launch_attention(launch, None, on_device("cuda", case), torch.nan, False)
    return tuple(found)


def violation(meant: AttentionCase, out: Tensor, lse: Tensor) -> str | None:
    """Probabilities are off by half a step of e4m3, 2^-4 or 2^-18, and far less on average."""
    exact = truth(meant)[0].forward
    budget = 2**-3 * exact.weight + 2**-8 * exact.out.abs() + 1e-5
    budget = budget + (2.0**-18 * exact.tokens * exact.peak)[..., None]
    error = (out.double() - exact.out).abs()
    if not (error <= budget).all():
        return f"out: an error of {float((error / budget).max())} budgets"
    if error.numel() and not error.square().sum() < 0.05 * budget.square().sum():
        return f"out: a mean error of {float(error.square().sum() / budget.square().sum())}"
    near = torch.isclose(lse.double(), exact.lse, rtol=1e-5, atol=1e-4)
    return None if near.all() else "lse"


WAYS = [("tensor",) * 3, ("head",) * 3, ("sequence", "tensor", "head"), (64, 64, 64), (8, 128, 64)]
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


@pytest.mark.parametrize(("dim", "value_dim"), [(32, 16), (96, 96), (128, 128), (192, 128)])
def test_every_width(dim: int, value_dim: int) -> None:
    case, meant, scales = quantized(4, (64, 128, 128), dim=dim, value_dim=value_dim, causal=True)
    assert violation(meant, *run(case, scales)) is None


def test_the_same_bits_under_other_schedules() -> None:
    case, _, scales = quantized(5, (64, 64, 64), causal=True)
    first = run(case, scales)
    for seed in (1, 2):
        assert all(torch.equal(a, b) for a, b in zip(run(case, scales, seed), first, strict=True))


def test_scales_may_be_negative_or_zero() -> None:
    case, meant, scales = quantized(6, ("tensor", 64, 64), lengths=[(70, 170)])
    signs = torch.tensor([-1.0, 0.0, 1.0])[:, None]
    scales |= {name: scales[name] * signs for name in ("k_scale", "v_scale")}
    rows = signs.repeat_interleave(64, 0)[:170, :, None]
    assert violation(replace(meant, k=meant.k * rows, v=meant.v * rows), *run(case, scales)) is None


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
