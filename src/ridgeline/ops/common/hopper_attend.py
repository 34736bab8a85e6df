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
    """From products to scores: ``scale``, soft cap, and which tokens a row sees."""

    scale: gl.tensor
    softcap: gl.tensor
    window_left: gl.tensor
    window_right: gl.tensor
    CAUSAL: gl.constexpr
    WINDOW: gl.constexpr
    SOFTCAP: gl.constexpr

    @gluon.constexpr_function
    def __init__(
        self,
        scale,
        softcap,
        window_left,
        window_right,
        CAUSAL,
        WINDOW,
        SOFTCAP,
    ):
        self.scale = scale
        self.softcap = softcap
        self.window_left = window_left
        self.window_right = window_right
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
def accumulator(axis, warps, rows, columns, depth=16):
    """Layout of products: ``columns`` are tokens or output columns, whatever is not ``rows``;
    ``depth`` is the K of an instruction, 32 of FP8."""
    if axis == 1:
        return gl.NVMMADistributedLayout([3, 0], [warps, 1], [16, rows, depth])
    along_m = rows // 16 if rows // 16 < warps else warps
    along_n = warps // along_m
    n = min(columns // along_n, 256)
    return gl.NVMMADistributedLayout([3, 0], [along_m, along_n], [16, n, depth])


@gluon.jit
def product(rows, others, acc, AXIS: gl.constexpr):
    """``acc + rows @ others``, of ``rows [BLOCK_M, k]`` and ``others [k, n]``, or its transpose."""
    if AXIS == 0:
        result = warpgroup_mma(rows, others, acc, is_async=True)
    else:
        result = warpgroup_mma(others.permute((1, 0)), rows.permute((1, 0)), acc, is_async=True)
    return result


@gluon.jit
def key_products(ring, queries, n, stage, item, h, AXIS: gl.constexpr):
    """Query rows of head h times the keys of tile n; tokens along the other axis.

    Columns of different scales, and the RoPE key, which is not quantised, are products of their
    own. Scales multiply them in float32: scaled keys would be rounded.
    """
    layout: gl.constexpr = accumulator(AXIS, gl.num_warps(), queries.BLOCK_M, ring.BLOCK_N)
    tokens: gl.constexpr = gl.SliceLayout(AXIS, layout)
    scales = ring.k_scales
    q = queries.q.index(stage * queries.HEADS + h)
    k = ring.keys(n, h)
    nothing = zeros(queries.BLOCK_M, ring.BLOCK_N, layout, AXIS)
    s = nothing
    if ring.HAS_ROPE:
        r = queries.r.index(stage * queries.HEADS + h)
        s = product(r, ring.rope_keys(n).permute((1, 0)), s, AXIS)
    if scales.BLOCKS == 0:
        s = product(q, k.slice(0, q.shape[1], 1).permute((1, 0)), s, AXIS)
        s = warpgroup_mma_wait(0, [s])
    else:
        WIDTH: gl.constexpr = q.shape[1] if scales.BLOCKS <= 1 else min(q.shape[1], scales.WIDTH)
        PIECES: gl.constexpr = min(q.shape[1] // WIDTH, max(scales.BLOCKS, 1))
        products = (s,)
        for j in gl.static_range(PIECES):
            rows = q.slice(j * WIDTH, WIDTH, 1)
            keys = k.slice(j * WIDTH, WIDTH, 1).permute((1, 0))
            products = products + (product(rows, keys, nothing, AXIS),)
        products = warpgroup_mma_wait(0, products)
        s = products[0]
        for j in gl.static_range(PIECES):
            if scales.BLOCKS < 0:
                s += products[j + 1] * scales.of_head(queries.head(item, h))
            else:
                scale = scales.of_tokens(ring.tile(n, h), j, tokens)
                s += products[j + 1] * gl.expand_dims(scale, AXIS)
    return s


@gluon.jit
def zeros(ROWS: gl.constexpr, OTHERS: gl.constexpr, layout: gl.constexpr, AXIS: gl.constexpr):
    SHAPE: gl.constexpr = [ROWS, OTHERS] if AXIS == 0 else [OTHERS, ROWS]
    return gl.zeros(SHAPE, gl.float32, layout)


@gluon.jit
def weighted(p, top, ring, at, h, j, AXIS: gl.constexpr):
    """What multiplies piece j of the values of head h: probabilities times the tokens' scales.

    In float16, whose range they might leave, scales are relative to the largest so far, ``top``,
    of which the output is a multiple. Also gives what the output so far is to be multiplied by.
    """
    fade = gl.to_tensor(1.0)
    if ring.v_scales.BLOCKS > 0:
        tokens: gl.constexpr = gl.SliceLayout(AXIS, p.type.layout)
        scale = ring.v_scales.of_tokens(ring.tile(at, h), j, tokens)
        if ring.k.dtype == gl.float16:
            largest = gl.maximum(top, gl.max(gl.abs(scale), 0))
            unit = gl.where(largest == 0.0, 1.0, largest)
            scale = scale / unit
            fade = top / unit
            top = largest
        p = p * gl.expand_dims(scale, AXIS)
    return p, fade, top


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
    # Columns of values by their scales: each piece has probabilities and an output of its own.
    PIECES: gl.constexpr = max(ring.v_scales.BLOCKS, 1)
    V_WIDTH: gl.constexpr = ring.v.shape[4] if PIECES == 1 else ring.v_scales.WIDTH
    OTHER: gl.constexpr = 1 - AXIS
    dtype: gl.constexpr = ring.k.dtype
    s_layout: gl.constexpr = accumulator(AXIS, gl.num_warps(), BLOCK_M, BLOCK_N)
    o_layout: gl.constexpr = accumulator(AXIS, gl.num_warps(), BLOCK_M, V_WIDTH)
    rows: gl.constexpr = gl.SliceLayout(OTHER, s_layout)
    o_rows: gl.constexpr = gl.SliceLayout(OTHER, o_layout)
    tokens: gl.constexpr = gl.SliceLayout(AXIS, s_layout)
    p_layout: gl.constexpr = gl.NVMMASharedLayout.get_default_for([BLOCK_M, BLOCK_N], dtype)
    probabilities = gl.allocate_shared_memory(dtype, [PIECES, BLOCK_M, BLOCK_N], p_layout)
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
        tops = ()
        for _ in gl.static_range(HEADS):
            ms = ms + (gl.full([BLOCK_M], float("-inf"), gl.float32, rows),)
            # Sums of a thread's tokens: they are added up once, at the end.
            ls = ls + (zeros(BLOCK_M, BLOCK_N, s_layout, AXIS),)
            for _ in gl.static_range(PIECES):
                os = os + (zeros(BLOCK_M, V_WIDTH, o_layout, AXIS),)
                tops = tops + (gl.to_tensor(0.0),)
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
            new_tops = ()
            for h in gl.static_range(HEADS):
                # [BLOCK_M, BLOCK_N]
                s = key_products(ring, queries, at, stage, item, h, AXIS)
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
                fades = ()
                for j in gl.static_range(PIECES):
                    weights, fade, top = weighted(p, tops[h * PIECES + j], ring, at, h, j, AXIS)
                    if AXIS == 0:
                        probabilities.index(j).store(weights.to(dtype))
                    else:
                        probabilities.index(j).permute((1, 0)).store(weights.to(dtype))
                    fades = fades + (fade,)
                    new_tops = new_tops + (top,)
                fence_async_shared()
                decay = gl.expand_dims(gl.convert_layout(alpha, o_rows), OTHER)
                products = ()
                for j in gl.static_range(PIECES):
                    # [BLOCK_M, V_WIDTH]
                    o = os[h * PIECES + j] * (decay * fades[j])
                    v = ring.values(at, h).slice(j * V_WIDTH, V_WIDTH, 1)
                    products = products + (product(probabilities.index(j), v, o, AXIS),)
                if PIECES == 1:
                    new_os = new_os + (warpgroup_mma_wait(0, products),)
                else:
                    new_os = new_os + warpgroup_mma_wait(0, products)
                new_ms = new_ms + (m,)
                new_ls = new_ls + (ls[h] * gl.expand_dims(alpha, OTHER) + p,)
            ring.release(at)
            ms = new_ms
            ls = new_ls
            os = new_os
            tops = new_tops
        queries.release(i)
        totals = ()
        for h in gl.static_range(HEADS):
            for j in gl.static_range(PIECES):
                o = os[h * PIECES + j]
                if ring.v_scales.BLOCKS > 0 and dtype == gl.float16:
                    o = o * tops[h * PIECES + j]
                if ring.v_scales.BLOCKS < 0:
                    o = o * ring.v_scales.of_head(queries.head(item, h))
                totals = totals + (o,)
        if CONSUMERS == 2 and C == 1:
            hand_over(ms, ls, totals, merge, i, HEADS, PIECES)
        else:
            if CONSUMERS == 2:
                mbarrier.wait(merge.full, i & 1)
            row = queries.rows(item, o_rows)
            for h in gl.static_range(HEADS):
                for j in gl.static_range(PIECES):
                    o = totals[h * PIECES + j]
                    m = gl.convert_layout(ms[h], o_rows)
                    l = gl.convert_layout(gl.sum(ls[h], OTHER), o_rows)
                    if CONSUMERS == 2:
                        o, m, l = merged(o, m, l, merge, h, j, PIECES, o_layout)
                    head = queries.head(item, h)
                    d = j * V_WIDTH + gl.arange(0, V_WIDTH, gl.SliceLayout(AXIS, o_layout))
                    store_rows(
                        o,
                        m,
                        l,
                        d,
                        row,
                        head,
                        h,
                        b,
                        slot,
                        whole,
                        work.query_len,
                        results,
                        AXIS,
                        j == 0,
                    )
            if CONSUMERS == 2:
                mbarrier.arrive(merge.empty)
        n += end - begin
        i += 1
        t += end - begin


@gluon.jit
def hand_over(ms, ls, totals, merge, i, HEADS: gl.constexpr, PIECES: gl.constexpr):
    """The second consumer's sums of item i, transposed, to the first."""
    mbarrier.wait(merge.empty, (i & 1) ^ 1)
    for h in gl.static_range(HEADS):
        for j in gl.static_range(PIECES):
            merge.o.index(h * PIECES + j).store(totals[h * PIECES + j])
        merge.sums.index(2 * h).store(ms[h])
        merge.sums.index(2 * h + 1).store(gl.sum(ls[h], 0))
    mbarrier.arrive(merge.full)


@gluon.jit
def merged(o, m, l, merge, h, j, PIECES: gl.constexpr, layout: gl.constexpr):
    """The first consumer's sums of head h, piece j of its output, with those of the second."""
    rows: gl.constexpr = gl.SliceLayout(0, layout)
    other = merge.sums.index(2 * h).load(rows)
    both = gl.maximum(m, other)
    origin = gl.where(both == float("-inf"), 0.0, both)
    mine = gl.exp2(m - origin)
    theirs = gl.exp2(other - origin)
    l = l * mine + merge.sums.index(2 * h + 1).load(rows) * theirs
    o = o * mine[None, :] + merge.o.index(h * PIECES + j).load(layout) * theirs[None, :]
    return o, both, l
