"""Scales of FP8 inputs in the kernels, in every layout of ``fp8.quantize``."""

import torch
from torch import Tensor

from ridgeline.ops.attention.fp8 import block_rows
from ridgeline.ops.common.gluon import aggregate, gl, gluon

FARTHEST = gl.constexpr(2.0**40)  # of a unit over the next: sums of float32 stay far from its limit


@aggregate
class Scales:
    """Of one input: one for 2 to the ``shift`` rows of a head of a sequence; strides of 0 where
    shared."""

    scale: gl.tensor
    stride_b: gl.tensor
    stride_n: gl.tensor
    stride_h: gl.tensor
    shift: gl.tensor

    @gluon.constexpr_function
    def __init__(self, scale, stride_b, stride_n, stride_h, shift):
        self.scale = scale
        self.stride_b = stride_b
        self.stride_n = stride_n
        self.stride_h = stride_h
        self.shift = shift

    @gluon.jit
    def at(self, b, row, head):
        """Where the scale of a row, or of each of them, is."""
        block = (row >> self.shift).to(gl.int64) * self.stride_n
        return self.scale + b.to(gl.int64) * self.stride_b + block + head * self.stride_h


@gluon.jit
def make_scales(scale, stride_b, stride_n, stride_h, shift):
    return Scales(
        scale,
        gl.to_tensor(stride_b),
        gl.to_tensor(stride_n),
        gl.to_tensor(stride_h),
        gl.to_tensor(shift),
    )


@aggregate
class Rows:
    """An item's rows of a consumer: ``position [ROWS]`` and FP8 scales."""

    position: gl.tensor
    scale: gl.tensor  # [ROWS], 1 if there are none
    negative: gl.tensor  # whether one of them is

    @gluon.constexpr_function
    def __init__(self, position, scale, negative):
        self.position = position
        self.scale = scale
        self.negative = negative


@aggregate
class Scaling:
    """Scales of the inputs, if they are FP8 (``ON``); a tile of keys has one, and one of values."""

    q: Scales
    k: Scales
    v: Scales
    ON: gl.constexpr

    @gluon.constexpr_function
    def __init__(self, q, k, v, ON):
        self.q = q
        self.k = k
        self.v = v
        self.ON = gl.constexpr(ON)

    @gluon.jit
    def rows(self, work, item, first, position):
        """An item's rows from ``first`` on, at ``position [ROWS]``."""
        scale = gl.to_tensor(1.0)
        negative = gl.to_tensor(False)
        if self.ON:
            row = first + gl.arange(0, position.shape[0], position.type.layout)
            head = item.entity * work.PACK + row % work.PACK
            pointers = self.q.at(item.b, row // work.PACK, head)
            scale = gl.load(pointers, mask=row < item.len_q * work.PACK, other=1.0)
            negative = gl.min(scale, 0) < 0.0
        return Rows(position, scale, negative)

    @gluon.jit
    def keys(self, rows, work, item, j):
        """Scales of rows times that of the keys of an item's j-th tile, and whether one may be
        negative."""
        scale = rows.scale
        negative = rows.negative
        if self.ON:
            of_keys = gl.load(self.of_tile(self.k, work, item, j))
            scale = scale * of_keys
            negative = negative | (of_keys < 0.0)
        return scale, negative

    @gluon.jit
    def values(self, unit, work, item, j):
        """How sums in ``unit`` go on with values of an item's j-th tile: what turns them into sums
        in the new unit, what products have to be multiplied by, and the new unit.

        It is the scale of the values, so that products are added as they are, unless the scale is 0
        or by far the smaller.
        """
        scale = gl.to_tensor(1.0)
        ratio = scale
        weight = scale
        if self.ON:
            scale = gl.load(self.of_tile(self.v, work, item, j))
            ratio = unit / scale
            near = gl.abs(ratio) <= FARTHEST
            ratio = gl.where(near, ratio, 1.0)
            weight = gl.where(near, 1.0, scale / unit)
            scale = gl.where(near, scale, unit)
        return ratio, weight, scale

    @gluon.jit
    def of_tile(self, scales, work, item, j):
        return scales.at(item.b, work.tile(item, j) * work.BLOCK_N, work.kv_head(item))


def scale_numbers(scale: Tensor | None, x: Tensor) -> tuple[Tensor, int, int, int, int]:
    """What ``make_scales`` takes for ``x [B, L, h, d]`` or packed ``[total, h, d]``."""
    if scale is None:
        scale = torch.ones((), device=x.device)
    match scale.dim():
        case 0:
            return scale, 0, 0, 0, 0
        case 1:
            return scale, 0, 0, scale.stride(0), 0
        case 2:
            return scale, scale.stride(0), 0, scale.stride(1), 0
    rows = block_rows(x.shape[1], scale.shape[1])
    return scale, *scale.stride(), rows.bit_length() - 1
