"""``tied_decode`` on Hopper: each tile of states is operand of both products."""

from torch import Tensor

from ridgeline.ops.common import device, hopper_config
from ridgeline.ops.common.hopper_config import HopperConfig


def config_for(
    q_nope: Tensor, q_rope: Tensor, state_cache: Tensor, state_scale: Tensor | None = None
) -> HopperConfig:
    """The tiling of a call, from its shapes alone."""
    _, query_len, heads, nope_dim = q_nope.shape
    state_heads, state_dim = state_cache.shape[2:]
    return hopper_config.decode_config(
        query_len * heads // state_heads,
        state_heads,
        nope_dim,
        state_dim,
        q_rope.shape[3],
        state_dim,
        tied=True,
        k_blocks=hopper_config.blocks(state_scale),
    )


def unsupported(
    q_nope: Tensor, q_rope: Tensor, state_cache: Tensor, state_scale: Tensor | None
) -> str | None:
    """Why this implementation cannot run the call, or ``None``."""
    return hopper_config.unsupported(
        q_nope,
        lambda: config_for(q_nope, q_rope, state_cache, state_scale),
    )


def tied_decode(
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
    out: Tensor,
    lse: Tensor,
    *,
    config: HopperConfig | None = None,
) -> None:
    """Fills ``out [B, L_q, h_q, d_s]`` and ``lse [B, L_q, h_q]``, both contiguous.

    ``config`` replaces the tiling that ``config_for`` chooses; it changes the result within
    rounding, its ``prefetch`` not at all.
    """
    from ridgeline.ops.common import hopper

    batch, query_len = q_nope.shape[:2]
    num_pages, page_size = state_cache.shape[:2]
    device.check_values_of_decode(
        block_table,
        cache_seqlens,
        page_size,
        num_pages,
        query_len,
        -1,
        {"state_scale": state_scale},
    )
    if batch == 0:
        return
    roped = q_rope.shape[3] > 0
    hopper.decode(
        q_nope,
        q_rope if roped else None,
        state_cache,
        rope_cache if roped else None,
        None,
        block_table,
        cache_seqlens,
        k_scale=state_scale,
        v_scale=None,
        softmax_scale=softmax_scale,
        causal=causal,
        window_left=-1,
        window_right=-1,
        softcap=0.0,
        num_splits=num_splits,
        out=out,
        lse=lse,
        config=config or config_for(q_nope, q_rope, state_cache, state_scale),
    )
