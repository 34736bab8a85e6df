"""Arguments that FlashAttention's functions share, in the terms of Ridgeline's operations."""

from typing import NamedTuple

import torch
from torch import Tensor

from ridgeline.ops.common import check

LARGEST_INT32 = 2**31 - 1


class Mask(NamedTuple):
    """Which keys a query sees: ``causal`` and ``window`` of an operation, and a chunk length."""

    causal: bool
    left: int | None
    right: int | None
    chunk: int  # 0: none; else causal

    @property
    def local(self) -> bool:
        """Whether it matters where a query stands."""
        return self.causal or self.left is not None or self.right is not None

    @property
    def window(self) -> tuple[int | None, int | None]:
        return self.left, self.right


def mask(causal: bool, window_size: tuple[int, int], attention_chunk: int) -> Mask:
    """A negative side of ``window_size`` is unbounded; a right side of 0 is causal."""
    check.flag("causal", causal)
    if not isinstance(window_size, (tuple, list)) or len(window_size) != 2:
        raise TypeError(f"window_size: expected (left, right), got {window_size!r}")
    left, right = (
        check.count(f"window_size[{i}]", side, minimum=-LARGEST_INT32)
        for i, side in enumerate(window_size)
    )
    causal = causal or right == 0
    if check.count("attention_chunk", attention_chunk) > 0 and not causal:
        raise NotImplementedError(
            "attention_chunk without causal is not supported: pass causal=True, or make each chunk "
            "a sequence of its own with flash_attn_varlen_func"
        )
    return Mask(
        causal, left if left >= 0 else None, None if causal or right < 0 else right, attention_chunk
    )


def chunk_ends(index: Tensor, chunk: int) -> Tensor:
    """``subtree_end`` of chunks: where the chunk of each key ``index`` (in its sequence) ends."""
    return ((index // chunk + 1) * chunk).clamp(max=LARGEST_INT32).int()


def schedule_hints(num_splits: int, pack_gqa: bool | None, sm_margin: int) -> None:
    """Hints for the schedule; they change no result, and ``attention`` has no use for them."""
    check.count("num_splits", num_splits)
    if pack_gqa is not None:
        check.flag("pack_gqa", pack_gqa)
    check.count("sm_margin", sm_margin)


def descale(name: str, x: Tensor | None, q: Tensor, batch: int, kv_heads: int) -> Tensor | None:
    """What to multiply an FP8 input by: float32 ``[B, h_kv]``, or ``None``."""
    if x is None:
        return None
    check.tensor(name, x)
    if q.dtype != check.FP8:
        got = str(q.dtype).removeprefix("torch.")
        raise ValueError(f"{name}: expected None unless q is float8_e4m3fn, got it for {got}")
    check.dtype(name, x, (torch.float32,))
    check.shape(name, x, (batch, kv_heads))
    check.same_device(q=q, **{name: x})
    if x.device.type == "cpu" and not x.isfinite().all():
        raise ValueError(f"{name}: expected finite scales, got {x.tolist()}")
    return x


def qv_like(qv: Tensor, q: Tensor, value_dim: int) -> None:
    """``qv`` has the shape of ``q`` with the width of a value."""
    check.tensor("qv", qv)
    check.shape("qv", qv, (*q.shape[:-1], value_dim))
    check.dtype("qv", qv, (q.dtype,))
    check.same_device(q=q, qv=qv)
    if q.dtype == check.FP8:
        raise NotImplementedError(
            "qv with float8_e4m3fn is not supported: dequantize q, k, v and qv first"
        )


def dense_last_dim(x: Tensor) -> Tensor:
    """``x``, copied if its last dim is strided."""
    return x if not isinstance(x, Tensor) or x.dim() == 0 or x.stride(-1) == 1 else x.contiguous()
