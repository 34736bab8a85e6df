"""Merging partial results, and the metadata of a schedule."""

import torch
from torch import Tensor

from ridgeline.flash_attn_interface import arguments
from ridgeline.ops.common import check
from ridgeline.ops.merge import merge


def flash_attn_combine(
    out_partial: Tensor,
    lse_partial: Tensor,
    out: Tensor | None = None,
    out_dtype: torch.dtype | None = None,
) -> tuple[Tensor, Tensor]:
    """Attention over the union of S sets of keys from its results over each set.

    Args:
        out_partial: ``[S, B, L, h, d_v]``, S >= 1, any floating dtype.
        lse_partial: ``[S, B, L, h]`` float32 or float64, natural log; -inf for a part that saw no
            key, whose ``out_partial`` is not used.
        out: ``[B, L, h, d_v]`` to write the result to, in ``out_dtype``.
        out_dtype: of the result, default that of ``out_partial``.

    Returns:
        ``out [B, L, h, d_v]`` and ``lse [B, L, h]`` in the dtype of ``lse_partial``; 0 and -inf
        where no part saw a key. Differentiable where ``out`` is not given.

    Raises:
        TypeError, ValueError: wrong types, shapes, dtypes or devices.
    """
    check.tensor("out_partial", out_partial)
    check.tensor("lse_partial", lse_partial)
    check.shape("out_partial", out_partial, ("S", "B", "L", "h", "d_v"))
    check.shape("lse_partial", lse_partial, tuple(out_partial.shape[:-1]))
    check.dtype("out_partial", out_partial, check.FLOATS)
    check.dtype("lse_partial", lse_partial, (torch.float32, torch.float64))
    check.same_device(out_partial=out_partial, lse_partial=lse_partial, out=out)
    if out_partial.shape[0] == 0:
        raise ValueError("out_partial: expected at least one part, got none")
    dtype = out_partial.dtype if out_dtype is None else out_dtype
    if dtype not in check.FLOATS:
        names = ", ".join(str(d).removeprefix("torch.") for d in check.FLOATS)
        raise TypeError(f"out_dtype: expected {names}, got {dtype}")
    if out is not None:
        check.tensor("out", out)
        check.shape("out", out, tuple(out_partial.shape[1:]))
        check.dtype("out", out, (dtype,))
    result, lse = merge(out_partial, lse_partial)
    result = result.to(dtype)
    return (result if out is None else out.copy_(result)), lse


def get_scheduler_metadata(
    batch_size: int,
    max_seqlen_q: int,
    max_seqlen_k: int,
    num_heads_q: int,
    num_heads_kv: int,
    headdim: int,
    cache_seqlens: Tensor,
    qkv_dtype: torch.dtype = torch.bfloat16,
    headdim_v: int | None = None,
    cu_seqlens_q: Tensor | None = None,
    cu_seqlens_k_new: Tensor | None = None,
    cache_leftpad: Tensor | None = None,
    page_size: int | None = None,
    max_seqlen_k_new: int = 0,
    causal: bool = False,
    window_size: tuple[int, int] = (-1, -1),
    attention_chunk: int = 0,
    has_softcap: bool = False,
    num_splits: int = 0,
    pack_gqa: bool | None = None,
    sm_margin: int = 0,
) -> Tensor:
    """An empty int32 tensor: Ridgeline's schedules are made in the call, from nothing but lengths.

    Args:
        batch_size, max_seqlen_q, max_seqlen_k, num_heads_q, num_heads_kv, headdim: sizes of the
            call that the metadata are for.
        cache_seqlens: ``[B]`` int32; the result is on its device.
        qkv_dtype, headdim_v, cu_seqlens_q, cu_seqlens_k_new, cache_leftpad, page_size,
            max_seqlen_k_new, causal, window_size, attention_chunk, has_softcap, num_splits,
            pack_gqa, sm_margin: as in the call; not used.

    Returns:
        ``[0]`` int32, which ``flash_attn_with_kvcache`` takes as ``scheduler_metadata``.

    Raises:
        TypeError, ValueError: a size or a hint of the wrong type, or ``cache_seqlens`` not one
            length a sequence.
    """
    check.tensor("cache_seqlens", cache_seqlens)
    check.shape("cache_seqlens", cache_seqlens, (check.count("batch_size", batch_size),))
    check.dtype("cache_seqlens", cache_seqlens, (torch.int32,))
    for name, size in (
        ("max_seqlen_q", max_seqlen_q),
        ("max_seqlen_k", max_seqlen_k),
        ("num_heads_q", num_heads_q),
        ("num_heads_kv", num_heads_kv),
        ("headdim", headdim),
        ("max_seqlen_k_new", max_seqlen_k_new),
    ):
        check.count(name, size)
    check.divides("num_heads_kv", num_heads_kv, "num_heads_q", num_heads_q)
    arguments.schedule_hints(num_splits, pack_gqa, sm_margin)
    return torch.empty(0, dtype=torch.int32, device=cache_seqlens.device)
