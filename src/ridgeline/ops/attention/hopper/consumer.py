"""A consumer warpgroup of the forward kernel: 64 query rows over the tiles of keys they see.

The products of two tiles overlap (FlashAttention-3, Shah et al., arXiv 2407.08608, algorithm 2):
while the probabilities of one tile multiply its values, the scores of the next become
probabilities. Probabilities stay in registers, as operand A.

Of FP8 (``Scaling.ON``) products of a tile are multiplied by its scales, in float32. Probabilities
are 2^8 times as large, as are their sums.
"""

from math import log2

from ridgeline.ops.attention.fp8 import P_SCALE
from ridgeline.ops.attention.hopper.config import ROWS
from ridgeline.ops.attention.hopper.ring import Ring
from ridgeline.ops.attention.hopper.scales import Scaling
from ridgeline.ops.attention.hopper.values import (
    begin,
    finish,
    operands,
    outputs,
    packed,
    products_layout,
    times,
)
from ridgeline.ops.attention.hopper.work import Work
from ridgeline.ops.attention.tiles import logits
from ridgeline.ops.common.gluon import (
    aggregate,
    gl,
    gluon,
    mbarrier,
    warpgroup_mma,
    warpgroup_mma_wait,
)

ROWS = gl.constexpr(ROWS)
P_EXPONENT = gl.constexpr(log2(P_SCALE))
TINY = gl.constexpr(2.0**-126)
SUMS = gl.constexpr(8)  # sums of a row: a thread has two of them, of its own columns


@aggregate
class Scores:
    """From products to probabilities: numbers as in ``tiles.Problem.options``."""

    factor: gl.tensor
    scale: gl.tensor
    softcap: gl.tensor
    SOFTCAP: gl.constexpr
    SCALED: gl.constexpr

    @gluon.constexpr_function
    def __init__(self, factor, scale, softcap, SOFTCAP, SCALED):
        self.factor = factor
        self.scale = scale
        self.softcap = softcap
        self.SOFTCAP = gl.constexpr(SOFTCAP)
        self.SCALED = gl.constexpr(SCALED)


@aggregate
class Turns:
    """Ping-pong: consumers issue their products one after the other, if ``ON``."""

    bars: gl.shared_memory_descriptor  # [CONSUMERS, 1]
    CONSUMERS: gl.constexpr
    ON: gl.constexpr

    @gluon.constexpr_function
    def __init__(self, bars, CONSUMERS, ON):
        self.bars = bars
        self.CONSUMERS = gl.constexpr(CONSUMERS)
        self.ON = gl.constexpr(ON)

    @gluon.jit
    def wait(self, n, C: gl.constexpr):
        """For the n-th turn of consumer C: its predecessor's, or the last one's before."""
        if self.ON:
            mbarrier.wait(self.bars.index(C), (n & 1) ^ (1 if C == 0 else 0))

    @gluon.jit
    def give(self, C: gl.constexpr):
        if self.ON:
            mbarrier.arrive(self.bars.index((C + 1) % self.CONSUMERS))


