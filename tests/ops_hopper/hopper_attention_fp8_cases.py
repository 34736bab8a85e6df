"""Cases of FP8 attention on Hopper, running them, and what their results may be off by."""

from dataclasses import replace

import torch
from hopper_attention_cases import plain
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


def odd(seed: int) -> tuple[AttentionCase, AttentionCase, dict[str, Tensor]]:
    """Scales that are negative, 0, or far from their neighbours', causal: early rows see few."""
    shape = {"lengths": [(250, 250)], "group": 1, "dim": 32, "causal": True}
    case, meant, scales = quantized(seed, (64, 64, 64), **shape)
    factors = {
        "q": [1.0, 1.0, -1.0, 1.0],
        "k": [1.0, -1.0, 0.0, 1e-3],
        "v": [1e-14, 1.0, 0.0, -1.0],
    }
    changed = {}
    for name, factor in factors.items():
        x = torch.tensor(factor)[:, None]
        scales[f"{name}_scale"] = scales[f"{name}_scale"] * x
        changed[name] = getattr(meant, name) * x.repeat_interleave(64, 0)[:250, :, None]
    return case, replace(meant, **changed), scales


def run(
    case: AttentionCase, scales: dict[str, Tensor], seed: int = 0, **changes: int
) -> tuple[Tensor, Tensor]:
    """``out`` in bfloat16 and ``lse`` by the kernels, with ``changes`` to the tiling."""

    def launch(*args: object) -> None:
        *given, out, lse = args
        rounded = torch.full_like(out, torch.nan, dtype=torch.bfloat16)
        forward.forward(*given, rounded, lse, **scales, config=config)
        found.extend((rounded.cpu(), lse.cpu()))

    found = []
    tiled_by = (case.q, case.k, case.v, len(case.sequences()), scales["k_scale"], scales["v_scale"])
    config = replace(forward.config_for(*tiled_by), **changes)
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
    budget = 2**-3 * exact.weight + 2**-8 * exact.out.abs()
    budget = budget + (2.0**-18 * exact.tokens * exact.peak)[..., None]
    error = (out.double() - exact.out).abs()
    if not (error <= budget).all():
        return f"out: an error of {float((error / budget).max())} budgets"
    if error.numel() and not error.square().sum() < 0.05 * budget.square().sum():
        return f"out: a mean error of {float(error.square().sum() / budget.square().sum())}"
    near = torch.isclose(lse.double(), exact.lse, rtol=1e-5, atol=1e-4)
    return None if near.all() else "lse"
