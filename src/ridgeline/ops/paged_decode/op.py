"""The torch.library operation ``ridgeline::paged_decode``: schema, checks, fake, dispatch."""

import torch
from torch import Tensor

from ridgeline.ops.common import check, device, paging
from ridgeline.ops.common.dispatch import empty_outputs, pick
from ridgeline.ops.paged_decode import cpu, hopper, reference

torch.library.define(
    "ridgeline::paged_decode",
    "(Tensor q, Tensor k_cache, Tensor v_cache, Tensor block_table, Tensor cache_seqlens, "
    "float softmax_scale, bool causal, int window_left, int window_right, float softcap, "
    "Tensor? k_scale, Tensor? v_scale, int num_splits, str impl) -> (Tensor, Tensor)",
)


def check_shapes(
    q: Tensor, k_cache: Tensor, v_cache: Tensor, block_table: Tensor, cache_seqlens: Tensor
) -> None:
    check.queries("q", q)
    paging.check_cache("k_cache", k_cache, q)
    paging.check_cache("v_cache", v_cache, q)
    batch, _, heads, dim = q.shape
    num_pages, page_size, kv_heads, _ = k_cache.shape
    check.shape("k_cache", k_cache, (num_pages, page_size, kv_heads, dim))
    check.shape("v_cache", v_cache, (num_pages, page_size, kv_heads, "d_v"))
    if v_cache.dtype != k_cache.dtype:
        raise TypeError(
            f"v_cache: expected the dtype of k_cache, {k_cache.dtype}, got {v_cache.dtype}"
        )
    check.divides("k_cache.shape[2]", kv_heads, "q.shape[2]", heads)
    paging.check_table(block_table, cache_seqlens, batch)
    check.same_device(
        q=q, k_cache=k_cache, v_cache=v_cache, block_table=block_table, cache_seqlens=cache_seqlens
    )


@torch.library.register_fake("ridgeline::paged_decode")
def _fake(q, k_cache, v_cache, block_table, cache_seqlens, *_):
    check_shapes(q, k_cache, v_cache, block_table, cache_seqlens)
    return empty_outputs(q, v_cache.shape[-1])


@torch.library.impl("ridgeline::paged_decode", ("cpu", "cuda"))
def _run(
    q: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    block_table: Tensor,
    cache_seqlens: Tensor,
    softmax_scale: float,
    causal: bool,
    window_left: int,
    window_right: int,
    softcap: float,
    k_scale: Tensor | None,
    v_scale: Tensor | None,
    num_splits: int,
    impl: str,
) -> tuple[Tensor, Tensor]:
    out, lse = empty_outputs(q, v_cache.shape[-1])
    inputs = (q, k_cache, v_cache, block_table, cache_seqlens)
    options = (softmax_scale, causal, window_left, window_right, softcap)
    scales = (k_scale, v_scale)
    choice = pick(
        impl,
        {
            "triton": lambda: device.unsupported(
                q, k_cache, (q.shape[-1], v_cache.shape[-1]), interpret=impl == "triton"
            ),
            # Behind triton until a GPU has verified it: "auto" puts correctness before speed.
            "hopper": lambda: hopper.unsupported(q, k_cache, v_cache, k_scale, v_scale),
            "cpu": lambda: cpu.unsupported(q, k_cache),
            "reference": lambda: None,
        },
    )
    match choice:
        case "triton":
            from ridgeline.ops.paged_decode import triton

            triton.paged_decode(*inputs, *options, *scales, num_splits, out, lse)
        case "hopper":
            hopper.paged_decode(*inputs, *options, *scales, num_splits, out, lse)
        case "cpu":
            cpu.paged_decode(*inputs, *options, num_splits, out, lse)
        case "reference":
            reference.paged_decode(*inputs, *options, *scales, out, lse)
    return out, lse
