"""Quantisation to e4m3 by Triton: rotary embedding, random rotation and scales in one pass.

A program has a block of rows of one head in registers. Where the block has a scale of its own, one
launch does it all; else one launch finds the largest magnitude of each row and another writes the
values: scales of larger parts are known only between the two.
"""

import triton
import triton.language as tl
from torch import Tensor

from ridgeline.ops.common.device import launcher, next_power_of_2
from ridgeline.ops.common.triton import INTERPRETED

LARGEST = tl.constexpr(448.0)  # of float8_e4m3fn
TINY = tl.constexpr(2.0**-126)  # the least normal float32
ROWS = 32  # of a program, where blocks have no scale of their own


@triton.jit
def divide(a, b):
    """Rounded to the nearest, as on a CPU."""
    if INTERPRETED:
        return a / b
    return tl.div_rn(a, b)


@triton.jit
def butterfly(x, HALF: tl.constexpr, BLOCK: tl.constexpr, DIM: tl.constexpr):
    """Sums and differences of columns ``HALF`` apart."""
    pairs = tl.reshape(x, [BLOCK, DIM // (2 * HALF), 2, HALF])
    a, b = tl.split(tl.permute(pairs, (0, 1, 3, 2)))
    return tl.reshape(tl.permute(tl.join(a + b, a - b), (0, 1, 3, 2)), [BLOCK, DIM])


@triton.jit
def load_rows(
    x,
    signs,
    cos,
    sin,
    token,
    real,
    stride_l,
    DIM: tl.constexpr,
    WIDTH: tl.constexpr,
    STEPS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Rows of a head in float32, ``[BLOCK, WIDTH]``, turned by their positions and then at random.

    ``cos`` and ``sin [..., DIM / 2]`` or None; ``signs [DIM]`` or None, then DIM is
    2 to the ``STEPS``.
    """
    d = tl.arange(0, WIDTH)
    mask = real[:, None] & (d < DIM)[None, :]
    rows = x + token[:, None] * stride_l
    y = tl.load(rows + d[None, :], mask=mask, other=0.0).to(tl.float32)
    if cos is not None:
        HALF: tl.constexpr = DIM // 2
        other = tl.load(rows + ((d + HALF) % DIM)[None, :], mask=mask, other=0.0).to(tl.float32)
        angle = token[:, None] * HALF + (d % HALF)[None, :]
        turned = other * tl.load(sin + angle, mask=mask, other=0.0)
        y = y * tl.load(cos + angle, mask=mask, other=0.0) + tl.where(d < HALF, -turned, turned)
    if signs is not None:
        y *= tl.load(signs + d)[None, :]
        for step in tl.static_range(STEPS):
            y = butterfly(y, 1 << step, BLOCK, WIDTH)
        y *= DIM**-0.5
    return y


@triton.jit
def quantize_kernel(
    x,
    values,
    numbers,
    signs,
    cos,
    sin,
    length,
    stride_b,
    stride_l,
    stride_h,
    HEADS: tl.constexpr,
    DIM: tl.constexpr,
    WIDTH: tl.constexpr,
    STEPS: tl.constexpr,
    BLOCK: tl.constexpr,
    BLOCK_SCALES: tl.constexpr,
):
    """Program (block, head, sequence). ``numbers`` are the scales, one a row, that values are
    divided by; with ``BLOCK_SCALES`` they are computed, one a block; without ``values``, they
    become the largest magnitude of each row."""
    head = tl.program_id(1)
    b = tl.program_id(2).to(tl.int64)
    row = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    real = row < length
    token = row.to(tl.int64)
    if cos is not None:
        cos += b * length * (DIM // 2)
        sin += b * length * (DIM // 2)
    base = x + b * stride_b + head.to(tl.int64) * stride_h
    # [BLOCK, WIDTH]
    y = load_rows(base, signs, cos, sin, token, real, stride_l, DIM, WIDTH, STEPS, BLOCK)
    index = (b * length + token) * HEADS + head
    # 0, or NaN of a row with an element that is not finite, which a maximum may overlook
    largest = tl.max(tl.abs(y), 1) + tl.sum(y * 0.0, 1)
    if values is None:
        tl.store(numbers + index, largest, mask=real)
    else:
        if BLOCK_SCALES:
            top = tl.max(largest, 0) + tl.sum(largest * 0.0, 0)
            scale = tl.maximum(divide(top, LARGEST), TINY)
            scale = tl.where(top == 0.0, 1.0, tl.where(top == top, scale, top))
            at = (b * tl.num_programs(0) + tl.program_id(0)) * HEADS + head
            tl.store(numbers + at, scale)
            quotient = divide(y, scale)
        else:
            quotient = divide(y, tl.load(numbers + index, mask=real, other=1.0)[:, None])
        d = tl.arange(0, WIDTH)
        mask = real[:, None] & (d < DIM)[None, :]
        pointers = values + (index * DIM)[:, None] + d[None, :]
        tl.store(pointers, quotient.to(values.dtype.element_ty), mask=mask)


@launcher
def quantize_rows(
    x: Tensor,
    values: Tensor | None,
    numbers: Tensor,
    signs: Tensor | None,
    rope: tuple[Tensor, Tensor] | None,
    block: int | None,
) -> None:
    """Of ``x [B, L, h, d]``, or packed ``[total, h, d]``, contiguous in the last dim.

    Args:
        values: float8_e4m3fn of the shape of ``x``, filled; or ``None``: ``numbers`` is filled with
            the largest magnitude of each row.
        numbers: float32, contiguous: the scale of each row, ``[..., h]``; with ``block`` filled
            with the scales of blocks, ``[B, ceil(L / block), h]``.
        signs: ``[d]`` of the random rotation, float32, d a power of two; or ``None``.
        rope: cos and sin, float32 ``[B, L, d / 2]`` or ``[total, d / 2]``; or ``None``.
        block: rows that share a scale, a power of two.
    """
    if x.numel() == 0:
        return
    batched = x if x.dim() == 4 else x[None]
    batch, length, heads, dim = batched.shape
    rows = block or ROWS
    cos, sin = (None, None) if rope is None else (t.contiguous() for t in rope)
    quantize_kernel[(-(-length // rows), heads, batch)](
        batched,
        values,
        numbers,
        signs,
        cos,
        sin,
        length,
        *batched.stride()[:3],
        HEADS=heads,
        DIM=dim,
        WIDTH=next_power_of_2(dim),
        STEPS=0 if signs is None else dim.bit_length() - 1,
        BLOCK=rows,
        BLOCK_SCALES=block is not None,
        num_warps=8 if rows * dim >= 1 << 13 else 4,
    )
