# ruff: noqa: RUF005
"""The transposed consumer: tokens on the M side of wgmma, query rows on its N side.

Few query rows fill an N of 8, 16 or 32 where they would leave an M of 64 mostly empty:
``S^T = K Q^T``, a softmax down the columns, ``O^T += V^T P^T`` (FlashMLA-ETAP, arXiv 2506.01969).
Each consumer warpgroup owns whole tiles with its own maximum, sum and O^T; they merge once an item.
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
    """From products to scores: ``scale`` in base 2, soft cap, and which tokens a row sees."""

    scale: gl.tensor
    softcap: gl.tensor
    window_left: gl.tensor
    window_right: gl.tensor
    CAUSAL: gl.constexpr
    WINDOW: gl.constexpr
    SOFTCAP: gl.constexpr

    @gluon.constexpr_function
    def __init__(self, scale, softcap, window_left, window_right, CAUSAL, WINDOW, SOFTCAP):
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


@gluon.jit
def key_products(ring, queries, n, stage, h, layout: gl.constexpr):
    """``[BLOCK_N, BLOCK_M]``: keys of tile n times the query rows of head h."""
    q = queries.q.index(stage * queries.HEADS + h)
    k = ring.keys(n, h).slice(0, q.shape[1], 1)
    s = gl.zeros([ring.BLOCK_N, queries.BLOCK_M], gl.float32, layout)
    s = warpgroup_mma(k, q.permute((1, 0)), s, is_async=True)
    if ring.HAS_ROPE:
        r = queries.r.index(stage * queries.HEADS + h)
        s = warpgroup_mma(ring.rope_keys(n), r.permute((1, 0)), s, is_async=True)
    return warpgroup_mma_wait(0, [s])


@gluon.jit
def attend_transposed(
    work,
    ring,
    queries,
    scores,
    results,
    merge,
    C: gl.constexpr,
    CONSUMERS: gl.constexpr,
):
    """Consumer warpgroup C of ``CONSUMERS``: every ``CONSUMERS``-th tile of the program.

    The number of stages is a multiple of ``CONSUMERS``.
    """
    HEADS: gl.constexpr = ring.HEADS
    BLOCK_M: gl.constexpr = queries.BLOCK_M
    V_WIDTH: gl.constexpr = ring.v.shape[4]
    dtype: gl.constexpr = ring.k.dtype
    acc: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, BLOCK_M, 16])
    rows: gl.constexpr = gl.SliceLayout(0, acc)
    p_layout: gl.constexpr = gl.NVMMASharedLayout.get_default_for([BLOCK_M, ring.BLOCK_N], dtype)
    probabilities = gl.allocate_shared_memory(dtype, [BLOCK_M, ring.BLOCK_N], p_layout)
    p_shared = probabilities.permute((1, 0))
    t = work.t
    b = work.b
    base = work.base
    n = 0
    i = 0
    while t < work.stop:
        b, base, item, begin, end, first, length, slot, whole = work.next(t, b, base)
        row = queries.rows(item, rows)
        position = (length - work.query_len + row // queries.GROUP)[None, :]
        stage = i % queries.STAGES
        ms = ()
        ls = ()
        os = ()
        for _ in gl.static_range(HEADS):
            ms = ms + (gl.full([BLOCK_M], float("-inf"), gl.float32, rows),)
            # A sum of each token's row of the tile: they are added up once, at the end.
            ls = ls + (gl.zeros([ring.BLOCK_N, BLOCK_M], gl.float32, acc),)
            os = os + (gl.zeros([V_WIDTH, BLOCK_M], gl.float32, acc),)
        queries.wait_full(i)
        # A stage is always the same consumer's: nobody waits for a phase whose predecessor may be
        # another's, and not over.
        for tile in range(begin + (n + C) % CONSUMERS, end, CONSUMERS):
            at = n + tile - begin
            ring.wait_full(at)
            token = tile * ring.BLOCK_N + gl.arange(0, ring.BLOCK_N, gl.SliceLayout(1, acc))
            new_ms = ()
            new_ls = ()
            new_os = ()
            for h in gl.static_range(HEADS):
                s = key_products(ring, queries, at, stage, h, acc)
                s = scores.of(s, token[:, None], position, first, length)
                m = gl.maximum(ms[h], gl.max(s, 0))
                origin = gl.where(m == float("-inf"), 0.0, m)
                p = gl.exp2(s - origin[None, :])
                alpha = gl.exp2(ms[h] - origin)[None, :]
                p_shared.store(p.to(dtype))
                fence_async_shared()
                v = ring.values(at, h).permute((1, 0))
                o = warpgroup_mma(v, p_shared, os[h] * alpha, is_async=True)
                new_ms = new_ms + (m,)
                new_ls = new_ls + (ls[h] * alpha + p,)
                new_os = new_os + (warpgroup_mma_wait(0, [o]),)
            ring.release(at)
            ms = new_ms
            ls = new_ls
            os = new_os
        queries.release(i)
        if CONSUMERS == 2:
            if C == 1:
                mbarrier.wait(merge.empty, (i & 1) ^ 1)
                for h in gl.static_range(HEADS):
                    merge.o.index(h).store(os[h])
                    merge.sums.index(2 * h).store(ms[h])
                    merge.sums.index(2 * h + 1).store(gl.sum(ls[h], 0))
                mbarrier.arrive(merge.full)
            else:
                mbarrier.wait(merge.full, i & 1)
        if C == 0:
            d = gl.arange(0, V_WIDTH, gl.SliceLayout(1, acc))
            for h in gl.static_range(HEADS):
                o = os[h]
                m = ms[h]
                l = gl.sum(ls[h], 0)
                if CONSUMERS == 2:
                    o, m, l = merged(o, m, l, merge, h, acc)
                head = queries.head(item, h)
                store_rows(
                    o, m, l, d, row, head, h, b, slot, whole, work.query_len, results, AXIS=1
                )
            if CONSUMERS == 2:
                mbarrier.arrive(merge.empty)
        n += end - begin
        i += 1
        t += end - begin


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
