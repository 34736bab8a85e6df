"""Representative launches of the Hopper kernel, to compile ahead of time."""

from collections.abc import Callable
from dataclasses import replace
from unittest import mock

import torch

from ridgeline.ops.common import device
from ridgeline.ops.paged_decode import hopper as paged
from ridgeline.ops.tied_decode import hopper as tied
from ridgeline.testing.gluon.versions import GluonJITFunction
from ridgeline.testing.gluon_aot import Launch, launch

BF16 = torch.bfloat16
PROCESSORS = 132


def recorded(call: Callable[[], None], index: int = 0) -> Launch:
    """The launch of the Hopper kernel in a call, or the one after ``index``; nothing runs."""
    found = []

    def run(self, *args, grid, warmup, **kwargs):
        found.append(launch(self, *args, **kwargs))

    with (
        mock.patch.object(GluonJITFunction, "run", run),
        mock.patch("ridgeline.ops.common.triton_splits.Splits.combine"),
        mock.patch.object(device, "check_values_of_decode"),
        mock.patch("ridgeline.ops.common.triton_splits.processors", return_value=PROCESSORS),
    ):
        call()
    return found[index]


def tables(
    page_size: int, batch: int = 128, tokens: int = 4096
) -> tuple[torch.Tensor, torch.Tensor]:
    lengths = torch.zeros(batch, dtype=torch.int32)
    return torch.zeros(batch, tokens // page_size, dtype=torch.int32), lengths


def tied_call(
    query_len: int,
    heads: int,
    state_heads: int,
    dims: tuple[int, int, int],
    page_size: int,
    *,
    scale: torch.Tensor | None = None,
    spare: int = 0,
    **changes: int,
) -> Callable[[], None]:
    """``dims``: of the queries' part without RoPE, of the RoPE key, of a state. ``scale``: FP8.
    ``spare``: elements between records."""
    nope, rope, state = dims
    table, lengths = tables(page_size)
    q = torch.empty(len(lengths), query_len, heads, nope + rope, dtype=BF16)
    record = torch.empty(4, page_size, state_heads * state + rope + spare, dtype=BF16)
    cache = record[..., : state_heads * state].unflatten(-1, (state_heads, state))
    rope_cache = record[..., state_heads * state :][..., :rope]
    if scale is not None:
        cache = torch.empty(cache.shape, dtype=torch.float8_e4m3fn)
    out, lse = torch.empty(*q.shape[:3], state, dtype=BF16), torch.empty(q.shape[:3])
    config = replace(tied.config_for(q[..., :nope], q[..., nope:], cache, scale), **changes)
    inputs = (q[..., :nope], q[..., nope:], cache, rope_cache, table, lengths)
    return lambda: tied.tied_decode(*inputs, 192**-0.5, True, scale, 0, out, lse, config=config)


def paged_call(
    query_len: int, heads: int, kv_heads: int, dim: int, page_size: int, window: int = -1
) -> Callable[[], None]:
    table, lengths = tables(page_size)
    q = torch.empty(len(lengths), query_len, heads, dim, dtype=BF16)
    cache = torch.empty(4, page_size, kv_heads, dim, dtype=BF16)
    out, lse = torch.empty_like(q), torch.empty(q.shape[:3])
    options = (dim**-0.5, True, window, -1, 0.0, None, None, 0)
    return lambda: paged.paged_decode(q, cache, cache, table, lengths, *options, out, lse)


CALLS = {
    "mla-16": tied_call(1, 16, 1, (512, 64, 512), 64, prefetch=2),
    "mla-16-odd-strides": tied_call(1, 16, 1, (512, 64, 512), 64, spare=1),
    "mla-32": tied_call(1, 32, 1, (512, 64, 512), 64),
    "mla-128": tied_call(1, 128, 1, (512, 64, 512), 64),
    "mla-16-fp8": tied_call(1, 16, 1, (512, 64, 512), 64, scale=torch.ones(())),
    "mla-16-fp8-blocks": tied_call(1, 16, 1, (512, 64, 512), 64, scale=torch.empty(4, 64, 1, 4)),
    "gla-2-of-32-page-1": tied_call(1, 32, 2, (256, 64, 256), 1),
    "gta-32-8-page-16": tied_call(1, 32, 8, (64, 64, 128), 16),
    "gqa-32-8": paged_call(1, 32, 8, 128, 64),
}


def launches() -> dict[str, Launch]:
    return {name: recorded(call) for name, call in CALLS.items()}


def tested() -> dict[str, Launch]:
    """Those of the tests."""
    names = ("mla-16", "mla-128", "mla-16-fp8-blocks", "gla-2-of-32-page-1", "gqa-32-8")
    return {name: recorded(CALLS[name]) for name in names}
