# ruff: noqa: RUF005
"""dK and dV of one tile of keys, and what it adds to dQ, over the query rows that see it.

Keys lie on the M side of every product but dQ's: ``S^T = K Q^T`` and ``dP^T = V dO^T``, then
``dV += P^T dO`` and ``dK += dS^T Q`` with accumulators that stay in registers, and ``dQ += dS K``,
which the tensor memory unit adds to a float32 tile in global memory. Two consumer warpgroups share
a tile, each with half of the keys, or (``SHARED_P``) with half of the columns where dK and dV of
64 keys a warpgroup would not fit its registers; a producer brings Q and dO.

A tile of queries belongs to one head: the heads of a group follow one another in one loop, so that
their gradients are summed in one order. Dims above 128, and those that are no power of two, are two
tiles of columns; tuples hold them, and grow by ``+``: the compiler knows no starred ones.
"""

from ridgeline.ops.attention.hopper.backward_products import (
    add_products,
    add_products_in_registers,
    again,
    all_tiles,
    finished,
    products,
    rows_layout,
    store_columns,
    sums_like,
    zero_rows,
)
from ridgeline.ops.attention.hopper.backward_work import KeyWork
from ridgeline.ops.attention.hopper.consumer import Scores
from ridgeline.ops.attention.hopper.ring import Ring, make_ring
from ridgeline.ops.attention.tiles import cap_slope, logits
from ridgeline.ops.common.gluon import (
    aggregate,
    async_reduce_add,
    fence_async_shared,
    gl,
    gluon,
    tma,
    warpgroup_mma_wait,
)
from ridgeline.ops.common.hopper import tiles
from ridgeline.ops.common.hopper_attend import accumulator

# A count that the compiler knows not to be negative: a stage of two is then one instruction away.
COUNT = gl.constexpr(2**31 - 1)


@aggregate
class Rows:
    """A ring of tiles of query rows, each with a float32 a row."""

    ring: Ring
    numbers: gl.shared_memory_descriptor  # [STAGES, BLOCK_M]

    @gluon.constexpr_function
    def __init__(self, ring, numbers):
        self.ring = ring
        self.numbers = numbers

    @gluon.jit
    def load(self, n, desc0, desc1, numbers_desc, b, row, head, line):
        """Producer: tile n from ``row`` on, and the numbers from ``line`` on."""
        BYTES: gl.constexpr = numbers_desc.block_type.nbytes
        self.ring.load(n, desc0, desc1, b, row, head, BYTES)
        stage = n % self.ring.STAGES
        full = self.ring.full.index(stage)
        tma.async_copy_global_to_shared(numbers_desc, [line], full, self.numbers.index(stage))

    @gluon.jit
    def numbers_of(self, n, layout: gl.constexpr):
        return self.numbers.index(n % self.ring.STAGES).load(layout)


@aggregate
class Exchange:
    """What consumer warpgroups hand to each other's products, and to the copy that adds to dQ."""

    p: gl.shared_memory_descriptor  # [BLOCK_N, BLOCK_M]; ds unless SHARED
    ds: gl.shared_memory_descriptor  # [BLOCK_N, BLOCK_M]
    dq: gl.shared_memory_descriptor  # [BLOCK_M, WIDTH] float32
    SHARED: gl.constexpr
    NEED_Q: gl.constexpr
    NEED_K: gl.constexpr
    NEED_V: gl.constexpr

    @gluon.constexpr_function
    def __init__(self, p, ds, dq, SHARED, NEED_Q, NEED_K, NEED_V):
        self.p = p
        self.ds = ds
        self.dq = dq
        self.SHARED = gl.constexpr(SHARED)
        self.NEED_Q = gl.constexpr(NEED_Q)
        self.NEED_K = gl.constexpr(NEED_K)
        self.NEED_V = gl.constexpr(NEED_V)


