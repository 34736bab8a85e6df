"""Representative launches of the Hopper attention kernels, to compile ahead of time."""

import json
import re
import sys
from collections.abc import Callable
from dataclasses import asdict
from unittest import mock

import torch
from hopper_launches import BF16, PROCESSORS, recorded

from ridgeline.ops.attention.hopper import forward
from ridgeline.ops.attention.hopper.paged_config import paged_config
from ridgeline.testing.gluon_aot import Launch, compiled, disassembled, resources


def forward_call(
    dim: int,
    value_dim: int,
    heads: int = 16,
    kv_heads: int = 16,
    length: int = 8192,
    *,
    causal: bool = False,
    window: int = -1,
    softcap: float = 0.0,
    packed: bool = False,
    tree: bool = False,
    dtype: torch.dtype = BF16,
    block: int = 128,
) -> Callable[[], None]:
    """Of a forward; FP8 with a scale for each ``block`` of rows, or packed each head."""
    batch = 1 if packed else 2
    q = torch.empty(batch, length, heads, dim, dtype=dtype)
    k = torch.empty(batch, length, kv_heads, dim, dtype=dtype)
    v = torch.empty(batch, length, kv_heads, value_dim, dtype=dtype)
    ends = torch.empty(batch, length, dtype=torch.int32) if tree else None
    starts = torch.tensor([0, length // 2, length], dtype=torch.int32) if packed else None
    if packed:
        q, k, v = q[0], k[0], v[0]
        ends = None if ends is None else ends[0]
    out, lse = torch.empty(*q.shape[:-1], value_dim, dtype=BF16), torch.empty(q.shape[:-1])
    options = (dim**-0.5, causal, window, -1, softcap, out, lse)
    scales = {}
    if dtype == FP8:
        shape = () if packed else (batch, length // block)
        scales = {
            f"{name}_scale": torch.empty(*shape, x.shape[-2])
            for name, x in zip("qkv", (q, k, v), strict=True)
        }
    return lambda: forward.forward(q, k, v, starts, starts, ends, *options, **scales)


FP8 = torch.float8_e4m3fn


def paged_call(
    dim: int,
    page_size: int,
    heads: int = 32,
    kv_heads: int = 8,
    length: int = 1024,
    *,
    window: int = -1,
) -> Callable[[], None]:
    """A chunk of a prompt of each of 8 sequences, as ``paged_decode`` has it."""
    q = torch.empty(8, length, heads, dim, dtype=BF16)
    cache = torch.empty(4, page_size, kv_heads, dim, dtype=BF16)
    tables = {"cache_seqlens": torch.empty(8, dtype=torch.int32)}
    tables["block_table"] = torch.empty(8, 8192 // page_size, dtype=torch.int32)
    tables["config"] = paged_config(q, cache, cache, 1)
    options = (dim**-0.5, True, window, -1, 0.0, torch.empty_like(q), torch.empty(q.shape[:-1]))
    return lambda: forward.forward(q, cache, cache, None, None, None, *options, **tables)


FORWARD, CAREFUL = 0, 1  # launches of a call
CALLS = {
    "forward-128": (forward_call(128, 128), FORWARD),
    "forward-128-causal": (forward_call(128, 128, causal=True), FORWARD),
    "forward-64-causal": (forward_call(64, 64, causal=True), FORWARD),
    "forward-96": (forward_call(96, 96), FORWARD),
    "forward-192-128-causal": (forward_call(192, 128, causal=True), FORWARD),
    "forward-256-causal": (forward_call(256, 256, causal=True), FORWARD),
    "forward-128-packed-tree": (forward_call(128, 128, packed=True, tree=True), FORWARD),
    "forward-128-gqa-chunk": (
        forward_call(128, 128, 32, 8, length=33, causal=True, window=1000),
        FORWARD,
    ),
    "fp8-64-causal": (forward_call(64, 64, causal=True, dtype=FP8), FORWARD),
    "fp8-96": (forward_call(96, 96, dtype=FP8), FORWARD),
    "fp8-128": (forward_call(128, 128, dtype=FP8), FORWARD),
    "fp8-128-causal": (forward_call(128, 128, causal=True, dtype=FP8), FORWARD),
    "fp8-128-blocks-of-64": (forward_call(128, 128, causal=True, dtype=FP8, block=64), FORWARD),
    "fp8-128-packed-tree": (
        forward_call(128, 128, packed=True, tree=True, dtype=FP8),
        FORWARD,
    ),
    "fp8-192-128-causal": (forward_call(192, 128, causal=True, dtype=FP8), FORWARD),
    "fp8-256-causal": (forward_call(256, 256, causal=True, dtype=FP8), FORWARD),
    "paged-128-page-16": (paged_call(128, 16), FORWARD),
    "paged-128-page-128": (paged_call(128, 128), FORWARD),
    "paged-64-page-64-window": (paged_call(64, 64, window=4095), FORWARD),
    "paged-256-page-16": (paged_call(256, 16), FORWARD),
    "careful-256": (forward_call(256, 256, packed=True, tree=True, softcap=30.0), CAREFUL),
}


def launches(*names: str) -> dict[str, Launch]:
    """Of ``names``, or all."""
    with (
        mock.patch("ridgeline.ops.attention.hopper.forward.processors", return_value=PROCESSORS),
        mock.patch("ridgeline.ops.attention.tiles.ends_kernel"),
        mock.patch("ridgeline.ops.attention.tiles.lists_kernel"),
        mock.patch("ridgeline.ops.attention.hopper.turned.turn_kernel"),
    ):
        return {name: recorded(*CALLS[name]) for name in names or CALLS}


def under_products(sass: str) -> list[int]:
    """Exponentials between each wait that leaves products in flight and the one that does not."""
    parts = re.split(r"WARPGROUP\.DEPBAR\.LE gsb0, 0x", sass)
    left = [int(part[0], 16) for part in parts[1:]]
    found = zip(left, left[1:], parts[1:], strict=False)
    return [part.count("MUFU.EX2") for now, later, part in found if now > 0 and later == 0]


def report(name: str) -> dict:
    binary = compiled(launches(name)[name])
    return asdict(resources(binary)) | {"under_products": under_products(disassembled(binary)[1])}


if __name__ == "__main__":
    print(json.dumps({name: report(name) for name in sys.argv[1:]}))
