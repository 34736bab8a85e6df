"""The forward kernel: a tile of query rows goes over the tiles of keys that one of them sees."""

import triton
import triton.language as tl
from torch import Tensor

from ridgeline.ops.attention.tiles import (
    Problem,
    find_rows,
    first_and_last,
    head_offset,
    key_interval,
    key_range,
    load_columns,
    logits,
    loop_over,
    nth_tile,
    output_rows,
    row_offsets,
)
from ridgeline.ops.attention.triton.config import AttentionConfig, config_for
from ridgeline.ops.common.device import launcher
from ridgeline.ops.common.triton import dot, natural_lse, store_columns

CAREFUL_ROWS = tl.constexpr(16)  # of a tile that is gone over again
CAREFUL_KEYS = tl.constexpr(32)


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
    band,
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
    tile = tl.program_id(0) % row_tiles
    b, begin, _, _, start_q, len_q, start_k, len_k = find_rows(
        band + tile,
        cu_q,
        cu_k,
        stride_cuq,
        stride_cuk,
        batch,
        query_len,
        key_len,
        GROUP,
        PACKED,
        SEQUENCES,
        BLOCK_M,
    )
    if begin < 0:
        return
    k_rows = k + head_offset(b, start_k, head, stride_kb, stride_kl, stride_kh)
    v_rows = v + head_offset(b, start_k, head, stride_vb, stride_vl, stride_vh)
    ends = subtree_end
    row_list = lists
    if TREE:
        ends += head_offset(b, start_k, head, stride_eb, stride_el, 0)
        row_list += tile.to(tl.int64) * (capacity + 2)
    spoilt = forward_rows(
        q,
        k_rows,
        v_rows,
        out,
        lse,
        ends,
        row_list,
        capacity,
        begin,
        b,
        head,
        start_q,
        len_q,
        len_k,
        query_len,
        factor,
        scale,
        softcap,
        left,
        right,
        stride_qb,
        stride_ql,
        stride_qh,
        stride_kl,
        stride_vl,
        stride_el,
        KV_HEADS,
        GROUP,
        DIM,
        VALUE_DIM,
        K0,
        K1,
        V0,
        V1,
        PACKED,
        LEFT,
        RIGHT,
        TREE,
        SOFTCAP,
        SCALED,
        False,
        BLOCK_M,
        BLOCK_N,
    )
    if LEFT or RIGHT or TREE:  # noqa: SIM102 (known when it is compiled)
        if spoilt:
            for at in range(begin, begin + BLOCK_M, CAREFUL_ROWS):
                forward_rows(
                    q,
                    k_rows,
                    v_rows,
                    out,
                    lse,
                    ends,
                    row_list,
                    capacity,
                    at,
                    b,
                    head,
                    start_q,
                    len_q,
                    len_k,
                    query_len,
                    factor,
                    scale,
                    softcap,
                    left,
                    right,
                    stride_qb,
                    stride_ql,
                    stride_qh,
                    stride_kl,
                    stride_vl,
                    stride_el,
                    KV_HEADS,
                    GROUP,
                    DIM,
                    VALUE_DIM,
                    K0,
                    K1,
                    V0,
                    V1,
                    PACKED,
                    LEFT,
                    RIGHT,
                    TREE,
                    SOFTCAP,
                    SCALED,
                    True,
                    CAREFUL_ROWS,
                    CAREFUL_KEYS,
                )