@gluon.jit
def produce(work, k, v, q, d, k0, k1, v0, v1, q0, q1, d0, d1, shift, delta, lines):
    """The producer warp: every item's keys and values, then its rows."""
    n = 0
    m = 0
    p = gl.program_id(0)
    for first in range(0, work.items(), gl.num_programs(0)):
        if first + p < work.items():
            item = work.item(first + p)
            if item.end > item.begin:
                # Packed sequences are rows of one.
                b = item.b * (0 if work.PACKED else 1)
                key = item.start_k.to(gl.int32) + item.first
                k.load(m, k0, k1, b, key, item.head)
                v.load(m, v0, v1, b, key, item.head)
                for masked in gl.static_range(2):
                    for member in range(work.GROUP):
                        reader = item.head * work.GROUP + member
                        line = reader * lines + item.line
                        count, row = work.tiles(item, masked == 1)
                        for _ in range(count):
                            at = item.start_q.to(gl.int32) + row
                            q.load(n, q0, q1, shift, b, at, reader, line + row)
                            d.load(n, d0, d1, delta, b, at, reader, line + row)
                            row = work.next_row(item, row, masked == 1)
                            n = n + 1 & COUNT
                m += 1
        p = gl.num_programs(0) - 1 - p  # every other round backwards


@gluon.jit
def columns_of(tile, WIDTH: gl.constexpr):
    """The tiles of ``WIDTH`` columns that a tile is made of."""
    ALL: gl.constexpr = tile.shape[1]
    found = ()
    for first in gl.static_range(0, ALL, WIDTH):
        found = found + (tile.slice(first, WIDTH, 1),)
    return found


@gluon.jit
def add_to_dq(dqs, exchange, desc, line):
    """Begins to add tiles of columns to the rows of dQ from ``line`` on."""
    WIDTH: gl.constexpr = exchange.dq.shape[1]
    for c in gl.static_range(len(dqs)):
        tma.store_wait(0)
        exchange.dq.store(dqs[c])
        fence_async_shared()
        async_reduce_add(desc, [line, c * WIDTH], exchange.dq)


@gluon.jit
def step(
    item,
    m,
    n,
    row,
    line,
    k,
    v,
    q,
    d,
    exchange,
    scores,
    low,
    high,
    dks,
    dvs,
    dq,
    BLOCK_M: gl.constexpr,
    MASKED: gl.constexpr,
):
    """The rows from ``row`` on, which are tile n, add to dK and dV of item m and to dQ."""
    BLOCK_N: gl.constexpr = low.shape[0]
    K_COLUMNS: gl.constexpr = k.COLUMNS
    V_COLUMNS: gl.constexpr = v.COLUMNS
    NEED_Q: gl.constexpr = exchange.NEED_Q
    NEED_K: gl.constexpr = exchange.NEED_K
    NEED_V: gl.constexpr = exchange.NEED_V
    SHARED: gl.constexpr = exchange.SHARED
    dtype: gl.constexpr = k.x0.dtype
    s_layout: gl.constexpr = low.type.layout.parent
    rows: gl.constexpr = gl.SliceLayout(0, s_layout)
    ks = all_tiles(k, m)
    qs = all_tiles(q.ring, n)
    dos = all_tiles(d.ring, n)
    q.ring.wait(n)
    if MASKED:
        d.ring.wait(n)
        if (row < item.seen_from) | (row + BLOCK_M > item.seen_to):
            r = row + gl.arange(0, BLOCK_M, gl.SliceLayout(1, rows_layout(gl.num_warps())))
            zero_rows(qs + dos, (r >= item.seen_from) & (r < item.seen_to))
    # [BLOCK_N, BLOCK_M]
    s = products(ks, qs, BLOCK_N, BLOCK_M)
    if not MASKED:
        d.ring.wait(n)
    if NEED_K or NEED_Q:
        dp = products(all_tiles(v, m), dos, BLOCK_N, BLOCK_M)
        s = warpgroup_mma_wait(V_COLUMNS, [s])
    else:
        s = warpgroup_mma_wait(0, [s])
    x = logits(s, scores.scale, scores.softcap, scores.SOFTCAP, scores.SCALED)
    position = item.len_k - item.len_q + row + gl.arange(0, BLOCK_M, rows)
    seen = (low[:, None] <= position[None, :]) & (position[None, :] < high[:, None])
    if MASKED:
        x = gl.where(seen, x, float("-inf"))
    p = gl.exp2(x * scores.factor - q.numbers_of(n, rows)[None, :])
    pending = ()
    if NEED_V:
        if SHARED:
            exchange.p.store(p.to(dtype))
            fence_async_shared()
            pending = add_products(dvs, exchange.p, dos)
        else:
            pending = add_products_in_registers(dvs, p.to(dtype), dos)
    if NEED_K or NEED_Q:
        dp = warpgroup_mma_wait(V_COLUMNS if NEED_V else 0, [dp])
        ds = p * (dp - d.numbers_of(n, rows)[None, :])
        if scores.SOFTCAP:
            ds = ds * cap_slope(x, scores.softcap)
        if MASKED:
            ds = gl.where(seen, ds, 0.0)
        ds = ds.to(dtype)
        if NEED_Q or SHARED:
            exchange.ds.store(ds)
            fence_async_shared()
        if NEED_Q:
            WIDTH: gl.constexpr = exchange.dq.shape[1]
            keys = ()
            for c in gl.static_range(K_COLUMNS):
                keys = keys + columns_of(ks[c], WIDTH)
            dqs = add_products(sums_like(keys, BLOCK_M), exchange.ds.permute((1, 0)), keys)
        more = ()
        if NEED_K:
            if SHARED:
                more = add_products(dks, exchange.ds, qs)
            else:
                more = add_products_in_registers(dks, ds, qs)
        if NEED_Q:
            PARTS: gl.constexpr = len(keys)
            done = finished(K_COLUMNS if NEED_K else 0, dqs + pending)
            add_to_dq(done[:PARTS], exchange, dq, line)
            pending = done[PARTS:]
        pending = pending + more
    if len(pending) > 0:
        pending = finished(0, pending)
    if NEED_V:
        dvs = pending[:V_COLUMNS]
    if NEED_K:
        AT: gl.constexpr = (V_COLUMNS if SHARED else 2 * V_COLUMNS) if NEED_V else 0
        dks = pending[AT : AT + K_COLUMNS]
    q.ring.release(n)
    d.ring.release(n)
    return dks, dvs


