"""Tensors with awkward strides; the memory between their elements is NaN."""

import random
from collections.abc import Sequence

import torch
from torch import Tensor

FAR = 2**31 + 64  # elements: beyond 32 bits, and in 16-bit dtypes 128 when its bytes wrap around


def strided(shape: Sequence[int], dtype: torch.dtype, rng: random.Random) -> Tensor:
    """A view of ``shape`` with a contiguous last dim into a bigger, permuted, offset buffer.

    The other dims are permuted in memory (``[pages, h, page, d]`` viewed as ``[pages, page, h, d]``
    is one of the outcomes) and each dim may be a slice of a longer one.
    """
    lead = list(range(len(shape) - 1))
    rng.shuffle(lead)
    pad = [rng.choice((0, 0, 1, 2)) for _ in lead] + [rng.choice((0, 1, 3, 8))]
    stored = [shape[d] + pad[d] for d in lead] + [shape[-1] + pad[-1]]
    offset = rng.randrange(5)
    x = _nan(offset + _product(stored), dtype)[offset:].view(stored)
    x = x.permute([*(lead.index(d) for d in range(len(lead))), len(lead)])
    starts = [rng.randrange(p + 1) for p in pad]
    for d, (start, size) in enumerate(zip(starts, shape, strict=True)):
        x = x.narrow(d, start, size)
    return x


def records(
    num_pages: int, page_size: int, heads: int, dim: int, rope_dim: int, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """One record ``[states | rope key]`` per token, as two views: state and RoPE cache."""
    x = _nan(num_pages * page_size * (heads * dim + rope_dim), dtype)
    x = x.view(num_pages, page_size, heads * dim + rope_dim)
    return x[..., : heads * dim].unflatten(-1, (heads, dim)), x[..., heads * dim :]


def far_along(x: Tensor, dim: int) -> Tensor:
    """A copy of ``x`` whose last index along ``dim`` lies ``FAR`` elements or more away.

    Memory is committed only where it is touched, so that this costs little but address space.
    """
    strides = list(torch.empty_like(x, memory_format=torch.contiguous_format).stride())
    strides[dim] = -(-FAR // (x.shape[dim] - 1))
    numel = sum((n - 1) * s for n, s in zip(x.shape, strides, strict=True)) + 1
    return torch.empty(numel, dtype=x.dtype).as_strided(x.shape, strides).copy_(x)


def clone(x: Tensor) -> Tensor:
    """A copy with the same strides and the same memory around and between the elements."""
    storage = x.untyped_storage().clone()
    return torch.empty(0, dtype=x.dtype).set_(storage, x.storage_offset(), x.shape, x.stride())


def _nan(numel: int, dtype: torch.dtype) -> Tensor:
    return torch.full((numel,), torch.nan).to(dtype)


def _product(shape: Sequence[int]) -> int:
    return torch.Size(shape).numel()
