# ruff: noqa: RUF005
"""The consumer of a Hopper decode kernel: products by wgmma and the online softmax between them.

Query rows lie along the M side of wgmma, an item being 64 or 128 of them (``AXIS`` 0), or, where
few rows would leave an M of 64 mostly empty, along its N side: tokens on M, ``S^T = K Q^T``, a
softmax down the columns, ``O^T += V^T P^T`` (``AXIS`` 1; FlashMLA-ETAP, arXiv 2506.01969). Then
each of two consumer warpgroups owns whole tiles with its own maximum, sum and O^T, which merge
once an item.
"""

from ridgeline.ops.common.gluon import (
    aggregate,
    fence_async_shared,
    gl,
    gluon,
    mbarrier,
    warpgroup_mma,
    warpgroup_mma_wait,
)
from ridgeline.ops.common.hopper_work import store_rows, visible
from ridgeline.ops.common.triton import LOG2_E, tanh


@aggregate
class Scores:
    """From products to scores: ``scale``, soft cap, and which tokens a row sees.

    ``k_scale`` and ``v_scale``: what the keys and values of a head are to be multiplied by, one a
    head ``stride`` apart, if ``K_SCALED`` and ``V_SCALED``.
    """

    scale: gl.tensor
    softcap: gl.tensor
    window_left: gl.tensor
    window_right: gl.tensor
    k_scale: gl.tensor
    k_stride: gl.tensor
    v_scale: gl.tensor
    v_stride: gl.tensor
    CAUSAL: gl.constexpr
    WINDOW: gl.constexpr
    SOFTCAP: gl.constexpr
    K_SCALED: gl.constexpr
    V_SCALED: gl.constexpr

    @gluon.constexpr_function
    def __init__(
        self,
        scale,
        softcap,
        window_left,
        window_right,
        k_scale,
        k_stride,
        v_scale,
        v_stride,
        CAUSAL,
        WINDOW,
        SOFTCAP,
        K_SCALED,
        V_SCALED,
    ):
        self.scale = scale
        self.softcap = softcap
        self.window_left = window_left
        self.window_right = window_right
        self.k_scale = k_scale
        self.k_stride = k_stride
        self.v_scale = v_scale
        self.v_stride = v_stride
        self.K_SCALED = gl.constexpr(K_SCALED)
        self.V_SCALED = gl.constexpr(V_SCALED)
        self.CAUSAL = gl.constexpr(CAUSAL)
        self.WINDOW = gl.constexpr(WINDOW)
        self.SOFTCAP = gl.constexpr(SOFTCAP)

    @gluon.jit
    def of(self, products, n, position, first, length):
        """Scores in base 2, -inf where a row does not see a token."""
        if self.SOFTCAP:
            x = tanh(products * (self.scale / self.softcap)) * (self.softcap * LOG2_E)
        else:
            x = products * (self.scale * LOG2_E)
        seen = visible(
            n,
            position,
            first,
            length,
            self.window_left,
            self.window_right,
            self.CAUSAL,
            self.WINDOW,
        )
        return gl.where(seen, x, float("-inf"))


@aggregate
class Merge:
    """What the second consumer hands the first at the end of an item."""

    o: gl.shared_memory_descriptor  # [HEADS, V_WIDTH, BLOCK_M] float32
    sums: gl.shared_memory_descriptor  # [2 * HEADS, BLOCK_M]: maximum and sum
    full: gl.shared_memory_descriptor
    empty: gl.shared_memory_descriptor

    @gluon.constexpr_function
    def __init__(self, o, sums, full, empty):
        self.o = o
        self.sums = sums
        self.full = full
        self.empty = empty


