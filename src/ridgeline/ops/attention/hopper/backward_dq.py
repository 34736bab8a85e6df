"""dQ of one tile of query rows over the tiles of keys that it sees: sums in one order, always.

Two consumer warpgroups share a tile, each with half of its rows: ``S = Q K^T`` and ``dP = dO V^T``,
then ``dQ += dS K`` with dS and dQ in registers, while the next tile's dS is computed. Which tiles a
program computes, and over which keys each goes, is the forward kernel's ``work``.
"""

from ridgeline.ops.attention.hopper.backward_products import (
    add_products_in_registers,
    all_tiles,
    finished,
    products,
    rows_layout,
    store_columns,
    sums_like,
    zero_rows,
)
from ridgeline.ops.attention.hopper.consumer import Scores
from ridgeline.ops.attention.hopper.ring import make_ring
from ridgeline.ops.attention.hopper.work import make_work
from ridgeline.ops.attention.tiles import cap_slope, first_tile, logits, output_rows
from ridgeline.ops.common.gluon import aggregate, gl, gluon, warpgroup_mma_wait
from ridgeline.ops.common.hopper_attend import accumulator


@gluon.jit
def produce(work, q, d, k, v, q0, q1, d0, d1, k0, k1, v0, v1):
    """The producer warp: every item's rows, then its keys and values."""
    n = 0
    m = 0
    for i in range(work.rounds()):
        t = work.nth(i)
        if t >= 0:
            item = work.item(t)
            if (item.begin >= 0) & (item.count > 0):
                # Packed sequences are rows of one.
                b = item.b * (0 if work.PACKED else 1)
                row = item.start_q.to(gl.int32) + item.begin
                key = item.start_k.to(gl.int32)
                head = work.kv_head(item)
                q.load(m, q0, q1, b, row, item.entity)
                d.load(m, d0, d1, b, row, item.entity)
                for j in range(item.count):
                    first = key + work.tile(item, j) * work.BLOCK_N
                    k.load(n + j, k0, k1, b, first, head)
                    v.load(n + j, v0, v1, b, first, head)
                n += item.count
                m += 1


@aggregate
class Numbers:
    """``shift`` and ``delta`` of each line, as in ``backward_rows``, of tiles of ``BLOCK`` rows."""

    shift: gl.tensor
    delta: gl.tensor
    lines: gl.tensor
    BLOCK: gl.constexpr

    @gluon.constexpr_function
    def __init__(self, shift, delta, lines, BLOCK):
        self.shift = shift
        self.delta = delta
        self.lines = lines
        self.BLOCK = gl.constexpr(BLOCK)

    @gluon.jit
    def of(self, work, item, layout: gl.constexpr):
        """Of the rows of an item."""
        row = item.begin + gl.arange(0, work.BLOCK_M, layout)
        tile = first_tile(item.b, item.start_q, work.query_len, self.BLOCK, work.PACKED)
        line = item.entity.to(gl.int64) * self.lines + tile * self.BLOCK + row
        real = row < item.len_q
        shift = gl.load(self.shift + line, mask=real, other=float("inf"))
        return shift, gl.load(self.delta + line, mask=real, other=0.0)


@gluon.jit
def begin(work, item, j, n, qs, dos, k, v, MASKED: gl.constexpr):
    """Begins the products of an item's rows with the keys and values of its j-th tile, tile n of
    the rings, which is there."""
    ks = all_tiles(k, n)
    if MASKED:
        low, high = work.interval(item, j, gl.SliceLayout(1, rows_layout(gl.num_warps())))
        first = item.len_k - item.len_q + item.begin
        last = gl.minimum(first + work.BLOCK_M, item.len_k) - 1
        zero_rows(ks, (low <= last) & (high > first))
    # [BLOCK_M, BLOCK_N]
    s = products(qs, ks, work.BLOCK_M, work.BLOCK_N)
    return s, products(dos, all_tiles(v, n), work.BLOCK_M, work.BLOCK_N)


@gluon.jit
def gradient(
    work, item, j, n, s, dp, k, v, shift, delta, scores, LATER: gl.constexpr, MASKED: gl.constexpr
):
    """dS of what ``begin`` began, and ``LATER`` products after it; then the next tile is there."""
    rows: gl.constexpr = shift.type.layout
    s_layout: gl.constexpr = rows.parent
    more = j + 1 < item.count
    s = warpgroup_mma_wait(v.COLUMNS + LATER, [s])
    x = logits(s, scores.scale, scores.softcap, scores.SOFTCAP, scores.SCALED)
    p = gl.exp2(x * scores.factor - shift[:, None])
    # This branch and the next keep ptxas from moving arithmetic past the waits for products.
    if more:
        k.wait(n + 1)
    dp = warpgroup_mma_wait(LATER, [dp])
    ds = p * (dp - delta[:, None])
    if scores.SOFTCAP:
        ds = ds * cap_slope(x, scores.softcap)
    if MASKED:
        first = item.len_k - item.len_q + item.begin
        position = first + gl.arange(0, work.BLOCK_M, rows)
        ds = gl.where(work.seen(item, j, position, s_layout), ds, 0.0)
    ds = ds.to(v.x0.dtype)
    if more:
        v.wait(n + 1)
    return ds


