"""Canaries: the interpreter's traps are what these tests assume; the dispatch heeds them."""

import numpy as np
import pytest
import torch
import triton
import triton.language as tl
from triton.experimental.gluon import language as gl

import ridgeline
from ridgeline.ops.common import device
from ridgeline.ops.common.triton import INTERPRETED, from_e4m3
from ridgeline.testing import paged_case, run, tied_case


def test_the_interpreter_is_active() -> None:
    assert bool(INTERPRETED) is not torch.cuda.is_available()


@triton.jit
def product(a, b, out, N: tl.constexpr):
    i, j = tl.arange(0, N)[:, None], tl.arange(0, N)[None, :]
    c = tl.dot(tl.load(a + i * N + j), tl.load(b + i * N + j), input_precision="ieee")
    tl.store(out + i * N + j, c)


def error_of_product(dtype: torch.dtype) -> float:
    a, b = torch.randn(2, 16, 16, generator=torch.Generator().manual_seed(0)).to(dtype)
    out = torch.empty(16, 16)
    product[(1,)](a, b, out, N=16)
    return (out - a.float() @ b.float()).abs().max().item()


@pytest.mark.parametrize(
    ("dtype", "exact"), [(torch.float16, True), (torch.float32, True), (torch.bfloat16, False)]
)
def test_products(dtype: torch.dtype, exact: bool) -> None:
    """bfloat16 matrices are multiplied wrongly. If this fails, let bfloat16 cases in."""
    assert (error_of_product(dtype) < 1e-4) is exact


@triton.jit
def decode_bytes(x, out):
    i = tl.arange(0, 256)
    tl.store(out + i, from_e4m3(tl.load(x + i), tl.float32))


def test_e4m3_by_bits() -> None:
    """For devices without the conversion: every byte."""
    x = torch.arange(256).to(torch.uint8)
    out = torch.empty(256)
    decode_bytes[(1,)](x, out)
    torch.testing.assert_close(
        out, x.view(torch.float8_e4m3fn).float(), rtol=0, atol=0, equal_nan=True
    )


@triton.jit
def unchecked(out, n):
    tl.device_assert(n < 0, "n is not negative")
    tl.store(out, n * n)


def test_asserts_and_overflow_are_not_checked() -> None:
    out = torch.zeros(1, dtype=torch.int32)
    with np.errstate(over="ignore"):
        unchecked[(1,)](out, 70_000)
    assert out.item() == (70_000**2 + 2**31) % 2**32 - 2**31


@pytest.mark.parametrize("make", [paged_case, tied_case])
def test_refused_with_a_reason(make) -> None:
    for dtype, reason in ((torch.bfloat16, "bfloat16"), (torch.float64, "got float64")):
        with pytest.raises(ValueError, match=f"impl='triton': .*{reason}"):
            run(make(0, dtype=dtype), "triton")
    with pytest.raises(ValueError, match="head dims are at most 1024"):
        run(make(0, dtype=torch.float32, dim=1025, kv_heads=1, lengths=[2]), "triton")


def test_corrupt_tables_are_refused_where_values_are_at_hand() -> None:
    case = paged_case(0, dtype=torch.float32, lengths=[9, 5], page_size=4, window=None)
    case.cache_seqlens[1] = 10_000
    with pytest.raises(ValueError, match=r"cache_seqlens.*10000"):
        run(case, "triton")


def test_auto_never_takes_the_interpreter() -> None:
    q = torch.zeros(1, 1, 1, 8)
    assert device.unsupported(q, q, (8,), interpret=True) is None
    assert "runs on a CUDA device" in device.unsupported(q, q, (8,), interpret=False)
    assert ridgeline.merge(torch.zeros(2, 3), torch.zeros(2))[0].shape == (3,)


def test_types_of_gluon_keep_their_own_names() -> None:
    layout = gl.BlockedLayout([1, 8], [4, 8], [4, 1], [1, 0])
    assert "BlockedLayout" in gl.distributed_type(gl.float32, [64, 64], layout).name
