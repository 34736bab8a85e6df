"""dQ of one tile of query rows over the tiles of keys that it sees: sums in one order, always.

Two consumer warpgroups share a tile, each with half of its rows: ``S = Q K^T`` and ``dP = dO V^T``,
then ``dQ += dS K`` with dS and dQ in registers. Which tiles a program computes, and over which keys
each goes, is the forward kernel's ``work``.
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
def step(work, item, j, n, qs, dos, dqs, k, v, shift, delta, scores, MASKED: gl.constexpr):
    """The j-th tile of keys of an item, tile n of the rings, adds to dQ."""
    V_COLUMNS: gl.constexpr = v.COLUMNS
    BLOCK_M: gl.constexpr = work.BLOCK_M
    rows: gl.constexpr = shift.type.layout
    s_layout: gl.constexpr = rows.parent
    ks = all_tiles(k, n)
    offset = item.len_k - item.len_q + item.begin
    k.wait(n)
    if MASKED:
        low, high = work.interval(item, j, gl.SliceLayout(1, rows_layout(gl.num_warps())))
        last = gl.minimum(offset + BLOCK_M, item.len_k) - 1
        zero_rows(ks, (low <= last) & (high > offset))
    # [BLOCK_M, BLOCK_N]
    s = products(qs, ks, BLOCK_M, work.BLOCK_N)
    v.wait(n)
    dp = products(dos, all_tiles(v, n), BLOCK_M, work.BLOCK_N)
    s = warpgroup_mma_wait(V_COLUMNS, [s])
    x = logits(s, scores.scale, scores.softcap, scores.SOFTCAP, scores.SCALED)
    p = gl.exp2(x * scores.factor - shift[:, None])
    dp = warpgroup_mma_wait(0, [dp])
    v.release(n)
    ds = p * (dp - delta[:, None])
    if scores.SOFTCAP:
        ds = ds * cap_slope(x, scores.softcap)
    if MASKED:
        position = offset + gl.arange(0, BLOCK_M, rows)
        ds = gl.where(work.seen(item, j, position, s_layout), ds, 0.0)
    pending = finished(0, add_products_in_registers(dqs, ds.to(k.x0.dtype), ks))
    k.release(n)
    return pending[: k.COLUMNS]


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
                    for j in range(item.masked):
                        dqs = step(
                            work, item, j, n + j, qs, dos, dqs, k, v, shift, delta, scores, True
                        )
                    for j in range(item.masked, item.count):
                        dqs = step(
                            work, item, j, n + j, qs, dos, dqs, k, v, shift, delta, scores, False
                        )
                    q.release(m)
                    d.release(m)
                    n += item.count
                    m += 1
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
                store_columns(dq + at * DIM, dqs, scale, item.len_q - item.begin, HEADS, DIM)


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