@triton.jit
def forward_rows(
    q,
    k_rows,
    v_rows,
    out,
    lse,
    ends,
    row_list,
    capacity,
    begin,
    b,
    head,
    start_q,
    len_q,
    len_k,
    query_len,
    factor,
    scale,
    softcap,
    left,
    right,
    stride_qb,
    stride_ql,
    stride_qh,
    stride_kl,
    stride_vl,
    stride_el,
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
    CAREFUL: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """The results of ``BLOCK_M`` rows from ``begin`` on; whether one of them is not finite.

    A value that is not finite then may have reached rows of the tile that do not see its key: 0
    times infinity is NaN. CAREFUL, it reaches none of them.
    """
    row = begin + tl.arange(0, BLOCK_M)
    real = row < len_q * GROUP
    position = len_k - len_q + row // GROUP
    first, last = first_and_last(position, len_k)
    q_rows = q + row_offsets(row, b, start_q, head, stride_qb, stride_ql, stride_qh, GROUP)
    # [BLOCK_M, K0], [BLOCK_M, K1]
    q0 = load_columns(q_rows, real, 0, K0, DIM)
    q1 = q0
    if K1 > 0:
        q1 = load_columns(q_rows, real, K0, K1, DIM)
    acc0 = tl.zeros([BLOCK_M, V0], tl.float32)
    acc1 = tl.zeros([BLOCK_M, V1 if V1 > 0 else 16], tl.float32)
    m = tl.full([BLOCK_M], float("-inf"), tl.float32)
    l = tl.zeros([BLOCK_M], tl.float32)
    first_tile, full_begin, full_end, end = key_range(
        first, last, len_k, left, right, LEFT, RIGHT, BLOCK_N
    )
    if CAREFUL:  # every tile as one that is cut
        full_begin = first_tile
        full_end = first_tile
    for masked in tl.static_range(2):
        if masked == 1 or not CAREFUL:
            count, start, jump, gap = loop_over(
                first_tile,
                full_begin,
                full_end,
                end,
                row_list,
                capacity,
                masked == 1,
                TREE and not CAREFUL,
            )
            for i in range(count):
                acc0, acc1, m, l = forward_step(
                    nth_tile(i, start, jump, gap, row_list, masked == 1, TREE and not CAREFUL),
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
                    CAREFUL,
                    BLOCK_N,
                )
    at = output_rows(row, b, start_q, head, query_len, KV_HEADS, GROUP, PACKED)
    total = tl.where(l == 0.0, 1.0, l)[:, None]
    store_columns(out + at * VALUE_DIM, acc0 / total, real, 0, V0, VALUE_DIM)
    # 0, or NaN of a row with an element that is not finite
    spoilt = tl.sum(acc0 * 0.0)
    if V1 > 0:
        store_columns(out + at * VALUE_DIM, acc1 / total, real, V0, V1, VALUE_DIM)
        spoilt += tl.sum(acc1 * 0.0)
    if not CAREFUL:
        tl.store(lse + at, natural_lse(m, l), mask=real)
    return spoilt != 0.0


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
    CAREFUL: tl.constexpr,
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
    seen = (low[None, :] <= position[:, None]) & (position[:, None] < high[None, :])
    if MASKED:
        x = tl.where(seen, x, float("-inf"))
    m_new = tl.maximum(m, tl.max(x, 1) * factor)
    # A row that has seen nothing has m = -inf; its differences are taken from 0 instead.
    base = tl.where(m_new == float("-inf"), 0.0, m_new)
    p = tl.exp2(x * factor - base[:, None])
    alpha = tl.exp2(m - base)
    l = l * alpha + tl.sum(p, 1)
    m = m_new
    v0 = load_columns(v_rows + at * stride_vl, needed, 0, V0, VALUE_DIM, MASKED)
    acc0 = acc0 * alpha[:, None] + dot(p.to(v0.dtype), finite(v0) if CAREFUL else v0)
    if CAREFUL:
        acc0 += infinities(seen, v0)
    if V1 > 0:
        v1 = load_columns(v_rows + at * stride_vl, needed, V0, V1, VALUE_DIM, MASKED)
        acc1 = acc1 * alpha[:, None] + dot(p.to(v1.dtype), finite(v1) if CAREFUL else v1)
        if CAREFUL:
            acc1 += infinities(seen, v1)
    return acc0, acc1, m, l


@triton.jit
def finite(v):
    return tl.where(tl.abs(v) < float("inf"), v, 0.0)


@triton.jit
def infinities(seen, v):
    """What ``seen [BLOCK_M, BLOCK_N]`` adds up of the elements of ``v`` that ``finite`` drops.

    A product with them would be NaN also where a row does not see their key: 0 times infinity.
    """
    seen = seen.to(v.dtype)
    # NaN is neither below nor above.
    up = dot(seen, tl.where(v < float("inf"), 0.0, 1.0).to(v.dtype))
    down = dot(seen, tl.where(v > float("-inf"), 0.0, 1.0).to(v.dtype))
    infinity = float("inf")
    return tl.where(up > 0, infinity, 0.0) + tl.where(down > 0, -infinity, 0.0)


@launcher
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
    if lse.numel() == 0:
        return
    for band in problem.bands(config.block_m, config.block_n):
        forward_kernel[(band[-1] * problem.kv_heads,)](
            q,
            k,
            v,
            out,
            lse,
            *problem.layout,
            *problem.options,
            *band,
            *problem.strides(q),
            *problem.strides(k),
            *problem.strides(v),
            **problem.constants | config.constants(),
        )
