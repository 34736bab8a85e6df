"""``paged_decode`` on Hopper: the query heads of a cached head are the rows of one tile.

Many queries, as of a chunk of a prompt, are the work of the forward kernel of ``attention``.
"""

from torch import Tensor

from ridgeline.ops.attention.hopper.config import ForwardConfig
from ridgeline.ops.attention.hopper.paged_config import paged_config
from ridgeline.ops.common import device, hopper_config
from ridgeline.ops.common.hopper_config import HopperConfig


def config_for(
    q: Tensor,
    k_cache: Tensor,
    value_dim: int,
    k_scale: Tensor | None = None,
    v_scale: Tensor | None = None,
) -> HopperConfig:
    """The tiling of a call, from its shapes alone."""
    _, query_len, heads, dim = q.shape
    kv_heads = k_cache.shape[2]
    rows = query_len * heads // kv_heads
    return hopper_config.decode_config(
        rows,
        kv_heads,
        dim,
        dim,
        0,
        value_dim,
        tied=False,
        k_blocks=hopper_config.blocks(k_scale),
        v_blocks=hopper_config.blocks(v_scale),
    )


def unsupported(
    q: Tensor, k_cache: Tensor, v_cache: Tensor, k_scale: Tensor | None, v_scale: Tensor | None
) -> str | None:
    """Why this implementation cannot run the call, or ``None``."""
    return hopper_config.unsupported(
        q,
        lambda: config_for(q, k_cache, v_cache.shape[3], k_scale, v_scale),
    )


def paged_decode(
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
    out: Tensor,
    lse: Tensor,
    *,
    config: HopperConfig | ForwardConfig | None = None,
) -> None:
    """Fills ``out [B, L_q, h_q, d_v]`` and ``lse [B, L_q, h_q]``.

    ``config`` as in tied_decode, or a tiling of ``attention``'s forward kernel, which then runs;
    ``None``: that of ``paged_config`` where it gives one.
    """
    batch, query_len = q.shape[:2]
    num_pages, page_size = k_cache.shape[:2]
    capacity = block_table.shape[1] * page_size
    scales = {"k_scale": k_scale, "v_scale": v_scale}
    device.check_values_of_decode(
        block_table, cache_seqlens, page_size, num_pages, query_len, window_left, scales
    )
    if batch == 0:
        return
    config = config or paged_config(q, k_cache, v_cache, num_splits)
    if isinstance(config, ForwardConfig):
        from ridgeline.ops.attention.hopper.forward import forward

        options = (softmax_scale, causal, window_left, window_right, softcap, out, lse)
        tables = {"block_table": block_table, "cache_seqlens": cache_seqlens}
        forward(q, k_cache, v_cache, None, None, None, *options, **tables, config=config)
        return
    # A side of the window that bounds no query's view is dropped.
    window_left = -1 if window_left >= capacity else window_left
    window_right = -1 if causal or window_right >= query_len - 1 else window_right
    from ridgeline.ops.common import hopper

    hopper.decode(
        q,
        None,
        k_cache,
        None,
        v_cache,
        block_table,
        cache_seqlens,
        k_scale=k_scale,
        v_scale=v_scale,
        softmax_scale=softmax_scale,
        causal=causal,
        window_left=window_left,
        window_right=window_right,
        softcap=softcap,
        num_splits=num_splits,
        out=out,
        lse=lse,
        config=config or config_for(q, k_cache, v_cache.shape[3], k_scale, v_scale),
    )
