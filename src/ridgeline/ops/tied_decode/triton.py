"""``tied_decode`` by Triton: each tile of states is loaded once, as keys and as values."""

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
    visible,
)
from ridgeline.ops.common.triton_splits import Splits, first_work, item_rows, next_work


@triton.jit
def tied_decode_kernel(
    q_nope,
    q_rope,
    state_cache,
    rope_cache,
    block_table,
    state_scale,
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
    softmax_scale,
    stride_nb,
    stride_nl,
    stride_nh,
    stride_rb,
    stride_rl,
    stride_rh,
    stride_sp,
    stride_st,
    stride_sh,
    stride_kp,
    stride_kt,
    stride_tb,
    stride_tp,
    stride_ssp,
    stride_sst,
    stride_ssh,
    stride_ssn,
    KV_HEADS: tl.constexpr,
    GROUP: tl.constexpr,
    ROW_BLOCKS: tl.constexpr,
    NOPE_DIM: tl.constexpr,
    ROPE_DIM: tl.constexpr,
    STATE_DIM: tl.constexpr,
    S0: tl.constexpr,
    S1: tl.constexpr,
    R0: tl.constexpr,
    R1: tl.constexpr,
    WIDTH: tl.constexpr,
    PAGE_SIZE: tl.constexpr,
    CAUSAL: tl.constexpr,
    BLOCKS: tl.constexpr,
    BALANCED: tl.constexpr,
    PREFETCH: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    SEQUENCES: tl.constexpr,
    MIN_TILES: tl.constexpr,
):
    """A program's runs of tiles, one item after another; see ``triton_splits``.

    A state is the tiles ``S0 | S1``; where the key ends with S0, S1 is a value only. The RoPE key
    is ``R0 | R1``. ``BLOCKS``: FP8 scales of a state, -1 for one of all tokens, 0 for none.
    """
    heads = KV_HEADS * ROW_BLOCKS
    dtype: tl.constexpr = q_nope.dtype.element_ty
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
        q_head, q_token = head * GROUP + row % GROUP, (row // GROUP).to(tl.int64)
        n_rows = q_nope + b.to(tl.int64) * stride_nb + q_token * stride_nl + q_head * stride_nh
        r_rows = q_rope + b.to(tl.int64) * stride_rb + q_token * stride_rl + q_head * stride_rh
        # [BLOCK_M, S0], [BLOCK_M, S1], [BLOCK_M, R0], [BLOCK_M, R1]
        n0 = load_queries(n_rows, real, 0, S0, NOPE_DIM)
        if NOPE_DIM > S0:
            n1 = load_queries(n_rows, real, S0, S1, NOPE_DIM)
        if R0 > 0:
            r0 = load_queries(r_rows, real, 0, R0, ROPE_DIM)
        if R1 > 0:
            r1 = load_queries(r_rows, real, R0, R1, ROPE_DIM)
        scale_of_state = 1.0
        if BLOCKS < 0:
            scale_of_state = tl.load(state_scale + head * stride_ssh)
        m = tl.full([BLOCK_M], float("-inf"), tl.float32)
        l = tl.zeros([BLOCK_M], tl.float32)
        acc0 = tl.zeros([BLOCK_M, S0], tl.float32)
        acc1 = tl.zeros([BLOCK_M, S1 if S1 > 0 else 16], tl.float32)
        table_row = block_table + b.to(tl.int64) * stride_tb
        for tile in range(begin, end):
            n = tile * BLOCK_N + tl.arange(0, BLOCK_N)
            needed = n < length
            page = page_of(table_row, stride_tp, n, needed, BLOCK_N, PAGE_SIZE)
            token = (n % PAGE_SIZE).to(tl.int64)
            s_rows = state_cache + page * stride_sp + token * stride_st + head * stride_sh
            k_rows = rope_cache + page * stride_kp + token * stride_kt
            ss_rows = s_rows
            if BLOCKS > 0:
                ss_rows = state_scale + page * stride_ssp + token * stride_sst + head * stride_ssh
            # [BLOCK_N, S0], then [BLOCK_M, BLOCK_N]
            s0 = load_tile(s_rows, needed, 0, S0, STATE_DIM)
            s0 = dequantize(s0, ss_rows, stride_ssn, needed, dtype, 0, S0, STATE_DIM, BLOCKS)
            scores = dot(n0, tl.trans(s0))
            if S1 > 0:
                s1 = load_tile(s_rows, needed, S0, S1, STATE_DIM)
                s1 = dequantize(s1, ss_rows, stride_ssn, needed, dtype, S0, S1, STATE_DIM, BLOCKS)
                if NOPE_DIM > S0:
                    scores += dot(n1, tl.trans(s1))
            if BLOCKS < 0:
                scores *= scale_of_state
            if R0 > 0:
                k0 = load_tile(k_rows, needed, 0, R0, ROPE_DIM)
                scores += dot(r0, tl.trans(k0))
            if R1 > 0:
                k1 = load_tile(k_rows, needed, R0, R1, ROPE_DIM)
                scores += dot(r1, tl.trans(k1))
            if PREFETCH > 0:
                n_next = n + PREFETCH * BLOCK_N
                later = n_next < tl.minimum(length, end * BLOCK_N)
                page = page_of(table_row, stride_tp, n_next, later, BLOCK_N, PAGE_SIZE)
                token = (n_next % PAGE_SIZE).to(tl.int64)
                s_next = state_cache + page * stride_sp + token * stride_st + head * stride_sh
                prefetch_rows(s_next, later, STATE_DIM)
                if R0 > 0:
                    prefetch_rows(
                        rope_cache + page * stride_kp + token * stride_kt, later, ROPE_DIM
                    )
            seen = visible(n, needed, position, real, -1, -1, CAUSAL, False)
            scores = tl.where(seen, scores * (softmax_scale * LOG2_E), float("-inf"))
            p, alpha, m, l = online_softmax_update(scores, m, l)
            acc0 = acc0 * alpha[:, None] + dot(p.to(dtype), s0)
            if S1 > 0:
                acc1 = acc1 * alpha[:, None] + dot(p.to(dtype), s1)
        if BLOCKS < 0:
            acc0 *= scale_of_state
            acc1 *= scale_of_state
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
            STATE_DIM,
            S0,
            S1,
            BLOCK_M,
        )
        t += end - begin


