"""``merge`` by Triton: one program merges some columns of one row."""

import triton
import triton.language as tl
from torch import Tensor

from ridgeline.ops.common import device

PARTS = 16  # that are merged at a time


@triton.jit
def merge_kernel(
    outs,
    lses,
    out,
    lse,
    parts,
    stride_op,
    stride_or,
    stride_od,
    stride_lp,
    stride_lr,
    DIM: tl.constexpr,
    BLOCK_D: tl.constexpr,
    PARTS: tl.constexpr,
):
    """Weights are ``exp(lse_s - max)``; a part whose lse is -inf is not read."""
    row = tl.program_id(0).to(tl.int64)
    d = tl.program_id(1) * BLOCK_D + tl.arange(0, BLOCK_D)
    m = float("-inf")
    for i in range(0, parts, PARTS):
        part = (i + tl.arange(0, PARTS)).to(tl.int64)
        pointers = lses + part * stride_lp + row * stride_lr
        m = tl.maximum(m, tl.max(tl.load(pointers, mask=part < parts, other=float("-inf")), 0))
    base = tl.where(m == float("-inf"), 0.0, m)
    l = 0.0
    acc = tl.zeros([BLOCK_D], tl.float32)
    for i in range(0, parts, PARTS):
        part = (i + tl.arange(0, PARTS)).to(tl.int64)
        pointers = lses + part * stride_lp + row * stride_lr
        part_lse = tl.load(pointers, mask=part < parts, other=float("-inf"))
        weight = tl.exp(part_lse - base)
        l += tl.sum(weight, 0)
        # [PARTS, BLOCK_D]
        pointers = outs + (part * stride_op + row * stride_or)[:, None] + (d * stride_od)[None, :]
        mask = (part_lse != float("-inf"))[:, None] & (d < DIM)[None, :]
        acc += tl.sum(weight[:, None] * tl.load(pointers, mask=mask, other=0.0).to(tl.float32), 0)
    result = acc / tl.where(l == 0.0, 1.0, l)
    tl.store(out + row * DIM + d, result.to(out.dtype.element_ty), mask=d < DIM)
    if tl.program_id(1) == 0:
        total = base + tl.log(tl.where(l == 0.0, 1.0, l))
        tl.store(lse + row, tl.where(l == 0.0, float("-inf"), total))


@device.launcher
def merge(outs: Tensor, lses: Tensor) -> tuple[Tensor, Tensor]:
    """``outs [S, ..., d]``, ``lses [S, ...]`` -> ``out [..., d]``, ``lse [...]``."""
    out = outs.new_empty(outs.shape[1:])
    lse = lses.new_empty(lses.shape[1:])
    if lse.numel() == 0:
        return out, lse
    parts, dim = outs.shape[0], outs.shape[-1]
    outs, lses = outs.reshape(parts, -1, dim), lses.reshape(parts, -1)
    block_d = min(128, max(16, device.next_power_of_2(dim)))
    merge_kernel[(lse.numel(), max(1, -(-dim // block_d)))](
        outs,
        lses,
        out,
        lse,
        parts,
        *outs.stride(),
        *lses.stride(),
        DIM=dim,
        BLOCK_D=block_d,
        PARTS=PARTS,
        num_warps=4,
    )
    return out, lse
