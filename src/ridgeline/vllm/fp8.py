"""FP8 caches: e4m3 values, and a float32 scale of each token and head beside them.

A scale a token and head is the largest value over 448, found as the token is written: nothing
saturates, small heads keep their precision, and no checkpoint has to bring calibrated scales. It
costs 4 bytes. The decode operations take such scales where they lie.
"""

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from ridgeline.ops.attention import fp8
from ridgeline.ops.common import check

NAMES = ("fp8", "fp8_e4m3", "fp8_per_token_head")  # that mean this cache here
ALIGNMENT = 16  # bytes that the Hopper kernels load at once


@dataclass(frozen=True)
class Record:
    """What is cached of a token and head: parts of several types in a row of bytes.

    Args:
        parts: width and type of each; every one starts at a multiple of 16 bytes.
    """

    parts: tuple[tuple[int, torch.dtype], ...]

    @cached_property
    def starts(self) -> tuple[int, ...]:
        """Where each part starts, and the bytes of all."""
        found = [0]
        for width, dtype in self.parts:
            found.append(found[-1] - (-width * dtype.itemsize // ALIGNMENT) * ALIGNMENT)
        return tuple(found)

    @property
    def nbytes(self) -> int:
        return self.starts[-1]

    def split(self, rows: Tensor) -> tuple[Tensor, ...]:
        """The parts of ``rows [..., nbytes]`` uint8, as views."""
        return tuple(
            rows[..., start : start + width * dtype.itemsize].view(dtype)
            for start, (width, dtype) in zip(self.starts, self.parts, strict=False)
        )

    def join(self, *parts: Tensor) -> Tensor:
        """``[..., nbytes]`` uint8 of ``parts``, each ``[..., width]``."""
        rows = parts[0].new_zeros(*parts[0].shape[:-1], self.nbytes, dtype=torch.uint8)
        for view, part in zip(self.split(rows), parts, strict=True):
            view.copy_(part)
        return rows


def paired_record(key_dim: int, value_dim: int) -> Record:
    """K and V of a head, and their scales."""
    return Record(((key_dim, check.FP8), (value_dim, check.FP8), (2, torch.float32)))


def tied_record(heads: int, dim: int, rope_dim: int, dtype: torch.dtype) -> Record:
    """The states of a rank, the RoPE key in the model's type, and the states' scales."""
    return Record(((heads * dim, check.FP8), (rope_dim, dtype), (heads, torch.float32)))


def quantize(x: Tensor) -> tuple[Tensor, Tensor]:
    """``x [T, h, d]`` in e4m3, and its scales ``[T, h]``."""
    values, scale = fp8.quantize(x.unsqueeze(0), per=1)
    return values.squeeze(0), scale.squeeze(0)


def dequantize(values: Tensor, scale: Tensor, dtype: torch.dtype) -> Tensor:
    """``[T, h, d]`` in ``dtype`` of what ``quantize`` gave."""
    return fp8.dequantize(values.unsqueeze(0), scale.unsqueeze(0), dtype=dtype).squeeze(0)
