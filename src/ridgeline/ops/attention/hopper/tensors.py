"""Inputs as the tensor memory unit reads them: 16-byte strides, blocks of rows and columns."""

import torch
from torch import Tensor

from ridgeline.ops.common.device import pieces
from ridgeline.ops.common.gluon import TensorDescriptor, gl

DTYPES = {
    torch.bfloat16: gl.bfloat16,
    torch.float16: gl.float16,
    torch.float32: gl.float32,
    torch.float8_e4m3fn: gl.float8e4nv,
}


def readable(x: Tensor) -> Tensor:
    """``x [..., d]`` itself, or a copy of it where the unit cannot read it.

    Its addresses and strides are multiples of 16 bytes, and none is 0.
    """
    unit = 16 // x.element_size()
    strides = [s for s, n in zip(x.stride()[:-1], x.shape[:-1], strict=True) if n > 1]
    if x.data_ptr() % 16 == 0 and all(s > 0 and s % unit == 0 for s in strides):
        return x
    padded = -(-x.shape[-1] // unit) * unit
    return x.new_empty(*x.shape[:-1], padded)[..., : x.shape[-1]].copy_(x)


def descriptors(x: Tensor, rows: int, heads: int = 1) -> tuple[TensorDescriptor, ...]:
    """Two of blocks ``[1, rows, heads, width]`` of ``x [B, L, h, d]`` or, packed, ``[total, h, d]``
    with ``B`` 1: one for each of the ``pieces`` of d. The second is the first where there is one.
    """
    x = x[None] if x.dim() == 3 else x
    unit = 16 // x.element_size()
    strides = [s if n > 1 else unit for s, n in zip(x.stride()[:-1], x.shape[:-1], strict=True)]
    found = []
    for width in pieces(x.shape[-1]):
        if width:
            block = [1, rows, heads, width]
            layout = gl.NVMMASharedLayout.get_default_for(block, DTYPES[x.dtype])
            found.append(TensorDescriptor(x, list(x.shape), [*strides, 1], block, layout))
    return found[0], found[-1]


def turned_descriptors(x: Tensor, keys: int) -> tuple[TensorDescriptor, ...]:
    """As ``descriptors``, of blocks ``[1, 1, width, keys]`` of values ``[B, h, d, L]``."""
    found = []
    for width in pieces(x.shape[2]):
        if width:
            block = [1, 1, width, keys]
            layout = gl.NVMMASharedLayout.get_default_for(block, DTYPES[x.dtype])
            found.append(TensorDescriptor(x, list(x.shape), list(x.stride()), block, layout))
    return found[0], found[-1]
