"""The torch.library operation ``ridgeline::tied_decode``: schema, checks, fake, dispatch."""

import torch
from torch import Tensor

from ridgeline.ops.common import check, device, paging
from ridgeline.ops.common.dispatch import empty_outputs, pick
from ridgeline.ops.tied_decode import cpu, hopper, reference

torch.library.define(
    "ridgeline::tied_decode",
    "(Tensor q_nope, Tensor q_rope, Tensor state_cache, Tensor rope_cache, Tensor block_table, "
    "Tensor cache_seqlens, float softmax_scale, bool causal, Tensor? state_scale, "
    "int num_splits, str impl) -> (Tensor, Tensor)",
)


def check_shapes(
    q_nope: Tensor,
    q_rope: Tensor,
    state_cache: Tensor,
    rope_cache: Tensor,
    block_table: Tensor,
    cache_seqlens: Tensor,
) -> None:
    check.queries("q_nope", q_nope)
    batch, query_len, heads, nope_dim = q_nope.shape
    check.shape("q_rope", q_rope, (batch, query_len, heads, "d_r"))
    check.dtype("q_rope", q_rope, (q_nope.dtype,))
    check.contiguous_last_dim("q_rope", q_rope)
    paging.check_cache("state_cache", state_cache, q_nope)
    num_pages, page_size, state_heads, state_dim = state_cache.shape
    check.shape("rope_cache", rope_cache, (num_pages, page_size, q_rope.shape[-1]))
    check.dtype("rope_cache", rope_cache, (q_nope.dtype,))
    check.contiguous_last_dim("rope_cache", rope_cache)
    check.divides("state_cache.shape[2]", state_heads, "q_nope.shape[2]", heads)
    if nope_dim > state_dim:
        raise ValueError(
            f"q_nope: expected a last dim of at most {state_dim} (d_s of state_cache), "
            f"got {nope_dim}"
        )
    paging.check_table(block_table, cache_seqlens, batch)
    check.same_device(
        q_nope=q_nope,
        q_rope=q_rope,
        state_cache=state_cache,
        rope_cache=rope_cache,
        block_table=block_table,
        cache_seqlens=cache_seqlens,
    )


@torch.library.register_fake("ridgeline::tied_decode")
def _fake(q_nope, q_rope, state_cache, rope_cache, block_table, cache_seqlens, *_):
    check_shapes(q_nope, q_rope, state_cache, rope_cache, block_table, cache_seqlens)
    return empty_outputs(q_nope, state_cache.shape[-1])


@torch.library.impl("ridgeline::tied_decode", ("cpu", "cuda"))
def _run(
    q_nope: Tensor,
    q_rope: Tensor,
    state_cache: Tensor,
    rope_cache: Tensor,
    block_table: Tensor,
    cache_seqlens: Tensor,
    softmax_scale: float,
    causal: bool,
    state_scale: Tensor | None,
    num_splits: int,
    impl: str,
) -> tuple[Tensor, Tensor]:
    out, lse = empty_outputs(q_nope, state_cache.shape[-1])
    inputs = (q_nope, q_rope, state_cache, rope_cache, block_table, cache_seqlens)
    choice = pick(
        impl,
        {
            "triton": lambda: device.unsupported(
                q_nope,
                state_cache,
                (q_rope.shape[-1], state_cache.shape[-1]),
                interpret=impl == "triton",
            ),
            # Behind triton until a GPU has verified it: "auto" puts correctness before speed.
            "hopper": lambda: hopper.unsupported(q_nope, q_rope, state_cache, state_scale),
            "cpu": lambda: cpu.unsupported(q_nope, state_cache),
            "reference": lambda: None,
        },
    )
    match choice:
        case "triton":
            from ridgeline.ops.tied_decode import triton

            triton.tied_decode(*inputs, softmax_scale, causal, state_scale, num_splits, out, lse)
        case "hopper":
            hopper.tied_decode(*inputs, softmax_scale, causal, state_scale, num_splits, out, lse)
        case "cpu":
            cpu.tied_decode(*inputs, softmax_scale, causal, num_splits, out, lse)
        case "reference":
            reference.tied_decode(*inputs, softmax_scale, causal, state_scale, out, lse)
    return out, lse