def config_for(
    q_nope: Tensor, q_rope: Tensor, state_cache: Tensor, state_scale: Tensor | None = None
) -> DecodeConfig:
    """The tiling of a call: it depends on the call's shapes and device, never on lengths."""
    _, query_len, heads, nope_dim = q_nope.shape
    rows = query_len * heads // state_cache.shape[2]
    name = str(state_cache.dtype).removeprefix("torch.").removesuffix("fn")
    state = sum(device.tied_pieces(nope_dim, state_cache.shape[3]))
    rope = sum(device.pieces(q_rope.shape[3])) if q_rope.shape[3] else 0
    scales = device.scale_bytes(state_scale, state_cache.shape[3])
    if device.is_fp8(state_cache):
        scales += rope * (q_rope.element_size() - 1)  # which is as wide as the queries
    config = device.decode_config(device.arch(q_nope), rows, state + rope, state, name, scales)
    return device.as_tuned("decode", config)


@device.launcher
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
    config: DecodeConfig | None = None,
) -> None:
    """Fills ``out [B, L_q, h_q, d_s]`` and ``lse [B, L_q, h_q]``; ``config`` as in paged_decode."""
    batch, query_len, _, nope_dim = q_nope.shape
    num_pages, page_size, _, state_dim = state_cache.shape
    rope_dim = q_rope.shape[3]
    capacity = block_table.shape[1] * page_size
    scales = {"state_scale": state_scale}
    device.check_values_of_decode(
        block_table, cache_seqlens, page_size, num_pages, query_len, -1, scales
    )
    if batch == 0:
        return
    config = config or config_for(q_nope, q_rope, state_cache, state_scale)
    s0, s1 = device.tied_pieces(nope_dim, state_dim)
    r0, r1 = device.pieces(rope_dim) if rope_dim else (0, 0)
    splits = Splits(q_nope, state_cache, cache_seqlens, capacity, -1, num_splits, s0 + s1, config)
    state_scale, scale_strides, blocks = device.scale_arguments(state_scale)
    tied_decode_kernel[splits.grid](
        q_nope,
        q_rope,
        device.readable(state_cache),
        rope_cache,
        block_table,
        state_scale,
        out,
        lse,
        splits.partial_out,
        splits.partial_sums,
        *splits.lengths,
        softmax_scale,
        *q_nope.stride()[:3],
        *q_rope.stride()[:3],
        *state_cache.stride()[:3],
        *rope_cache.stride()[:2],
        *block_table.stride(),
        *scale_strides,
        NOPE_DIM=nope_dim,
        ROPE_DIM=rope_dim,
        STATE_DIM=state_dim,
        S0=s0,
        S1=s1,
        R0=r0,
        R1=r1,
        PAGE_SIZE=page_size,
        CAUSAL=causal,
        BLOCKS=blocks,
        PREFETCH=config.prefetch,
        num_warps=config.num_warps,
        num_stages=config.num_stages,
        **splits.constants,
    )
    splits.combine(out, lse)