@gluon.jit
def step(work, item, j, n, qs, dos, ds, dqs, k, v, shift, delta, scores, MASKED: gl.constexpr):
    """dS of the j-th tile of keys, while that of the one before adds to dQ."""
    s, dp = begin(work, item, j, n, qs, dos, k, v, MASKED)
    pending = add_products_in_registers(dqs, ds, all_tiles(k, n - 1))
    ds = gradient(work, item, j, n, s, dp, k, v, shift, delta, scores, k.COLUMNS, MASKED)
    pending = finished(0, pending)
    v.release(n)
    k.release(n - 1)
    return ds, pending[: k.COLUMNS]


@gluon.jit
def consume(work, q, d, k, v, numbers, scores, dq, scale, HEADS: gl.constexpr, DIM: gl.constexpr):
    """The consumer warpgroups."""
    s_layout: gl.constexpr = accumulator(0, gl.num_warps(), work.BLOCK_M, work.BLOCK_N)
    n = 0
    m = 0
    for i in range(work.rounds()):
        t = work.nth(i)
        if t >= 0:
            item = work.item(t)
            if item.begin >= 0:
                dqs = sums_like(all_tiles(k, 0), work.BLOCK_M)
                if item.count > 0:
                    shift, delta = numbers.of(work, item, gl.SliceLayout(1, s_layout))
                    qs = all_tiles(q, m)
                    dos = all_tiles(d, m)
                    q.wait(m)
                    d.wait(m)
                    k.wait(n)
                    v.wait(n)
                    s, dp = begin(work, item, 0, n, qs, dos, k, v, True)
                    ds = gradient(work, item, 0, n, s, dp, k, v, shift, delta, scores, 0, True)
                    v.release(n)
                    for j in range(1, item.masked):
                        ds, dqs = step(
                            work, item, j, n + j, qs, dos, ds, dqs, k, v, shift, delta, scores, True
                        )
                    for j in range(gl.maximum(item.masked, 1), item.count):
                        ds, dqs = step(
                            work,
                            item,
                            j,
                            n + j,
                            qs,
                            dos,
                            ds,
                            dqs,
                            k,
                            v,
                            shift,
                            delta,
                            scores,
                            False,
                        )
                    q.release(m)
                    d.release(m)
                    n += item.count
                    m += 1
                    pending = add_products_in_registers(dqs, ds, all_tiles(k, n - 1))
                    dqs = finished(0, pending)[: k.COLUMNS]
                    k.release(n - 1)
                at = output_rows(
                    item.begin,
                    item.b,
                    item.start_q,
                    item.entity,
                    work.query_len,
                    HEADS,
                    1,
                    work.PACKED,
                )
                store_columns(dq, dqs, scale, at, item.len_q - item.begin, HEADS, DIM)


@gluon.jit
def dq_kernel(
    q0,
    q1,
    k0,
    k1,
    v0,
    v1,
    d0,
    d1,
    shift,
    delta,
    dq,
    lines,
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
    ends,
    lists,
    capacity,
    stride_eb,
    stride_el,
    band,
    row_tiles,
    section,
    PACKED: gl.constexpr,
    LEFT: gl.constexpr,
    RIGHT: gl.constexpr,
    TREE: gl.constexpr,
    SOFTCAP: gl.constexpr,
    SCALED: gl.constexpr,
    GROUP: gl.constexpr,
    HEADS: gl.constexpr,
    DIM: gl.constexpr,
    K_COLUMNS: gl.constexpr,
    V_COLUMNS: gl.constexpr,
    BLOCK_LINES: gl.constexpr,
    BLOCK_M: gl.constexpr,
    BLOCK_N: gl.constexpr,
    STAGES: gl.constexpr,
    PRODUCER_REGS: gl.constexpr,
):
    """Programs that stay, each with every ``num_programs``-th item; see ``work``."""
    work = make_work(
        cu_q,
        cu_k,
        stride_cuq,
        stride_cuk,
        batch,
        query_len,
        key_len,
        left,
        right,
        ends,
        lists,
        capacity,
        stride_eb,
        stride_el,
        band,
        row_tiles,
        HEADS,
        section,
        row_tiles * HEADS,
        PACKED,
        LEFT,
        RIGHT,
        TREE,
        1,
        GROUP,
        BLOCK_M,
        BLOCK_N,
    )
    q = make_ring(q0, q1, 1, K_COLUMNS, 1)
    d = make_ring(d0, d1, 1, V_COLUMNS, 1)
    k = make_ring(k0, k1, STAGES, K_COLUMNS, 1)
    v = make_ring(v0, v1, STAGES, V_COLUMNS, 1)
    numbers = Numbers(shift, delta, gl.to_tensor(lines), BLOCK_LINES)
    scores = Scores(
        gl.to_tensor(factor), gl.to_tensor(scale), gl.to_tensor(softcap), SOFTCAP, SCALED
    )
    consumed = (work, q, d, k, v, numbers, scores, dq, gl.to_tensor(scale), HEADS, DIM)
    produced = (work, q, d, k, v, q0, q1, d0, d1, k0, k1, v0, v1)
    gl.warp_specialize([(consume, consumed), (produce, produced)], [1], [PRODUCER_REGS])
