"""The calls of ``paged_decode``, ``tied_decode`` and ``merge`` that are compiled ahead of time."""

from dataclasses import replace

import torch
from torch import Tensor

from ridgeline.ops.merge.triton import merge
from ridgeline.ops.paged_decode import triton as paged
from ridgeline.ops.tied_decode import triton as tied
from ridgeline.testing.triton_aot import Calls

BF16, FP8 = torch.bfloat16, torch.float8_e4m3fn
EVERYWHERE, HOPPER = (80, 90, 100), (90,)
# Arguments: L_q, h_q, h_kv or h_s, dims, dtype of the cache, page size.
CALLS: Calls = {
    "gqa-32-8-d128": (EVERYWHERE, lambda: _paged(1, 32, 8, 128, BF16, 64, prefetch=2)),
    "mqa-32-d64-fp8": (
        (80,),
        lambda: _paged(2, 32, 1, 64, FP8, 64, window=1024, softcap=30.0),
    ),
    "gta-32-8-d128": ((80,), lambda: _tied(1, 32, 8, (64, 64, 128), BF16, 64)),
    "mla-16": (HOPPER, lambda: _tied(1, 16, 1, (512, 64, 512), BF16, 64, prefetch=1)),
    "gla-2-of-128": (HOPPER, lambda: _tied(1, 128, 2, (256, 64, 256), BF16, 64)),
    "mla-128": ((90, 100), lambda: _tied(1, 128, 1, (512, 64, 512), BF16, 64)),
    "gla-2-of-128-fp8": (HOPPER, lambda: _tied(1, 128, 2, (256, 64, 256), FP8, 1)),
    "merge-d128": (EVERYWHERE, lambda: _merge(128)),
}


def _table(page_size: int, lengths: int = 4, tokens: int = 8192) -> tuple[Tensor, Tensor]:
    table = torch.zeros(lengths, tokens // page_size, dtype=torch.int32)
    return table, torch.zeros(lengths, dtype=torch.int32)


def _merge(dim: int) -> None:
    merge(torch.zeros(4, 8, dim, dtype=BF16), torch.zeros(4, 8))


def _paged(
    query_len: int,
    heads: int,
    kv_heads: int,
    dim: int,
    cache_dtype: torch.dtype,
    page_size: int,
    *,
    window: int = -1,
    softcap: float = 0.0,
    prefetch: int = 0,
) -> None:
    table, lengths = _table(page_size)
    q = torch.empty(lengths.shape[0], query_len, heads, dim, dtype=BF16)
    cache = torch.empty(4, page_size, kv_heads, dim, dtype=cache_dtype)
    scale = torch.ones(kv_heads) if cache_dtype == FP8 else None
    config = replace(paged.config_for(q, cache, dim, scale, scale), prefetch=prefetch)
    options = (dim**-0.5, True, window, -1, softcap, scale, scale, 4 if softcap else 0)
    out, lse = torch.empty_like(q), torch.empty(q.shape[:3])
    paged.paged_decode(q, cache, cache, table, lengths, *options, out, lse, config=config)


def _tied(
    query_len: int,
    heads: int,
    state_heads: int,
    dims: tuple[int, int, int],
    cache_dtype: torch.dtype,
    page_size: int,
    *,
    prefetch: int = 0,
) -> None:
    nope, rope, state = dims
    table, lengths = _table(page_size)
    q = torch.empty(lengths.shape[0], query_len, heads, nope + rope, dtype=BF16)
    q_nope, q_rope = q[..., :nope], q[..., nope:]
    cache = torch.empty(4, page_size, state_heads, state, dtype=cache_dtype)
    rope_cache = torch.empty(4, page_size, rope, dtype=BF16)
    scale = torch.ones(4, page_size, state_heads, state // 128) if cache_dtype == FP8 else None
    config = replace(tied.config_for(q_nope, q_rope, cache, scale), prefetch=prefetch)
    out, lse = torch.empty(*q.shape[:3], state, dtype=BF16), torch.empty(q.shape[:3])
    inputs = (q_nope, q_rope, cache, rope_cache, table, lengths)
    tied.tied_decode(*inputs, 192**-0.5, True, scale, 0, out, lse, config=config)
