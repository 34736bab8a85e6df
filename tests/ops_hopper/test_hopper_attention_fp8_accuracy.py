"""How far FP8 on Hopper is from float64 on inputs with outliers, beside FP8 of a scale a tensor.

The experiment of ``ridgeline.bench.attention.accuracy``, of one head and 1,024 tokens.
"""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from ridgeline.bench.attention import accuracy
from ridgeline.ops.attention import attention, fp8
from ridgeline.ops.attention.hopper import forward
from ridgeline.ops.common.triton import INTERPRETED

Attention = Callable[..., Tensor]


def on_hopper(q: Tensor, k: Tensor, v: Tensor, **scales: Tensor) -> Tensor:
    if not INTERPRETED:
        scales = {name: scale.cuda() for name, scale in scales.items()}
        return attention(q.cuda(), k.cuda(), v.cuda(), **scales, impl="hopper").cpu()
    from ridgeline.testing.gluon import interpreted

    out = torch.full(q.shape, torch.nan, dtype=torch.bfloat16)
    options = (q.shape[-1] ** -0.5, False, -1, -1, 0.0)
    with interpreted():
        forward.forward(
            q, k, v, None, None, None, *options, out, torch.empty(q.shape[:-1]), **scales
        )
    return out


def on_cpu(*qkv: Tensor, **scales: Tensor) -> Tensor:
    return attention(*qkv, **scales, impl="reference")


@pytest.fixture(scope="module")
def made() -> tuple[Tensor, Tensor, Tensor]:
    return accuracy.inputs(1024, accuracy.AccuracyOptions(heads=1), seed=0)


@pytest.fixture(scope="module")
def want(made: tuple[Tensor, Tensor, Tensor]) -> Tensor:
    return accuracy.exact(*made, causal=False)


def error(made: tuple, want: Tensor, run: Attention, per: fp8.Per, seed: int | None) -> float:
    seeds = (seed, seed, None)
    values, scales = zip(
        *(fp8.quantize(x, per, seed=s, impl="reference") for x, s in zip(made, seeds, strict=True)),
        strict=True,
    )
    named = dict(zip(("q_scale", "k_scale", "v_scale"), scales, strict=True))
    return accuracy.rmse(run(*values, **named), want)


@pytest.fixture(scope="module")
def best(made: tuple, want: Tensor) -> float:
    return error(made, want, on_hopper, 128, 1)


def test_the_kernel_is_as_accurate_as_the_reference(made: tuple, want: Tensor, best: float) -> None:
    assert best == pytest.approx(error(made, want, on_cpu, 128, 1), rel=0.02)


def test_a_scale_a_tensor_is_as_accurate_as_in_the_reference(made: tuple, want: Tensor) -> None:
    made = (made[0][:, :128], *made[1:])
    found, reference = (
        error(made, want[:, :128], run, "tensor", None) for run in (on_hopper, on_cpu)
    )
    assert found == pytest.approx(reference, rel=0.02)


def test_blocks_and_a_rotation_spread_outliers(made: tuple, want: Tensor, best: float) -> None:
    standard = accuracy.rmse(accuracy.standard_fp8(*made, causal=False), want)
    assert standard > accuracy.PUBLISHED * best
