# ruff: noqa: RUF005
"""A consumer warpgroup of the forward kernel: 64 query rows over the tiles of keys they see.

The products of two tiles overlap (FlashAttention-3, Shah et al., arXiv 2407.08608, algorithm 2):
while the probabilities of one tile multiply its values, the scores of the next become
probabilities. Probabilities stay in registers, as operand A. With two tiles of value columns there
are two outputs; tuples hold them, and grow by ``+``: the compiler knows no starred ones.

Of FP8 (``Scaling.ON``) products of a tile are multiplied by its scales, in float32. Those with
values are sums of one tile alone, which the output takes in float32: tensor cores add FP8 products
in fewer bits. Probabilities are 2^8 times as large, as are their sums.
"""

from math import log2

from ridgeline.ops.attention.fp8 import P_SCALE
from ridgeline.ops.attention.hopper.config import ROWS
from ridgeline.ops.attention.tiles import logits
from ridgeline.ops.common.gluon import (
    aggregate,
    gl,
    gluon,
    mbarrier,
    warpgroup_mma,
    warpgroup_mma_wait,
)
from ridgeline.ops.common.hopper_attend import accumulator
from ridgeline.ops.common.triton import natural_lse

ROWS = gl.constexpr(ROWS)
P_EXPONENT = gl.constexpr(log2(P_SCALE))
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
class Results:
    """``out [..., HEADS, VALUE_DIM]`` and ``lse [..., HEADS]``, contiguous."""

    out: gl.tensor
    lse: gl.tensor
    spoilt: gl.tensor  # how many rows are not finite, if COUNT
    HEADS: gl.constexpr
    VALUE_DIM: gl.constexpr
    COUNT: gl.constexpr

    @gluon.constexpr_function
    def __init__(self, out, lse, spoilt, HEADS, VALUE_DIM, COUNT):
        self.out = out
        self.lse = lse
        self.spoilt = spoilt
        self.HEADS = gl.constexpr(HEADS)
        self.VALUE_DIM = gl.constexpr(VALUE_DIM)
        self.COUNT = gl.constexpr(COUNT)

    @gluon.jit
    def store(self, work, item, first, os, m, l):
        """Rows from ``first`` on of an item; ``m`` and ``l [ROWS]``."""
        self.store_columns(work, item, first, os[0], l, 0)
        if len(os) == 2:
            self.store_columns(work, item, first, os[1], l, os[0].shape[1])
        layout: gl.constexpr = m.type.layout
        at, real = self.rows(work, item, first, layout)
        gl.store(self.lse + at, natural_lse(m, l), mask=real)

    @gluon.jit
    def store_columns(self, work, item, first, o, l, FIRST: gl.constexpr):
        rows: gl.constexpr = gl.SliceLayout(1, o.type.layout)
        at, real = self.rows(work, item, first, rows)
        total = gl.convert_layout(l, rows)
        total = gl.where(total == 0.0, 1.0, total)
        d = FIRST + gl.arange(0, o.shape[1], gl.SliceLayout(0, o.type.layout))
        x = (o / total[:, None]).to(self.out.dtype.element_ty)
        pointers = self.out + (at * self.VALUE_DIM)[:, None] + d[None, :]
        gl.store(pointers, x, mask=real[:, None] & (d < self.VALUE_DIM)[None, :])
        if self.COUNT:
            bad = gl.sum(o * 0.0, 1) != 0.0  # NaN of a row with an element that is not finite
            one = gl.full([ROWS], 1, gl.int32, rows)
            gl.atomic_add(self.spoilt + one * 0, one, mask=bad & real, sem="relaxed")

    @gluon.jit
    def rows(self, work, item, first, layout: gl.constexpr):
        """Where rows from ``first`` on go, and which of them there are."""
        row = first + gl.arange(0, ROWS, layout)
        token = item.start_q + row // work.PACK
        if not work.PACKED:
            token += item.b.to(gl.int64) * work.query_len
        at = token * self.HEADS + item.entity * work.PACK + row % work.PACK
        return at, row < item.len_q * work.PACK


