"""The rules of the interpreter on a Hopper GPU: the right micro-kernels are right there too."""

from typing import Any

import pytest
import torch
from gluon_etap import decode, expected, problem
from gluon_kernels import RULES
from test_gluon_numbers import converted
from triton.experimental.gluon.nvidia.hopper import TensorDescriptor

HOPPER = torch.cuda.is_available() and torch.cuda.get_device_capability() == (9, 0)
pytestmark = pytest.mark.skipif(not HOPPER, reason="needs a GPU of compute capability 9.0")


def on_device(x: Any) -> Any:
    if isinstance(x, TensorDescriptor):
        base = x.base.cuda()
        return TensorDescriptor(base, x.shape, x.strides, x.block_shape, x.layout, x.padding)
    return x.cuda() if isinstance(x, torch.Tensor) else x


@pytest.mark.parametrize("name", RULES)
def test_the_right_kernel_is_right(name: str) -> None:
    rule = RULES[name]
    args = rule.arguments()
    there = [on_device(x) for x in args]
    rule.kernel[rule.grid](*there, 0, num_warps=4)
    out = there[rule.out]
    out = (out if isinstance(out, torch.Tensor) else out.base).cpu()
    atol = 1e-2 if name == "wgmma-fp8" else 1e-4  # whose accumulators are short
    torch.testing.assert_close(out.double(), rule.expected(args).double(), rtol=1e-5, atol=atol)


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.float8_e5m2], ids=str)
def test_casts_to_fp8_saturate(dtype: torch.dtype) -> None:
    x = torch.full((256,), float("inf"), device="cuda")
    x[::2] = -1e9
    out = torch.zeros(256, dtype=dtype, device="cuda")
    converted[(1,)](x, out, num_warps=4)
    largest = torch.finfo(dtype).max
    assert out.float().unique().tolist() == [-largest, largest]


def test_the_transposed_kernel_is_right() -> None:
    arguments, constants = problem((383, 7, 128))
    there = [on_device(x) for x in arguments]
    decode[(3,)](*there, **constants, num_warps=4)
    out, lse = expected(arguments, constants)
    assert (there[2].base.cpu().double() - out).abs().max() < 0.02
    assert (there[3].cpu().double() - lse).abs().max() < 1e-3
