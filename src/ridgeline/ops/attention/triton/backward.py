"""The gradient: delta, then dK with dV by tiles of keys, then dQ by tiles of query rows.

Each element of a gradient is summed by one program in one order, without atomics, so gradients are
the same bits in every run. The price is that both kernels compute the probabilities: 7 products a
tile, not 5.
"""

import triton
import triton.language as tl
from torch import Tensor

from ridgeline.ops.attention.tiles import (
    Problem,
    cap_slope,
    delta_and_shift,
    find_rows,
    find_sequence,
    find_tile,
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
    row_range,
)
from ridgeline.ops.attention.triton.config import AttentionConfig, config_for
from ridgeline.ops.common.device import launcher, next_power_of_2
from ridgeline.ops.common.triton import dot, store_columns

DELTA_ROWS = 32  # of one program of the kernel that computes delta


@triton.jit
def delta_kernel(
    dout,
    dlse,
    out,
    lse,
    delta,
    shift,
    rows,
    query_len,
    stride_db,
    stride_dl,
    stride_dh,
    HEADS: tl.constexpr,
    VALUE_DIM: tl.constexpr,
    WIDTH: tl.constexpr,
    PACKED: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """``delta = dout · out - dlse``, and the lse in base 2; 0 and inf of rows that see nothing."""
    row = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    token = row // HEADS
    at = token * stride_dl + row % HEADS * stride_dh
    if not PACKED:
        at = (
            token // query_len * stride_db + token % query_len * stride_dl + row % HEADS * stride_dh
        )
    row_delta, row_shift = delta_and_shift(
        dout + at, out, dlse, lse, row, row < rows, VALUE_DIM, WIDTH
    )
    tl.store(delta + row, row_delta, mask=row < rows)
    tl.store(shift + row, row_shift, mask=row < rows)


@triton.jit
def dkdv_kernel(
    q,
    k,
    v,
    dout,
    delta,
    shift,
    dk,
    dv,
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
    stride_eb,
    stride_el,
    key_tiles,
    stride_qb,
    stride_ql,
    stride_qh,
    stride_kb,
    stride_kl,
    stride_kh,
    stride_vb,
    stride_vl,
    stride_vh,
    stride_db,
    stride_dl,
    stride_dh,
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
    """One tile of keys of one kv head, over the rows of its group that see one of them."""
    head = (tl.program_id(0) // key_tiles).to(tl.int64)
    b, block, start_k, len_k = find_tile(
        tl.program_id(0) % key_tiles,
        cu_k,
        stride_cuk,
        batch,
        key_len,
        1,
        BLOCK_N,
        PACKED,
        SEQUENCES,
    )
    if block * BLOCK_N >= len_k:
        return
    n = block * BLOCK_N + tl.arange(0, BLOCK_N)
    real = n < len_k
    start_q, len_q = find_sequence(b, cu_q, stride_cuq, query_len, PACKED)
    q_base = q + head_offset(b, start_q, head * GROUP, stride_qb, stride_ql, stride_qh)
    d_base = dout + head_offset(b, start_q, head * GROUP, stride_db, stride_dl, stride_dh)
    sums = output_rows(0, b, start_q, head, query_len, KV_HEADS, GROUP, PACKED)
    at = b.to(tl.int64) * stride_kb + (start_k + n) * stride_kl + head * stride_kh
    # [BLOCK_N, K0], ...
    k0 = load_columns(k + at, real, 0, K0, DIM)
    k1 = k0
    if K1 > 0:
        k1 = load_columns(k + at, real, K0, K1, DIM)
    at = b.to(tl.int64) * stride_vb + (start_k + n) * stride_vl + head * stride_vh
    v0 = load_columns(v + at, real, 0, V0, VALUE_DIM)
    v1 = v0
    if V1 > 0:
        v1 = load_columns(v + at, real, V0, V1, VALUE_DIM)
    dk0 = tl.zeros([BLOCK_N, K0], tl.float32)
    dk1 = tl.zeros([BLOCK_N, K1 if K1 > 0 else 16], tl.float32)
    dv0 = tl.zeros([BLOCK_N, V0], tl.float32)
    dv1 = tl.zeros([BLOCK_N, V1 if V1 > 0 else 16], tl.float32)
    ends = subtree_end
    if TREE:
        ends += head_offset(b, start_k, head, stride_eb, stride_el, 0)
    low, high = key_interval(n, len_k, ends, stride_el, left, right, LEFT, RIGHT, TREE)
    begin, full_begin, full_end, end = row_range(low, high, real, len_q, len_k, GROUP, BLOCK_M)
    for masked in tl.static_range(2):
        count, start, jump, gap = loop_over(
            begin, full_begin, full_end, end, None, 0, masked == 1, False
        )
        for i in range(count):
            dk0, dk1, dv0, dv1 = dkdv_step(
                nth_tile(i, start, jump, gap, None),
                k0,
                k1,
                v0,
                v1,
                dk0,
                dk1,
                dv0,
                dv1,
                low,
                high,
                real,
                q_base,
                d_base,
                delta + sums,
                shift + sums,
                len_q,
                len_k,
                stride_ql,
                stride_qh,
                stride_dl,
                stride_dh,
                factor,
                scale,
                softcap,
                dk is not None,
                dv is not None,
                KV_HEADS,
                GROUP,
                DIM,
                VALUE_DIM,
                K0,
                K1,
                V0,
                V1,
                SOFTCAP,
                SCALED,
                masked == 1,
                BLOCK_M,
            )
    at = output_rows(n, b, start_k, head, key_len, KV_HEADS, 1, PACKED)
    if dk is not None:
        store_columns(dk + at * DIM, dk0 * scale, real, 0, K0, DIM)
        if K1 > 0:
            store_columns(dk + at * DIM, dk1 * scale, real, K0, K1, DIM)
    if dv is not None:
        store_columns(dv + at * VALUE_DIM, dv0, real, 0, V0, VALUE_DIM)
        if V1 > 0:
            store_columns(dv + at * VALUE_DIM, dv1, real, V0, V1, VALUE_DIM)


@triton.jit
def dkdv_step(
    tile,
    k0,
    k1,
    v0,
    v1,
    dk0,
    dk1,
    dv0,
    dv1,
    low,
    high,
    real,
    q_base,
    d_base,
    delta,
    shift,
    len_q,
    len_k,
    stride_ql,
    stride_qh,
    stride_dl,
    stride_dh,
    factor,
    scale,
    softcap,
    NEED_K: tl.constexpr,
    NEED_V: tl.constexpr,
    KV_HEADS: tl.constexpr,
    GROUP: tl.constexpr,
    DIM: tl.constexpr,
    VALUE_DIM: tl.constexpr,
    K0: tl.constexpr,
    K1: tl.constexpr,
    V0: tl.constexpr,
    V1: tl.constexpr,
    SOFTCAP: tl.constexpr,
    SCALED: tl.constexpr,
    MASKED: tl.constexpr,
    BLOCK_M: tl.constexpr,
):
    """One tile of query rows adds to dK and dV. Scores are transposed: keys down, rows across."""
    row = tile * BLOCK_M + tl.arange(0, BLOCK_M)
    position = len_k - len_q + row // GROUP
    given = row < len_q * GROUP
    at = (row // GROUP).to(tl.int64) * (KV_HEADS * GROUP) + row % GROUP
    row_shift = tl.load(shift + at, mask=given, other=float("inf"))
    # Rows that see none of these keys are not read.
    needed = given
    if MASKED:
        needed = needed & (position >= tl.min(low, 0))
        needed = needed & (position < tl.max(tl.where(real, high, low), 0))
    rows = q_base + (row // GROUP).to(tl.int64) * stride_ql + (row % GROUP).to(tl.int64) * stride_qh
    # [BLOCK_M, K0], then [BLOCK_N, BLOCK_M]
    q0 = load_columns(rows, needed, 0, K0, DIM, MASKED)
    x = dot(k0, tl.trans(q0))
    q1 = q0
    if K1 > 0:
        q1 = load_columns(rows, needed, K0, K1, DIM, MASKED)
        x += dot(k1, tl.trans(q1))
    x = logits(x, scale, softcap, SOFTCAP, SCALED)
    seen = (low[:, None] <= position[None, :]) & (position[None, :] < high[:, None])
    if MASKED:
        x = tl.where(seen, x, float("-inf"))
    p = tl.exp2(x * factor - row_shift[None, :])
    rows = d_base + (row // GROUP).to(tl.int64) * stride_dl + (row % GROUP).to(tl.int64) * stride_dh
    d0 = load_columns(rows, needed, 0, V0, VALUE_DIM, MASKED)
    d1 = d0
    if V1 > 0:
        d1 = load_columns(rows, needed, V0, V1, VALUE_DIM, MASKED)
    if NEED_V:
        dv0 += dot(p.to(d0.dtype), d0)
        if V1 > 0:
            dv1 += dot(p.to(d1.dtype), d1)
    if NEED_K:
        dp = dot(v0, tl.trans(d0))
        if V1 > 0:
            dp += dot(v1, tl.trans(d1))
        row_delta = tl.load(delta + at, mask=given, other=0.0)
        ds = p * (dp - row_delta[None, :])
        if SOFTCAP:
            ds *= cap_slope(x, softcap)
        if MASKED:
            ds = tl.where(seen, ds, 0.0)
        dk0 += dot(ds.to(q0.dtype), q0)
        if K1 > 0:
            dk1 += dot(ds.to(q1.dtype), q1)
    return dk0, dk1, dv0, dv1


@triton.jit
def dq_kernel(
    q,
    k,
    v,
    dout,
    delta,
    shift,
    dq,
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
    stride_db,
    stride_dl,
    stride_dh,
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
    """One tile of rows, over keys as in the forward kernel."""
    head = (tl.program_id(0) // row_tiles).to(tl.int64)
    tile = tl.program_id(0) % row_tiles
    b, begin, row, position, start_q, len_q, start_k, len_k = find_rows(
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
    real = row < len_q * GROUP
    first, last = first_and_last(position, len_k)
    at = output_rows(row, b, start_q, head, query_len, KV_HEADS, GROUP, PACKED)
    row_shift = tl.load(shift + at, mask=real, other=float("inf"))
    row_delta = tl.load(delta + at, mask=real, other=0.0)
    rows = q + row_offsets(row, b, start_q, head, stride_qb, stride_ql, stride_qh, GROUP)
    # [BLOCK_M, K0], ...
    q0 = load_columns(rows, real, 0, K0, DIM)
    q1 = q0
    if K1 > 0:
        q1 = load_columns(rows, real, K0, K1, DIM)
    rows = dout + row_offsets(row, b, start_q, head, stride_db, stride_dl, stride_dh, GROUP)
    d0 = load_columns(rows, real, 0, V0, VALUE_DIM)
    d1 = d0
    if V1 > 0:
        d1 = load_columns(rows, real, V0, V1, VALUE_DIM)
    k_rows = k + head_offset(b, start_k, head, stride_kb, stride_kl, stride_kh)
    v_rows = v + head_offset(b, start_k, head, stride_vb, stride_vl, stride_vh)
    ends = subtree_end
    row_list = lists
    if TREE:
        ends += head_offset(b, start_k, head, stride_eb, stride_el, 0)
        row_list += tile.to(tl.int64) * (capacity + 2)
    dq0 = tl.zeros([BLOCK_M, K0], tl.float32)
    dq1 = tl.zeros([BLOCK_M, K1 if K1 > 0 else 16], tl.float32)
    begin, full_begin, full_end, end = key_range(
        first, last, len_k, left, right, LEFT, RIGHT, BLOCK_N
    )
    for masked in tl.static_range(2):
        count, start, jump, gap = loop_over(
            begin, full_begin, full_end, end, row_list, capacity, masked == 1, TREE
        )
        for i in range(count):
            dq0, dq1 = dq_step(
                nth_tile(i, start, jump, gap, row_list, masked == 1, TREE),
                q0,
                q1,
                d0,
                d1,
                dq0,
                dq1,
                row_delta,
                row_shift,
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
    store_columns(dq + at * DIM, dq0 * scale, real, 0, K0, DIM)
    if K1 > 0:
        store_columns(dq + at * DIM, dq1 * scale, real, K0, K1, DIM)


@triton.jit
def dq_step(
    tile,
    q0,
    q1,
    d0,
    d1,
    dq0,
    dq1,
    row_delta,
    row_shift,
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
    """One tile of keys adds to dQ."""
    n = tile * BLOCK_N + tl.arange(0, BLOCK_N)
    low, high = key_interval(n, len_k, ends, stride_el, left, right, LEFT, RIGHT, TREE)
    needed = (low <= last) & (high > first)
    at = n.to(tl.int64)
    # [BLOCK_N, K0], then [BLOCK_M, BLOCK_N]
    k0 = load_columns(k_rows + at * stride_kl, needed, 0, K0, DIM, MASKED)
    x = dot(q0, tl.trans(k0))
    k1 = k0
    if K1 > 0:
        k1 = load_columns(k_rows + at * stride_kl, needed, K0, K1, DIM, MASKED)
        x += dot(q1, tl.trans(k1))
    x = logits(x, scale, softcap, SOFTCAP, SCALED)
    seen = (low[None, :] <= position[:, None]) & (position[:, None] < high[None, :])
    if MASKED:
        x = tl.where(seen, x, float("-inf"))
    p = tl.exp2(x * factor - row_shift[:, None])
    v0 = load_columns(v_rows + at * stride_vl, needed, 0, V0, VALUE_DIM, MASKED)
    dp = dot(d0, tl.trans(v0))
    if V1 > 0:
        v1 = load_columns(v_rows + at * stride_vl, needed, V0, V1, VALUE_DIM, MASKED)
        dp += dot(d1, tl.trans(v1))
    ds = p * (dp - row_delta[:, None])
    if SOFTCAP:
        ds *= cap_slope(x, softcap)
    if MASKED:
        ds = tl.where(seen, ds, 0.0)
    dq0 += dot(ds.to(k0.dtype), k0)
    if K1 > 0:
        dq1 += dot(ds.to(k1.dtype), k1)
    return dq0, dq1


@launcher
def backward(
    dout: Tensor,
    dlse: Tensor | None,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    lse: Tensor,
    cu_seqlens_q: Tensor | None,
    cu_seqlens_k: Tensor | None,
    subtree_end: Tensor | None,
    softmax_scale: float,
    causal: bool,
    window_left: int,
    window_right: int,
    softcap: float,
    dq: Tensor | None,
    dk: Tensor | None,
    dv: Tensor | None,
    *,
    config: AttentionConfig | None = None,
) -> None:
    """Fills those of ``dq``, ``dk`` and ``dv`` that are given: contiguous, as ``q``, ``k``, ``v``.

    ``dout`` and ``dlse`` (None: zeros) are the gradients of ``out`` and ``lse``, which are those of
    ``forward``. ``config`` replaces the tilings that ``config_for`` chooses.
    """
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
    delta, shift = lse.new_empty(lse.shape), lse.new_empty(lse.shape)
    if lse.numel():
        value_dim = v.shape[-1]
        delta_kernel[(-(-lse.numel() // DELTA_ROWS),)](
            dout,
            None if dlse is None else dlse.contiguous(),
            out.contiguous(),
            lse.contiguous(),
            delta,
            shift,
            lse.numel(),
            problem.query_len,
            *problem.strides(dout),
            HEADS=q.shape[-2],
            VALUE_DIM=value_dim,
            WIDTH=max(16, next_power_of_2(value_dim)),
            PACKED=problem.packed,
            BLOCK=DELTA_ROWS,
            num_warps=4,
        )
    inputs = (q, k, v, dout, delta, shift)
    strides = [n for x in (q, k, v, dout) for n in problem.strides(x)]
    if (dk is not None or dv is not None) and k.numel():
        options = problem.constants | (config or config_for(q, k, v, "dkdv")).constants()
        tiles = problem.tiles(problem.key_len, options["BLOCK_N"])
        dkdv_kernel[(tiles * problem.kv_heads,)](
            *inputs,
            dk,
            dv,
            *problem.layout,
            *problem.options,
            *problem.ends(),
            tiles,
            *strides,
            **options,
        )
    if dq is not None and q.numel():
        options = problem.constants | (config or config_for(q, k, v, "dq")).constants()
        for band in problem.bands(options["BLOCK_M"], options["BLOCK_N"]):
            dq_kernel[(band[-1] * problem.kv_heads,)](
                *inputs,
                dq,
                *problem.layout,
                *problem.options,
                *band,
                *strides,
                **options,
            )
