"""The functions of FlashMLA's interface, over ``ridgeline.tied_decode``.

Any number of latent heads, any latent and RoPE width, any page size. What differs from FlashMLA is
in ``docs/interfaces.md``.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ridgeline.flash_attn_interface.latent import tied_decode_by_head
from ridgeline.ops.common import check
from ridgeline.ops.tied_decode import tied_decode

__all__ = ["FlashMLASchedMeta", "flash_mla_with_kvcache", "get_mla_metadata"]


@dataclass
class FlashMLASchedMeta:
    """Nothing: Ridgeline's schedules are made in the call."""


def get_mla_metadata(*args: Any, **kwargs: Any) -> tuple[FlashMLASchedMeta, None]:
    """What ``flash_mla_with_kvcache`` takes as its metadata; arguments of any kind are not used."""
    return FlashMLASchedMeta(), None


@torch.no_grad()
def flash_mla_with_kvcache(
    q: Tensor,
    k_cache: Tensor,
    block_table: Tensor | None,
    cache_seqlens: Tensor | None,
    head_dim_v: int,
    tile_scheduler_metadata: FlashMLASchedMeta,
    num_splits: None = None,
    softmax_scale: float | None = None,
    causal: bool = False,
    is_fp8_kvcache: bool = False,
    indices: Tensor | None = None,
    attn_sink: Tensor | None = None,
    extra_k_cache: Tensor | None = None,
    extra_indices_in_kvcache: Tensor | None = None,
    topk_length: Tensor | None = None,
    extra_topk_length: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Absorbed MLA or GLA decode: keys are cached records, values their first ``head_dim_v``.

    Query i of L_q stands at token ``cache_seqlens - L_q + i``. Not differentiable.

    Args:
        q: ``[B, L_q, h_q, d]``, latent part first, then ``d - head_dim_v`` of RoPE; bfloat16,
            float16, float32 or float64.
        k_cache: ``[num_pages, page_size, h_kv, d]``, each latent head with a RoPE key of its own
            (FlashMLA's layout, 576 = 512 + 64); or ``[num_pages, page_size, h_kv * head_dim_v +
            d - head_dim_v]``, the latents and then one RoPE key for all (GLA's record). Any strides
            with a contiguous last dim, dtype of ``q``. ``h_kv`` divides ``h_q``.
        block_table: ``[B, max_pages]`` int32, page ids in order. Those not needed are not read.
        cache_seqlens: ``[B]`` int32, cached tokens, the queries' own among them.
        head_dim_v: width of a latent, at most ``d``.
        tile_scheduler_metadata: of ``get_mla_metadata``.
        num_splits: ``None``.
        softmax_scale: factor of the scores, default ``d ** -0.5``. Absorbed models mostly want
            that of their expanded heads.
        causal: a query sees no token after its own position.
        is_fp8_kvcache, indices, attn_sink, extra_k_cache, extra_indices_in_kvcache, topk_length,
            extra_topk_length: not supported; leave the defaults.

    Returns:
        ``out [B, L_q, h_q, head_dim_v]`` in the dtype of ``q`` and ``lse [B, h_q, L_q]`` float32
        (float64 for float64), natural log. A query that sees no token gives 0 and, as in FlashMLA,
        **+inf**.

    Raises:
        TypeError, ValueError: an argument is wrong; the message names it.
        NotImplementedError: an FP8 cache, sparse attention or a sink.
    """
    _refuse(is_fp8_kvcache, indices, attn_sink)
    for name, x in (
        ("extra_k_cache", extra_k_cache),
        ("extra_indices_in_kvcache", extra_indices_in_kvcache),
        ("topk_length", topk_length),
        ("extra_topk_length", extra_topk_length),
    ):
        if x is not None:
            raise NotImplementedError(f"{name} belongs to sparse attention, {_NO_SPARSE}")
    if not isinstance(tile_scheduler_metadata, FlashMLASchedMeta):
        got = type(tile_scheduler_metadata).__name__
        raise TypeError(f"tile_scheduler_metadata: expected that of get_mla_metadata(), got {got}")
    if num_splits is not None:
        raise TypeError(f"num_splits: expected None, got {type(num_splits).__name__}")
    check.tensor("q", q)
    check.tensor("k_cache", k_cache)
    check.queries("q", q)
    check.dtype("k_cache", k_cache, (q.dtype,))
    check.contiguous_last_dim("k_cache", k_cache)
    width, heads = q.shape[3], q.shape[2]
    check.count("head_dim_v", head_dim_v, minimum=1, maximum=width)
    scale = width**-0.5 if softmax_scale is None else check.finite("softmax_scale", softmax_scale)
    q_nope, q_rope = q.split((head_dim_v, width - head_dim_v), dim=-1)
    lengths = (block_table, cache_seqlens)
    options = {
        "softmax_scale": scale,
        "causal": check.flag("causal", causal),
        "num_splits": 0,
    }
    if k_cache.dim() == 3:
        kv_heads = _latents(k_cache, head_dim_v, width)
        check.divides("h_kv of k_cache", kv_heads, "q.shape[2]", heads)
        latent, rope = k_cache.split((kv_heads * head_dim_v, width - head_dim_v), dim=-1)
        latent = latent.unflatten(-1, (kv_heads, head_dim_v))
        out, lse = tied_decode(q_nope, q_rope, latent, rope, *lengths, **options, return_lse=True)
    else:
        check.shape("k_cache", k_cache, ("num_pages", "page_size", "h_kv", width))
        check.divides("k_cache.shape[2]", k_cache.shape[2], "q.shape[2]", heads)
        latent, rope = k_cache.split((head_dim_v, width - head_dim_v), dim=-1)
        out, lse = tied_decode_by_head(q_nope, q_rope, latent, rope, *lengths, **options)
    lse = lse.transpose(1, 2).contiguous()
    return out, lse.masked_fill_(lse == -torch.inf, torch.inf)


_NO_SPARSE = "which is not supported: use dense attention with block_table and cache_seqlens"


def _refuse(is_fp8_kvcache: bool, indices: Tensor | None, attn_sink: Tensor | None) -> None:
    if check.flag("is_fp8_kvcache", is_fp8_kvcache):
        raise NotImplementedError(
            "is_fp8_kvcache: FlashMLA's byte layout is not supported; use ridgeline.tied_decode "
            "with a float8_e4m3fn state_cache and its state_scale"
        )
    if indices is not None:
        raise NotImplementedError(f"indices ask for sparse attention, {_NO_SPARSE}")
    if attn_sink is not None:
        raise NotImplementedError(
            "attn_sink is not supported: multiply out by sigmoid(lse - attn_sink), heads aligned"
        )


def _latents(k_cache: Tensor, head_dim_v: int, width: int) -> int:
    """``h_kv`` of records of ``h_kv`` latents and one RoPE key."""
    kv_heads, rest = divmod(k_cache.shape[2] - (width - head_dim_v), head_dim_v)
    if kv_heads < 1 or rest:
        raise ValueError(
            f"k_cache: expected records of h_kv * {head_dim_v} + {width - head_dim_v}, "
            f"got {k_cache.shape[2]}"
        )
    return kv_heads
