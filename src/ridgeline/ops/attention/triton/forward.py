"""The forward kernel: a tile of query rows goes over the tiles of keys that one of them sees."""

import triton
import triton.language as tl
from torch import Tensor

from ridgeline.ops.attention.triton.config import AttentionConfig, config_for
from ridgeline.ops.attention.triton.tiles import (
    Problem,
    find_sequence,
    find_tile,
    key_interval,
    key_range,
    load_columns,
    logits,
    loop_over,
    nth_tile,
    output_rows,
    row_offsets,
)
from ridgeline.ops.common.device import pieces
from ridgeline.ops.common.triton import dot, natural_lse, store_columns


@triton.jit
def forward_kernel(
    q,
    k,
    v,
    out,
    lse,
    cu_q,
    cu_k,
    stride_cuq,
    stride_cuk,
    batch,
    query_len,
    key_len,
    factor,
    scale,
    softcap,
    left,
    right,
    subtree_end,
    lists,
    capacity,
    stride_eb,
    stride_el,
    row_tiles,
    stride_qb,
    stride_ql,
    stride_qh,
    stride_kb,
    stride_kl,
    stride_kh,
    stride_vb,
    stride_vl,
    stride_vh,
    KV_HEADS: tl.constexpr,
    GROUP: tl.constexpr,
    DIM: tl.constexpr,
    VALUE_DIM: tl.constexpr,
    K0: tl.constexpr,
    K1: tl.constexpr,
    V0: tl.constexpr,
    V1: tl.constexpr,
    PACKED: tl.constexpr,
    LEFT: tl.constexpr,
    RIGHT: tl.constexpr,
    TREE: tl.constexpr,
    SOFTCAP: tl.constexpr,
    SCALED: tl.constexpr,
    SEQUENCES: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """One tile of rows of one kv head. Tiles of a head are neighbours: they share its K in L2."""
    head = (tl.program_id(0) // row_tiles).to(tl.int64)
    b, block, start_q, len_q = find_tile(
        tl.program_id(0) % row_tiles,
        cu_q,
        stride_cuq,
        batch,
        query_len,
        GROUP,
        BLOCK_M,
        PACKED,
        SEQUENCES,
    )
    blocks = tl.cdiv(len_q * GROUP, BLOCK_M)
    if block >= blocks:
        return
    # Under causal the last rows see most keys: they start first.
    row = (blocks - 1 - block) * BLOCK_M + tl.arange(0, BLOCK_M)
    real = row < len_q * GROUP
    start_k, len_k = find_sequence(b, cu_k, stride_cuk, key_len, PACKED)
    position = len_k - len_q + row // GROUP
    first = tl.min(position, 0)
    last = tl.minimum(tl.max(position, 0), len_k - 1)
    q_rows = q + row_offsets(row, b, start_q, head, stride_qb, stride_ql, stride_qh, GROUP)
    k_rows = k + b.to(tl.int64) * stride_kb + start_k * stride_kl + head * stride_kh
    v_rows = v + b.to(tl.int64) * stride_vb + start_k * stride_vl + head * stride_vh
    ends = subtree_end
    row_list = lists
    if TREE:
        ends += b.to(tl.int64) * stride_eb + start_k * stride_el
        row_list += (tl.program_id(0) % row_tiles).to(tl.int64) * (capacity + 2)
    # [BLOCK_M, K0], [BLOCK_M, K1]
    q0 = load_columns(q_rows, real, 0, K0, DIM)
    q1 = q0
    if K1 > 0:
        q1 = load_columns(q_rows, real, K0, K1, DIM)
    acc0 = tl.zeros([BLOCK_M, V0], tl.float32)
    acc1 = tl.zeros([BLOCK_M, V1 if V1 > 0 else 16], tl.float32)
    m = tl.full([BLOCK_M], float("-inf"), tl.float32)
    l = tl.zeros([BLOCK_M], tl.float32)
    begin, full_begin, full_end, end = key_range(
        first, last, len_k, left, right, LEFT, RIGHT, BLOCK_N
    )
    for masked in tl.static_range(2):
        count, start, jump, gap = loop_over(
            begin, full_begin, full_end, end, row_list, capacity, masked == 1, TREE
        )
        for i in range(count):
            acc0, acc1, m, l = forward_step(
                nth_tile(i, start, jump, gap, row_list, masked == 1, TREE),
                q0,
                q1,
                acc0,
                acc1,
                m,
                l,
                position,
                first,
                last,
                k_rows,
                v_rows,
                ends,
                len_k,
                stride_kl,
                stride_vl,
                stride_el,
                factor,
                scale,
                softcap,
                left,
                right,
                DIM,
                VALUE_DIM,
                K0,
                K1,
                V0,
                V1,
                LEFT,
                RIGHT,
                TREE,
                SOFTCAP,
                SCALED,
                masked == 1,
                BLOCK_N,
            )
    at = output_rows(row, b, start_q, head, query_len, KV_HEADS, GROUP, PACKED)
    total = tl.where(l == 0.0, 1.0, l)[:, None]
    store_columns(out + at * VALUE_DIM, acc0 / total, real, 0, V0, VALUE_DIM)
    if V1 > 0:
        store_columns(out + at * VALUE_DIM, acc1 / total, real, V0, V1, VALUE_DIM)
    tl.store(lse + at, natural_lse(m, l), mask=real)


@triton.jit
def forward_step(
    tile,
    q0,
    q1,
    acc0,
    acc1,
    m,
    l,
    position,
    first,
    last,
    k_rows,
    v_rows,
    ends,
    len_k,
    stride_kl,
    stride_vl,
    stride_el,
    factor,
    scale,
    softcap,
    left,
    right,
    DIM: tl.constexpr,
    VALUE_DIM: tl.constexpr,
    K0: tl.constexpr,
    K1: tl.constexpr,
    V0: tl.constexpr,
    V1: tl.constexpr,
    LEFT: tl.constexpr,
    RIGHT: tl.constexpr,
    TREE: tl.constexpr,
    SOFTCAP: tl.constexpr,
    SCALED: tl.constexpr,
    MASKED: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """One tile of keys joins the running maximum m, sum l and accumulators."""
    n = tile * BLOCK_N + tl.arange(0, BLOCK_N)
    low, high = key_interval(n, len_k, ends, stride_el, left, right, LEFT, RIGHT, TREE)
    needed = (low <= last) & (high > first)
    at = n.to(tl.int64)
    # [BLOCK_N, K0], then [BLOCK_M, BLOCK_N]
    k0 = load_columns(k_rows + at * stride_kl, needed, 0, K0, DIM, MASKED)
    x = dot(q0, tl.trans(k0))
    if K1 > 0:
        k1 = load_columns(k_rows + at * stride_kl, needed, K0, K1, DIM, MASKED)
        x += dot(q1, tl.trans(k1))
    x = logits(x, scale, softcap, SOFTCAP, SCALED)
    if MASKED:
        seen = (low[None, :] <= position[:, None]) & (position[:, None] < high[None, :])
        x = tl.where(seen, x, float("-inf"))
    m_new = tl.maximum(m, tl.max(x, 1) * factor)
    # A row that has seen nothing has m = -inf; its differences are taken from 0 instead.
    base = tl.where(m_new == float("-inf"), 0.0, m_new)
    p = tl.exp2(x * factor - base[:, None])
    alpha = tl.exp2(m - base)
    l = l * alpha + tl.sum(p, 1)
    m = m_new
    v0 = load_columns(v_rows + at * stride_vl, needed, 0, V0, VALUE_DIM, MASKED)
    acc0 = acc0 * alpha[:, None] + dot(p.to(v0.dtype), v0)
    if V1 > 0:
        v1 = load_columns(v_rows + at * stride_vl, needed, V0, V1, VALUE_DIM, MASKED)
        acc1 = acc1 * alpha[:, None] + dot(p.to(v1.dtype), v1)
    return acc0, acc1, m, l


def forward(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cu_seqlens_q: Tensor | None,
    cu_seqlens_k: Tensor | None,
    subtree_end: Tensor | None,
    softmax_scale: float,
    causal: bool,
    window_left: int,
    window_right: int,
    softcap: float,
    out: Tensor,
    lse: Tensor,
    *,
    config: AttentionConfig | None = None,
) -> None:
    """Fills ``out [..., h_q, d_v]`` and ``lse [..., h_q]``, both contiguous.

    ``config`` replaces the tiling that ``config_for`` chooses; it changes the result within
    rounding.
    """
    config = config or config_for(q, k, v, "forward")
    problem = Problem(
        q,
        k,
        v,
        cu_seqlens_q,
        cu_seqlens_k,
        subtree_end,
        softmax_scale,
        causal,
        window_left,
        window_right,
        softcap,
    )
    row_tiles = problem.tiles(problem.query_len * problem.group, config.block_m)
    if lse.numel() == 0:
        return
    (k0, k1), (v0, v1) = pieces(q.shape[-1]), pieces(v.shape[-1])
    forward_kernel[(row_tiles * problem.kv_heads,)](
        q,
        k,
        v,
        out,
        lse,
        *problem.layout,
        *problem.options,
        *problem.lists(config.block_m, config.block_n),
        row_tiles,
        *problem.strides(q),
        *problem.strides(k),
        *problem.strides(v),
        K0=k0,
        K1=k1,
        V0=v0,
        V1=v1,
        BLOCK_M=config.block_m,
        BLOCK_N=config.block_n,
        num_warps=config.num_warps,
        num_stages=config.num_stages,
        **problem.constants,
    )