@gluon.jit
def zero_unseen(work, item, ks, low, high):
    """Keys of an item that no row sees become 0."""
    if work.some_unseen(item):
        first = item.len_k - item.len_q + item.seen_from
        last = item.len_k - item.len_q + item.seen_to - 1
        seen = (low <= last) & (high > gl.maximum(low, first))
        zero_rows(ks, gl.convert_layout(seen, gl.SliceLayout(1, rows_layout(gl.num_warps()))))


@gluon.jit
def consume(
    work,
    k,
    v,
    q,
    d,
    exchange,
    scores,
    dq,
    dk,
    dv,
    scale,
    lines,
    DIM: gl.constexpr,
    VALUE_DIM: gl.constexpr,
):
    """The consumer warpgroups."""
    BLOCK_N: gl.constexpr = work.BLOCK_N
    s_layout: gl.constexpr = accumulator(0, gl.num_warps(), BLOCK_N, work.BLOCK_M)
    n = 0
    m = 0
    p = gl.program_id(0)
    for first in range(0, work.items(), gl.num_programs(0)):
        if first + p < work.items():
            item = work.item(first + p)
            ks = all_tiles(k, m)
            dks = ()
            dvs = ()
            if exchange.NEED_K:
                dks = sums_like(ks, BLOCK_N)
            if exchange.NEED_V:
                dvs = sums_like(all_tiles(v, m), BLOCK_N)
            if item.end > item.begin:
                low, high = work.interval(item, gl.SliceLayout(1, s_layout))
                k.wait(m)
                if exchange.NEED_Q:
                    zero_unseen(work, item, ks, low, high)
                v.wait(m)
                for masked in gl.static_range(2):
                    for member in range(work.GROUP):
                        line = (item.head * work.GROUP + member) * lines + item.line
                        count, row = work.tiles(item, masked == 1)
                        for _ in range(count):
                            dks, dvs = step(
                                item,
                                m,
                                n,
                                row,
                                line + row,
                                k,
                                v,
                                q,
                                d,
                                exchange,
                                scores,
                                low,
                                high,
                                dks,
                                dvs,
                                dq,
                                work.BLOCK_M,
                                masked == 1,
                            )
                            row = work.next_row(item, row, masked == 1)
                            n = n + 1 & COUNT
                k.release(m)
                v.release(m)
                m += 1
            item = work.item(again(first) + p)
            at = work.outputs(item)
            count = item.len_k - item.first
            if exchange.NEED_K:
                store_columns(dk, dks, scale, at, count, work.KV_HEADS, DIM)
            if exchange.NEED_V:
                store_columns(dv, dvs, 1.0, at, count, work.KV_HEADS, VALUE_DIM)
        p = gl.num_programs(0) - 1 - p
    if exchange.NEED_Q:
        tma.store_wait(0)