@gluon.constexpr_function
def products_layout(columns, dtype):
    """Of products of a warpgroup's rows, whose operands are of ``dtype``."""
    return accumulator(0, 4, ROWS.value, columns, 256 // dtype.primitive_bitwidth)


@gluon.jit
def key_products(queries, keys, q, n):
    """Begins the products of the query rows in tile q with the keys of tile n."""
    k = keys.tile(n, 0)
    BLOCK_N: gl.constexpr = k.shape[0]
    s = gl.zeros([ROWS, BLOCK_N], gl.float32, products_layout(BLOCK_N, keys.x0.dtype))
    s = warpgroup_mma(queries.tile(q, 0), k.permute((1, 0)), s, use_acc=False, is_async=True)
    if keys.COLUMNS == 2:
        s = warpgroup_mma(queries.tile(q, 1), keys.tile(n, 1).permute((1, 0)), s, is_async=True)
    return s


@gluon.jit
def add_values(os, ps, values, n):
    """Begins ``os + ps @ values`` of tile n; of FP8, ``ps @ values``."""
    found = ()
    for i in gl.static_range(values.COLUMNS):
        if values.TURNED:
            tile = values.tile(n, i).permute((1, 0))
            nothing = gl.zeros_like(os[i])
            new = warpgroup_mma(ps[i], tile, nothing, use_acc=False, is_async=True)
        else:
            new = warpgroup_mma(ps[i], values.tile(n, i), os[i], is_async=True)
        found = found + (new,)
    return found


@gluon.jit
def finished(os, pending, ps, scale, EIGHT: gl.constexpr):
    """The outputs that ``add_values`` began with ``os`` and ``ps``, once they are there; ``scale``
    is that of FP8 values."""
    found = warpgroup_mma_wait(0, pending + ps)
    new = ()
    for i in gl.static_range(len(pending)):
        new = new + (os[i] + found[i] * scale if EIGHT else found[i],)
    return new


@gluon.jit
def output(tiles, WIDTH: gl.constexpr):
    """Zeros, as many columns as tiles of values have."""
    return gl.zeros([ROWS, WIDTH], gl.float32, products_layout(WIDTH, tiles.dtype))


@gluon.jit
def outputs(values):
    AXIS: gl.constexpr = 3 if values.TURNED else 4
    os = (output(values.x0, values.x0.shape[AXIS]),)
    if values.COLUMNS == 2:
        os = os + (output(values.x1, values.x1.shape[AXIS]),)
    return os


@gluon.jit
def operand(p, o):
    """Probabilities as operand A of a product with the layout of ``o``."""
    BITS: gl.constexpr = p.dtype.primitive_bitwidth
    layout: gl.constexpr = gl.DotOperandLayout(0, o.type.layout, 32 // BITS)
    if BITS == 8:  # in the order of ``turned``
        parts = p.reshape([ROWS, p.shape[1] // 16, 2, 4, 2]).permute((0, 1, 3, 2, 4))
        p = parts.reshape([ROWS, p.shape[1]])
    return gl.convert_layout(p, layout, assert_trivial=True)


@gluon.jit
def rescaled(o, alpha):
    rows: gl.constexpr = gl.SliceLayout(1, o.type.layout)
    return o * gl.convert_layout(alpha, rows)[:, None]


@gluon.jit
def sums(p):
    """Each row's sums over every ``SUMS``-th column, which a thread holds: no exchange."""
    PARTS: gl.constexpr = p.shape[1] // SUMS
    return gl.sum(p.reshape([ROWS, PARTS, SUMS]), 1)


@gluon.jit
def softmax(
    s,
    m,
    l,
    os,
    work,
    item,
    j,
    position,
    scores,
    scale,
    dtype: gl.constexpr,
    MASKED: gl.constexpr,
    EIGHT: gl.constexpr,
):
    """What the products ``s`` of the j-th tile of an item are to the maximum m and the sums l.

    ``scale [ROWS]`` of FP8 rows and the tile's keys, which may be negative, multiplies products.

    Returns the probabilities as operands of products with the layouts of ``os``, the new m and l,
    and the factor of what was accumulated so far.
    """
    # [ROWS, BLOCK_N]
    factor = scores.factor
    if EIGHT:
        s = s * (scale * factor)[:, None]
        factor = 1.0
    x = logits(s, scores.scale, scores.softcap, scores.SOFTCAP, scores.SCALED)
    if MASKED:
        layout: gl.constexpr = s.type.layout
        x = gl.where(work.seen(item, j, position, layout), x, float("-inf"))
    m_new = gl.maximum(m, gl.max(x, 1) * factor)
    # A row that has seen nothing has m = -inf; its differences are taken from 0 instead.
    base = gl.where(m_new == float("-inf"), 0.0, m_new)
    alpha = gl.exp2(m - base)
    if EIGHT:
        base -= P_EXPONENT
    p = gl.exp2(x * factor - base[:, None])
    l = l * gl.convert_layout(alpha, gl.SliceLayout(1, l.type.layout))[:, None] + sums(p)
    ps = ()
    for i in gl.static_range(len(os)):
        ps = ps + (operand(p.to(dtype), os[i]),)
    return ps, m_new, l, alpha


@gluon.jit
def step(
    n,
    q,
    ps,
    m,
    l,
    os,
    work,
    item,
    j,
    position,
    queries,
    keys,
    values,
    turns,
    scores,
    scaling,
    query_scale,
    C: gl.constexpr,
    MASKED: gl.constexpr,
):
    """The scores of an item's j-th tile, and the values of the one before; tile n of all."""
    scale = query_scale
    value_scale = query_scale
    if scaling.ON:
        scale = query_scale * scaling.keys(work, item, j)
        value_scale = scaling.values(work, item, j - 1)
    keys.wait(n)
    turns.wait(n, C)
    s = key_products(queries, keys, q, n)
    pending = add_values(os, ps, values, n - 1)
    turns.give(C)
    s = warpgroup_mma_wait(values.COLUMNS, [s])
    keys.release(n)
    new_ps, m, l, alpha = softmax(
        s,
        m,
        l,
        os,
        work,
        item,
        j,
        position,
        scores,
        scale,
        values.x0.dtype,
        MASKED,
        scaling.ON,
    )
    # Its branch keeps ptxas from moving the exponentials past the wait for the products.
    values.wait(n)
    found = finished(os, pending, ps, value_scale, scaling.ON)
    values.release(n - 1)
    os = ()
    for i in gl.static_range(len(found)):
        os = os + (rescaled(found[i], alpha),)
    return new_ps, m, l, os


@gluon.jit
def attend(work, queries, keys, values, turns, scores, scaling, results, C: gl.constexpr):
    """Consumer C: its 64 rows of every item of the program."""
    CONSUMERS: gl.constexpr = queries.STAGES
    BLOCK_N: gl.constexpr = work.BLOCK_N
    layout: gl.constexpr = products_layout(BLOCK_N, keys.x0.dtype)
    rows: gl.constexpr = gl.SliceLayout(1, layout)
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
                query_scale = scores.factor
                if scaling.ON:
                    query_scale = scaling.queries(work, item, first, ROWS, rows)
                if item.count > 0:
                    scale = query_scale
                    if scaling.ON:
                        scale = query_scale * scaling.keys(work, item, 0)
                    queries.wait(q)
                    keys.wait(n)
                    turns.wait(n, C)
                    s = key_products(queries, keys, q, n)
                    turns.give(C)
                    s = warpgroup_mma_wait(0, [s])
                    keys.release(n)
                    ps, m, l, _ = softmax(
                        s,
                        m,
                        l,
                        os,
                        work,
                        item,
                        0,
                        position,
                        scores,
                        scale,
                        values.x0.dtype,
                        True,
                        scaling.ON,
                    )
                    values.wait(n)
                    for j in range(1, item.masked):
                        ps, m, l, os = step(
                            n + j,
                            q,
                            ps,
                            m,
                            l,
                            os,
                            work,
                            item,
                            j,
                            position,
                            queries,
                            keys,
                            values,
                            turns,
                            scores,
                            scaling,
                            query_scale,
                            C,
                            True,
                        )
                    for j in range(gl.maximum(item.masked, 1), item.count):
                        ps, m, l, os = step(
                            n + j,
                            q,
                            ps,
                            m,
                            l,
                            os,
                            work,
                            item,
                            j,
                            position,
                            queries,
                            keys,
                            values,
                            turns,
                            scores,
                            scaling,
                            query_scale,
                            C,
                            False,
                        )
                    queries.release(q)
                    n += item.count
                    value_scale = query_scale
                    if scaling.ON:
                        value_scale = scaling.values(work, item, item.count - 1)
                    pending = add_values(os, ps, values, n - 1)
                    os = finished(os, pending, ps, value_scale, scaling.ON)
                    values.release(n - 1)
                    q += CONSUMERS
                if scaling.ON:
                    m -= P_EXPONENT
                results.store(work, item, first, os, m, gl.convert_layout(gl.sum(l, 1), rows))