@aggregate
class Consumer:
    """Consumer ``C``, what it reads, and how."""

    work: Work
    queries: Ring
    keys: Ring
    values: Ring
    turns: Turns
    scores: Scores
    scaling: Scaling
    C: gl.constexpr

    @gluon.constexpr_function
    def __init__(self, work, queries, keys, values, turns, scores, scaling, C):
        self.work = work
        self.queries = queries
        self.keys = keys
        self.values = values
        self.turns = turns
        self.scores = scores
        self.scaling = scaling
        self.C = gl.constexpr(C)

    @gluon.jit
    def key_products(self, q, n):
        """Begins the products of the query rows in tile q with the keys of tile n."""
        k = self.keys.tile(n, 0)
        BLOCK_N: gl.constexpr = k.shape[0]
        layout: gl.constexpr = products_layout(BLOCK_N, self.keys.x0.dtype)
        s = gl.zeros([ROWS, BLOCK_N], gl.float32, layout)
        rows = self.queries.tile(q, 0)
        s = warpgroup_mma(rows, k.permute((1, 0)), s, use_acc=False, is_async=True)
        if self.keys.COLUMNS == 2:
            k = self.keys.tile(n, 1).permute((1, 0))
            s = warpgroup_mma(self.queries.tile(q, 1), k, s, is_async=True)
        return s

    @gluon.jit
    def softmax(self, item, j, rows, scale, negative, s, m, l, MASKED: gl.constexpr):
        """What the products ``s`` of an item's j-th tile are to the maximum m and the sums l.

        ``scale [ROWS]`` of FP8 rows and the tile's keys multiplies them; some of it may be
        ``negative``.

        Returns the probabilities, ``packed``, the new m and l, and the factor of what was
        accumulated so far.
        """
        # [ROWS, BLOCK_N]
        scores = self.scores
        factor = scores.factor
        spread = factor
        if self.scaling.ON:
            factor = factor * scale
            if scores.SOFTCAP or scores.SCALED:
                s = s * factor[:, None]
                factor = gl.full_like(factor, 1.0)
            else:
                s, factor = positive(s, factor, negative)
            spread = factor[:, None]
        x = logits(s, scores.scale, scores.softcap, scores.SOFTCAP, scores.SCALED)
        if MASKED:
            layout: gl.constexpr = s.type.layout
            x = gl.where(self.work.seen(item, j, rows.position, layout), x, float("-inf"))
        m_new = gl.maximum(m, gl.max(x, 1) * factor)
        # A row that has seen nothing has m = -inf; its differences are taken from 0 instead.
        base = gl.where(m_new == float("-inf"), 0.0, m_new)
        alpha = gl.exp2(m - base)
        if self.scaling.ON:
            base -= P_EXPONENT
        p = gl.exp2(x * spread - base[:, None])
        l = l * gl.convert_layout(alpha, gl.SliceLayout(1, l.type.layout))[:, None] + sums(p)
        return packed(p, self.values), m_new, l, alpha

    @gluon.jit
    def first(self, item, q, n, rows, m, l):
        """The scores of an item's first tile, which is tile n of all."""
        scale, negative = self.scaling.keys(rows, self.work, item, 0)
        self.queries.wait(q)
        self.keys.wait(n)
        self.turns.wait(n, self.C)
        s = self.key_products(q, n)
        self.turns.give(self.C)
        s = warpgroup_mma_wait(0, [s])
        self.keys.release(n)
        p, m, l, alpha = self.softmax(item, 0, rows, scale, negative, s, m, l, True)
        self.values.wait(n)
        return p, m, l, alpha

    @gluon.jit
    def step(self, item, j, q, n, rows, p, m, l, alpha, os, unit, MASKED: gl.constexpr):
        """The scores of an item's j-th tile, and the values of the one before; tile n of all.

        ``alpha`` is the factor of what was accumulated before that one. Of FP8 outputs are
        multiplied by it as they take its products, in one instruction; others have been before.
        """
        scale, negative = self.scaling.keys(rows, self.work, item, j)
        ratio, weight, unit = self.scaling.values(unit, self.work, item, j - 1)
        p, alpha, os = self.weighted(n - 1, p, alpha, os, weight)
        factor = alpha * ratio
        self.keys.wait(n)
        self.turns.wait(n, self.C)
        s = self.key_products(q, n)
        ps = operands(p, self.values)
        pending = begin(os, ps, self.values, n - 1)
        self.turns.give(self.C)
        s = warpgroup_mma_wait(len(pending), [s])
        self.keys.release(n)
        p, m, l, alpha = self.softmax(item, j, rows, scale, negative, s, m, l, MASKED)
        if not self.scaling.ON:
            factor = alpha
        # Its branch keeps ptxas from moving the exponentials past the wait for the products.
        self.values.wait(n)
        os = finish(os, pending, ps, self.values, n - 1, factor, 1.0)
        self.values.release(n - 1)
        return p, m, l, alpha, os, unit

    @gluon.jit
    def weighted(self, n, p, alpha, os, weight):
        """Adds the values of tile n at once where ``weight``, which is almost always 1, multiplies
        their products; their probabilities are 0 then."""
        if self.scaling.ON:  # noqa: SIM102  a constant: BF16 has no branch
            if weight != 1.0:
                ps = operands(p, self.values)
                pending = begin(os, ps, self.values, n)
                os = finish(os, pending, ps, self.values, n, alpha, weight)
                p = gl.zeros_like(p)
                alpha = gl.full_like(alpha, 1.0)
        return p, alpha, os

    @gluon.jit
    def last(self, item, n, p, alpha, os, unit):
        """The values of an item's last tile, which is tile n of all."""
        ratio, weight, unit = self.scaling.values(unit, self.work, item, item.count - 1)
        p, alpha, os = self.weighted(n, p, alpha, os, weight)
        ps = operands(p, self.values)
        pending = begin(os, ps, self.values, n)
        factor = gl.full_like(alpha, 1.0)
        if self.scaling.ON:
            factor = alpha * ratio
        os = finish(os, pending, ps, self.values, n, factor, 1.0)
        self.values.release(n)
        if self.scaling.ON:
            os = times(os, unit)
        return os