@gluon.jit
def dkdv_kernel(
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
    lines,
    section,
    KV_HEADS: gl.constexpr,
    GROUP: gl.constexpr,
    DIM: gl.constexpr,
    VALUE_DIM: gl.constexpr,
    PACKED: gl.constexpr,
    LEFT: gl.constexpr,
    RIGHT: gl.constexpr,
    TREE: gl.constexpr,
    SOFTCAP: gl.constexpr,
    SCALED: gl.constexpr,
    BLOCK_M: gl.constexpr,
    BLOCK_N: gl.constexpr,
    K_COLUMNS: gl.constexpr,
    V_COLUMNS: gl.constexpr,
    Q_STAGES: gl.constexpr,
    D_STAGES: gl.constexpr,
    SHARED: gl.constexpr,
    PRODUCER_REGS: gl.constexpr,
):
    """Programs that stay, each with every ``num_programs``-th item; see ``backward_work``.

    ``shift`` and ``delta`` have a number, and ``dq`` has a row, for every line: head by head, tile
    of queries by tile, as ``find_tile`` counts them. ``lines`` are those of a head.
    """
    work = KeyWork(
        cu_q,
        cu_k,
        gl.to_tensor(stride_cuq),
        gl.to_tensor(stride_cuk),
        gl.to_tensor(batch),
        gl.to_tensor(query_len),
        gl.to_tensor(key_len),
        gl.to_tensor(left),
        gl.to_tensor(right),
        subtree_end,
        gl.to_tensor(stride_eb),
        gl.to_tensor(stride_el),
        gl.to_tensor(key_tiles),
        gl.to_tensor(section),
        PACKED,
        LEFT,
        RIGHT,
        TREE,
        KV_HEADS,
        GROUP,
        BLOCK_M,
        BLOCK_N,
    )
    dtype: gl.constexpr = k0.dtype
    k = make_ring(k0, k1, 1, K_COLUMNS, 1)
    v = make_ring(v0, v1, 1, V_COLUMNS, 1)
    q = Rows(make_ring(q0, q1, Q_STAGES, K_COLUMNS, 1), tiles(gl.float32, Q_STAGES, [BLOCK_M]))
    d = Rows(make_ring(d0, d1, D_STAGES, V_COLUMNS, 1), tiles(gl.float32, D_STAGES, [BLOCK_M]))
    NEED_Q: gl.constexpr = dq is not None
    p_tiles = q.numbers
    ds_tiles = q.numbers
    dq_tiles = q.numbers
    if NEED_Q or SHARED:
        ds_tiles = tiles(dtype, 1, [BLOCK_N, BLOCK_M])
    if SHARED:
        p_tiles = tiles(dtype, 1, [BLOCK_N, BLOCK_M])
    if NEED_Q:
        DQ_BLOCK: gl.constexpr = dq.block_type.shape
        dq_tiles = tiles(gl.float32, 1, DQ_BLOCK)
    exchange = Exchange(
        p_tiles.index(0),
        ds_tiles.index(0),
        dq_tiles.index(0),
        SHARED,
        NEED_Q,
        dk is not None,
        dv is not None,
    )
    scores = Scores(
        gl.to_tensor(factor), gl.to_tensor(scale), gl.to_tensor(softcap), SOFTCAP, SCALED
    )
    lines = gl.to_tensor(lines)
    scale = gl.to_tensor(scale)
    consumed = (work, k, v, q, d, exchange, scores, dq, dk, dv, scale, lines, DIM, VALUE_DIM)
    produced = (work, k, v, q, d, k0, k1, v0, v1, q0, q1, d0, d1, shift, delta, lines)
    gl.warp_specialize([(consume, consumed), (produce, produced)], [1], [PRODUCER_REGS])