@gluon.constexpr_function
def accumulator(axis, warps, rows, columns):
    """Layout of products: ``columns`` are tokens or output columns, whatever is not ``rows``."""
    if axis == 1:
        return gl.NVMMADistributedLayout([3, 0], [warps, 1], [16, rows, 16])
    along_m = rows // 16 if rows // 16 < warps else warps
    along_n = warps // along_m
    n = min(columns // along_n, 256)
    return gl.NVMMADistributedLayout([3, 0], [along_m, along_n], [16, n, 16])


@gluon.jit
def product(rows, others, acc, AXIS: gl.constexpr):
    """``acc + rows @ others``, of ``rows [BLOCK_M, k]`` and ``others [k, n]``, or its transpose."""
    if AXIS == 0:
        result = warpgroup_mma(rows, others, acc, is_async=True)
    else:
        result = warpgroup_mma(others.permute((1, 0)), rows.permute((1, 0)), acc, is_async=True)
    return result


@gluon.jit
def key_products(ring, queries, scores, n, stage, item, h, AXIS: gl.constexpr):
    """Query rows of head h times the keys of tile n; tokens along the other axis."""
    layout: gl.constexpr = accumulator(AXIS, gl.num_warps(), queries.BLOCK_M, ring.BLOCK_N)
    q = queries.q.index(stage * queries.HEADS + h)
    k = ring.keys(n, h).slice(0, q.shape[1], 1)
    s = zeros(queries.BLOCK_M, ring.BLOCK_N, layout, AXIS)
    s = product(q, k.permute((1, 0)), s, AXIS)
    if scores.K_SCALED:  # not the RoPE key, which is not quantised
        head = queries.head(item, h)
        s = warpgroup_mma_wait(0, [s]) * gl.load(scores.k_scale + head * scores.k_stride)
    if ring.HAS_ROPE:
        r = queries.r.index(stage * queries.HEADS + h)
        s = product(r, ring.rope_keys(n).permute((1, 0)), s, AXIS)
    if ring.HAS_ROPE or not scores.K_SCALED:
        s = warpgroup_mma_wait(0, [s])
    return s


@gluon.jit
def zeros(ROWS: gl.constexpr, OTHERS: gl.constexpr, layout: gl.constexpr, AXIS: gl.constexpr):
    SHAPE: gl.constexpr = [ROWS, OTHERS] if AXIS == 0 else [OTHERS, ROWS]
    return gl.zeros(SHAPE, gl.float32, layout)


@gluon.jit
def attend(
    work,
    ring,
    queries,
    scores,
    results,
    merge,
    C: gl.constexpr,
    CONSUMERS: gl.constexpr,
    AXIS: gl.constexpr,
):
    """Consumer C of ``CONSUMERS``: every ``CONSUMERS``-th tile of the program.

    Shapes are for rows along axis 0. The number of stages is a multiple of ``CONSUMERS``.
    """
    HEADS: gl.constexpr = ring.HEADS
    BLOCK_M: gl.constexpr = queries.BLOCK_M
    BLOCK_N: gl.constexpr = ring.BLOCK_N
    V_WIDTH: gl.constexpr = ring.v.shape[4]
    OTHER: gl.constexpr = 1 - AXIS
    dtype: gl.constexpr = ring.k.dtype
    s_layout: gl.constexpr = accumulator(AXIS, gl.num_warps(), BLOCK_M, BLOCK_N)
    o_layout: gl.constexpr = accumulator(AXIS, gl.num_warps(), BLOCK_M, V_WIDTH)
    rows: gl.constexpr = gl.SliceLayout(OTHER, s_layout)
    o_rows: gl.constexpr = gl.SliceLayout(OTHER, o_layout)
    tokens: gl.constexpr = gl.SliceLayout(AXIS, s_layout)
    p_layout: gl.constexpr = gl.NVMMASharedLayout.get_default_for([BLOCK_M, BLOCK_N], dtype)
    probabilities = gl.allocate_shared_memory(dtype, [BLOCK_M, BLOCK_N], p_layout)
    t = work.t
    b = work.b
    base = work.base
    n = 0
    i = 0
    while t < work.stop:
        b, base, item, begin, end, first, length, slot, whole = work.next(t, b, base)
        position = length - work.query_len + queries.rows(item, rows) // queries.GROUP
        stage = i % queries.STAGES
        ms = ()
        ls = ()
        os = ()
        for _ in gl.static_range(HEADS):
            ms = ms + (gl.full([BLOCK_M], float("-inf"), gl.float32, rows),)
            # Sums of a thread's tokens: they are added up once, at the end.
            ls = ls + (zeros(BLOCK_M, BLOCK_N, s_layout, AXIS),)
            os = os + (zeros(BLOCK_M, V_WIDTH, o_layout, AXIS),)
        queries.wait_full(i)
        # A stage is always the same consumer's: nobody waits for a phase whose predecessor may be
        # another's, and not over.
        for tile in range(begin + (n + C) % CONSUMERS, end, CONSUMERS):
            at = n + tile - begin
            ring.wait_full(at)
            token = tile * BLOCK_N + gl.arange(0, BLOCK_N, tokens)
            new_ms = ()
            new_ls = ()
            new_os = ()
            for h in gl.static_range(HEADS):
                # [BLOCK_M, BLOCK_N]
                s = key_products(ring, queries, scores, at, stage, item, h, AXIS)
                s = scores.of(
                    s,
                    gl.expand_dims(token, AXIS),
                    gl.expand_dims(position, OTHER),
                    first,
                    length,
                )
                m = gl.maximum(ms[h], gl.max(s, OTHER))
                origin = gl.where(m == float("-inf"), 0.0, m)
                p = gl.exp2(s - gl.expand_dims(origin, OTHER))
                alpha = gl.exp2(ms[h] - origin)
                if AXIS == 0:
                    probabilities.store(p.to(dtype))
                else:
                    probabilities.permute((1, 0)).store(p.to(dtype))
                fence_async_shared()
                # [BLOCK_M, V_WIDTH]
                o = os[h] * gl.expand_dims(gl.convert_layout(alpha, o_rows), OTHER)
                o = product(probabilities, ring.values(at, h), o, AXIS)
                new_ms = new_ms + (m,)
                new_ls = new_ls + (ls[h] * gl.expand_dims(alpha, OTHER) + p,)
                new_os = new_os + (warpgroup_mma_wait(0, [o]),)
            ring.release(at)
            ms = new_ms
            ls = new_ls
            os = new_os
        queries.release(i)
        if CONSUMERS == 2 and C == 1:
            hand_over(ms, ls, os, merge, i, HEADS)
        else:
            if CONSUMERS == 2:
                mbarrier.wait(merge.full, i & 1)
            row = queries.rows(item, o_rows)
            d = gl.arange(0, V_WIDTH, gl.SliceLayout(AXIS, o_layout))
            for h in gl.static_range(HEADS):
                o = os[h]
                m = gl.convert_layout(ms[h], o_rows)
                l = gl.convert_layout(gl.sum(ls[h], OTHER), o_rows)
                if CONSUMERS == 2:
                    o, m, l = merged(o, m, l, merge, h, o_layout)
                head = queries.head(item, h)
                if scores.V_SCALED:
                    o = o * gl.load(scores.v_scale + head * scores.v_stride)
                store_rows(o, m, l, d, row, head, h, b, slot, whole, work.query_len, results, AXIS)
            if CONSUMERS == 2:
                mbarrier.arrive(merge.empty)
        n += end - begin
        i += 1
        t += end - begin


@gluon.jit
def hand_over(ms, ls, os, merge, i, HEADS: gl.constexpr):
    """The second consumer's sums of item i, transposed, to the first."""
    mbarrier.wait(merge.empty, (i & 1) ^ 1)
    for h in gl.static_range(HEADS):
        merge.o.index(h).store(os[h])
        merge.sums.index(2 * h).store(ms[h])
        merge.sums.index(2 * h + 1).store(gl.sum(ls[h], 0))
    mbarrier.arrive(merge.full)


@gluon.jit
def merged(o, m, l, merge, h, layout: gl.constexpr):
    """The first consumer's sums of head h with those of the second."""
    rows: gl.constexpr = gl.SliceLayout(0, layout)
    other = merge.sums.index(2 * h).load(rows)
    both = gl.maximum(m, other)
    origin = gl.where(both == float("-inf"), 0.0, both)
    mine = gl.exp2(m - origin)
    theirs = gl.exp2(other - origin)
    l = l * mine + merge.sums.index(2 * h + 1).load(rows) * theirs
    o = o * mine[None, :] + merge.o.index(h).load(layout) * theirs[None, :]
    return o, both, l