@gluon.jit
def positive(s, factor, negative):
    """Products and what multiplies them, such that it is positive: the largest product is then the
    largest score."""
    if negative:
        s = s * gl.where(factor < 0.0, -1.0, 1.0)[:, None]
    return s, gl.where(factor == 0.0, TINY, gl.abs(factor))


@gluon.jit
def sums(p):
    """Each row's sums over every ``SUMS``-th column, which a thread holds: no exchange."""
    PARTS: gl.constexpr = p.shape[1] // SUMS
    return gl.sum(p.reshape([ROWS, PARTS, SUMS]), 1)


@gluon.jit
def attend(work, queries, keys, values, turns, scores, scaling, results, C: gl.constexpr):
    """Consumer C: its 64 rows of every item of the program."""
    CONSUMERS: gl.constexpr = queries.STAGES
    BLOCK_N: gl.constexpr = work.BLOCK_N
    layout: gl.constexpr = products_layout(BLOCK_N, keys.x0.dtype)
    rows: gl.constexpr = gl.SliceLayout(1, layout)
    consumer = Consumer(work, queries, keys, values, turns, scores, scaling, C)
    n = 0  # tiles of keys so far
    q = C  # and of queries
    for i in range(work.rounds()):
        t = work.nth(i)
        if t >= 0:
            item = work.item(t)
            if item.begin >= 0:
                first = item.begin + C * ROWS
                position = item.len_k - item.len_q + (first + gl.arange(0, ROWS, rows)) // work.PACK
                m = gl.full([ROWS], float("-inf"), gl.float32, rows)
                l = sums(gl.zeros([ROWS, BLOCK_N], gl.float32, layout))
                os = outputs(values)
                read = scaling.rows(work, item, first, position)
                if item.count > 0:
                    p, m, l, alpha = consumer.first(item, q, n, read, m, l)
                    unit = gl.to_tensor(1.0)
                    for j in range(1, item.masked):
                        p, m, l, alpha, os, unit = consumer.step(
                            item, j, q, n + j, read, p, m, l, alpha, os, unit, True
                        )
                    for j in range(gl.maximum(item.masked, 1), item.count):
                        p, m, l, alpha, os, unit = consumer.step(
                            item, j, q, n + j, read, p, m, l, alpha, os, unit, False
                        )
                    queries.release(q)
                    n += item.count
                    os = consumer.last(item, n - 1, p, alpha, os, unit)
                    q += CONSUMERS
                if scaling.ON:
                    m -= P_EXPONENT
                results.store(work, item, first, os, m, gl.convert_layout(gl.sum(l, 1), rows))
