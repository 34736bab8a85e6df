"""``paged_decode`` by Triton: any page size and strides, split over programs, FP8 caches."""

import triton
import triton.language as tl
from torch import Tensor

from ridgeline.ops.common import device
from ridgeline.ops.common.device import DecodeConfig
from ridgeline.ops.common.triton import (
    LOG2_E,
    dequantize,
    dot,
    load_queries,
    load_tile,
    online_softmax_update,
    page_of,
    prefetch_rows,
    store_item,
    tanh,
    tile_range,
    visible,
)
from ridgeline.ops.common.triton_splits import Splits, first_work, item_rows, next_work


@triton.jit
def paged_decode_kernel(
    q,
    k_cache,
    v_cache,
    block_table,
    k_scale,
    v_scale,
    out,
    lse,
    partial_out,
    partial_sums,
    cache_seqlens,
    stride_length,
    batch,
    query_len,
    window_left,
    launched,
    window_right,
    softmax_scale,
    softcap,
    stride_qb,
    stride_ql,
    stride_qh,
    stride_kp,
    stride_kt,
    stride_kh,
    stride_vp,
    stride_vt,
    stride_vh,
    stride_tb,
    stride_tp,
    stride_ksp,
    stride_kst,
    stride_ksh,
    stride_ksn,
    stride_vsp,
    stride_vst,
    stride_vsh,
    stride_vsn,
    KV_HEADS: tl.constexpr,
    GROUP: tl.constexpr,
    ROW_BLOCKS: tl.constexpr,
    DIM: tl.constexpr,
    VALUE_DIM: tl.constexpr,
    K0: tl.constexpr,
    K1: tl.constexpr,
    V0: tl.constexpr,
    V1: tl.constexpr,
    WIDTH: tl.constexpr,
    PAGE_SIZE: tl.constexpr,
    CAUSAL: tl.constexpr,
    WINDOW: tl.constexpr,
    SOFTCAP: tl.constexpr,
    K_BLOCKS: tl.constexpr,
    V_BLOCKS: tl.constexpr,
    BALANCED: tl.constexpr,
    PREFETCH: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    SEQUENCES: tl.constexpr,
    MIN_TILES: tl.constexpr,
):
    """A program's runs of tiles, one item after another; see ``triton_splits``.

    ``K_BLOCKS``, ``V_BLOCKS``: FP8 scales of a token and head; -1 for one of all its tokens; 0 for
    none.
    """
    heads = KV_HEADS * ROW_BLOCKS
    dtype: tl.constexpr = q.dtype.element_ty
    t, stop, b, base = first_work(
        cache_seqlens,
        stride_length,
        batch,
        heads,
        query_len,
        window_left,
        launched,
        BALANCED,
        BLOCK_N,
        SEQUENCES,
        MIN_TILES,
    )
    while t < stop:
        b, base, item, begin, end, length, slot, whole = next_work(
            t,
            stop,
            b,
            base,
            cache_seqlens,
            stride_length,
            heads,
            query_len,
            window_left,
            launched,
            BALANCED,
            BLOCK_N,
        )
        head, row, real, position = item_rows(item, length, query_len, GROUP, ROW_BLOCKS, BLOCK_M)
        q_rows = q + b.to(tl.int64) * stride_qb + (row // GROUP).to(tl.int64) * stride_ql
        q_rows += (head * GROUP + row % GROUP) * stride_qh
        # [BLOCK_M, K0], [BLOCK_M, K1]
        q0 = load_queries(q_rows, real, 0, K0, DIM)
        if K1 > 0:
            q1 = load_queries(q_rows, real, K0, K1, DIM)
        scale = softmax_scale
        if K_BLOCKS < 0:
            scale *= tl.load(k_scale + head * stride_ksh)
        m = tl.full([BLOCK_M], float("-inf"), tl.float32)
        l = tl.zeros([BLOCK_M], tl.float32)
        acc0 = tl.zeros([BLOCK_M, V0], tl.float32)
        acc1 = tl.zeros([BLOCK_M, V1 if V1 > 0 else 16], tl.float32)
        first, first_tile, _ = tile_range(length, query_len, window_left, BLOCK_N)
        table_row = block_table + b.to(tl.int64) * stride_tb
        for tile in range(first_tile + begin, first_tile + end):
            n = tile * BLOCK_N + tl.arange(0, BLOCK_N)
            needed = (n >= first) & (n < length)
            page = page_of(table_row, stride_tp, n, needed, BLOCK_N, PAGE_SIZE)
            token = (n % PAGE_SIZE).to(tl.int64)
            k_rows = k_cache + page * stride_kp + token * stride_kt + head * stride_kh
            v_rows = v_cache + page * stride_vp + token * stride_vt + head * stride_vh
            ks_rows = k_rows
            vs_rows = v_rows
            if K_BLOCKS > 0:
                ks_rows = k_scale + page * stride_ksp + token * stride_kst + head * stride_ksh
            if V_BLOCKS > 0:
                vs_rows = v_scale + page * stride_vsp + token * stride_vst + head * stride_vsh
            # [BLOCK_N, K0], then [BLOCK_M, BLOCK_N]
            k0 = load_tile(k_rows, needed, 0, K0, DIM)
            k0 = dequantize(k0, ks_rows, stride_ksn, needed, dtype, 0, K0, DIM, K_BLOCKS)
            scores = dot(q0, tl.trans(k0))
            if K1 > 0:
                k1 = load_tile(k_rows, needed, K0, K1, DIM)
                k1 = dequantize(k1, ks_rows, stride_ksn, needed, dtype, K0, K1, DIM, K_BLOCKS)
                scores += dot(q1, tl.trans(k1))
            if PREFETCH > 0:
                n_next = n + PREFETCH * BLOCK_N
                later = n_next < tl.minimum(length, (first_tile + end) * BLOCK_N)
                page = page_of(table_row, stride_tp, n_next, later, BLOCK_N, PAGE_SIZE)
                token = (n_next % PAGE_SIZE).to(tl.int64)
                k_next = k_cache + page * stride_kp + token * stride_kt + head * stride_kh
                v_next = v_cache + page * stride_vp + token * stride_vt + head * stride_vh
                prefetch_rows(k_next, later, DIM)
                prefetch_rows(v_next, later, VALUE_DIM)
            if SOFTCAP:
                scores = tanh(scores * (scale / softcap)) * (softcap * LOG2_E)
            else:
                scores = scores * (scale * LOG2_E)
            seen = visible(n, needed, position, real, window_left, window_right, CAUSAL, WINDOW)
            scores = tl.where(seen, scores, float("-inf"))
            p, alpha, m, l = online_softmax_update(scores, m, l)
            v0 = load_tile(v_rows, needed, 0, V0, VALUE_DIM)
            v0 = dequantize(v0, vs_rows, stride_vsn, needed, dtype, 0, V0, VALUE_DIM, V_BLOCKS)
            acc0 = acc0 * alpha[:, None] + dot(p.to(dtype), v0)
            if V1 > 0:
                v1 = load_tile(v_rows, needed, V0, V1, VALUE_DIM)
                v1 = dequantize(v1, vs_rows, stride_vsn, needed, dtype, V0, V1, VALUE_DIM, V_BLOCKS)
                acc1 = acc1 * alpha[:, None] + dot(p.to(dtype), v1)
        if V_BLOCKS < 0:
            value_scale = tl.load(v_scale + head * stride_vsh)
            acc0 *= value_scale
            acc1 *= value_scale
        store_item(
            acc0,
            acc1,
            m,
            l,
            b,
            head,
            row,
            real,
            slot,
            whole,
            query_len,
            out,
            lse,
            partial_out,
            partial_sums,
            KV_HEADS,
            GROUP,
            VALUE_DIM,
            V0,
            V1,
            BLOCK_M,
        )
        t += end - begin


def config_for(
    q: Tensor,
    k_cache: Tensor,
    value_dim: int,
    k_scale: Tensor | None = None,
    v_scale: Tensor | None = None,
) -> DecodeConfig:
    """The tiling of a call: it depends on the call's shapes and device, never on lengths."""
    _, query_len, heads, dim = q.shape
    rows = query_len * heads // k_cache.shape[2]
    name = str(k_cache.dtype).removeprefix("torch.").removesuffix("fn")
    k, v = sum(device.pieces(dim)), sum(device.pieces(value_dim))
    scales = device.scale_bytes(k_scale, dim) + device.scale_bytes(v_scale, value_dim)
    config = device.decode_config(device.arch(q), rows, k + v, v, name, scales)
    return device.as_tuned("decode", config)


@device.launcher
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
    config: DecodeConfig | None = None,
) -> None:
    """Fills ``out [B, L_q, h_q, d_v]`` and ``lse [B, L_q, h_q]``, both contiguous.

    ``config`` replaces the tiling that ``config_for`` chooses; it changes the result within
    rounding, its ``prefetch`` not at all.
    """
    batch, query_len, _, dim = q.shape
    num_pages, page_size, _, value_dim = v_cache.shape
    capacity = block_table.shape[1] * page_size
    scales = {"k_scale": k_scale, "v_scale": v_scale}
    device.check_values_of_decode(
        block_table, cache_seqlens, page_size, num_pages, query_len, window_left, scales
    )
    if batch == 0:
        return
    # A side of the window that bounds no query's view is dropped.
    window_left = -1 if window_left >= capacity else window_left
    window_right = -1 if causal or window_right >= query_len - 1 else window_right
    config = config or config_for(q, k_cache, value_dim, k_scale, v_scale)
    (k0, k1), (v0, v1) = device.pieces(dim), device.pieces(value_dim)
    splits = Splits(q, k_cache, cache_seqlens, capacity, window_left, num_splits, v0 + v1, config)
    k_scale, k_scale_strides, k_blocks = device.scale_arguments(k_scale)
    v_scale, v_scale_strides, v_blocks = device.scale_arguments(v_scale)
    paged_decode_kernel[splits.grid](
        q,
        device.readable(k_cache),
        device.readable(v_cache),
        block_table,
        k_scale,
        v_scale,
        out,
        lse,
        splits.partial_out,
        splits.partial_sums,
        *splits.lengths,
        window_right,
        softmax_scale,
        softcap,
        *q.stride()[:3],
        *k_cache.stride()[:3],
        *v_cache.stride()[:3],
        *block_table.stride(),
        *k_scale_strides,
        *v_scale_strides,
        DIM=dim,
        VALUE_DIM=value_dim,
        K0=k0,
        K1=k1,
        V0=v0,
        V1=v1,
        PAGE_SIZE=page_size,
        CAUSAL=causal,
        WINDOW=window_left >= 0 or window_right >= 0,
        SOFTCAP=softcap > 0,
        K_BLOCKS=k_blocks,
        V_BLOCKS=v_blocks,
        PREFETCH=config.prefetch,
        num_warps=config.num_warps,
        num_stages=config.num_stages,
        **splits.constants,
    )
    splits.combine(out, lse)
