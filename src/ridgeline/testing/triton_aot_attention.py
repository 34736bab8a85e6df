"""The calls of ``attention`` that are compiled ahead of time."""

import torch

from ridgeline.ops.attention.triton import backward, forward, quantize
from ridgeline.testing.triton_aot import Calls

BF16, F16, F32 = torch.bfloat16, torch.float16, torch.float32
# Each kernel for each architecture, and each kind of product, once at least.
CALLS: Calls = {
    "mha-16-d128-causal": ((90, 100), lambda: call(16, 16, 128, 128, BF16)),
    "gqa-32-8-d64-tree-packed": (
        (90,),
        lambda: call(32, 8, 64, 64, BF16, tree=True, packed=True),
    ),
    "gqa-8-2-d64-tree-forward": (
        (80, 100),
        lambda: call(8, 2, 64, 64, BF16, tree=True, gradients=False),
    ),
    "mqa-4-d32-v80-window-softcap": (
        (80,),
        lambda: call(4, 1, 32, 80, F16, causal=False, window=1024, softcap=30.0),
    ),
    "mha-8-d256-causal": ((90,), lambda: call(8, 8, 256, 256, BF16)),
    "quantize-8-d128-rope-rotated": ((90, 100), lambda: quantized(8, 128)),
    # Large, unrolled code without matrix units: on demand, by ``--arch``.
    "mha-8-d64-float32": ((), lambda: call(8, 8, 64, 64, F32, causal=False)),
    "mha-8-d128-float32": ((), lambda: call(8, 8, 128, 128, F32, causal=False)),
}


def call(
    heads: int,
    kv_heads: int,
    dim: int,
    value_dim: int,
    dtype: torch.dtype,
    *,
    causal: bool = True,
    tree: bool = False,
    packed: bool = False,
    window: int = -1,
    softcap: float = 0.0,
    gradients: bool = True,
) -> None:
    """Two sequences of 2,048 tokens, or as many packed ones."""
    lead = (4096,) if packed else (2, 2048)
    q = torch.empty(*lead, heads, dim, dtype=dtype)
    k = torch.empty(*lead, kv_heads, dim, dtype=dtype)
    v = torch.empty(*lead, kv_heads, value_dim, dtype=dtype)
    starts = torch.zeros(3, dtype=torch.int32) if packed else None
    ends = torch.zeros(lead, dtype=torch.int32) if tree else None
    layout, options = (starts, starts, ends), (dim**-0.5, causal, window, -1, softcap)
    out, lse = torch.empty(*lead, heads, value_dim, dtype=dtype), torch.empty(*lead, heads)
    forward.forward(q, k, v, *layout, *options, out, lse)
    if gradients:
        upstream = (out, lse, q, k, v, out, lse)
        filled = (torch.empty_like(x) for x in (q, k, v))
        backward.backward(*upstream, *layout, *options, *filled)


def quantized(heads: int, dim: int) -> None:
    """One scale for 128 rows, after rotary embedding and the random rotation."""
    x = torch.empty(2, 2048, heads, dim, dtype=BF16)
    values, scales = x.to(torch.float8_e4m3fn), torch.empty(2, 16, heads)
    angles = torch.empty(2, 2048, dim // 2)
    quantize.quantize_rows(x, values, scales, torch.empty(dim), (angles, angles), 128)
