# ruff: noqa: RUF005
"""The producer of a Hopper decode kernel: query rows and tiles of the cache, into shared memory.

A stage of the ring holds ``BLOCK_N`` tokens: of each of ``HEADS`` cached heads a tile of keys, and
one of values unless the keys are the values (``TIED``), and one RoPE key for all of them. Tokens
that no query sees are 0 there.

Tuples grow by ``+``: the compiler knows no starred ones.
"""

from ridgeline.ops.common.gluon import (
    aggregate,
    async_copy,
    fence_async_shared,
    gl,
    gluon,
    mbarrier,
    tma,
)
from ridgeline.ops.common.hopper_prefetch import prefetch_tile


@aggregate
class Scales:
    """What an FP8 cache is to be multiplied by, float32.

    ``BLOCKS`` scales of a token and head, which are in the ring beside its tiles; -1 for one of all
    tokens of a head; 0 for none.
    """

    base: gl.tensor
    stride_p: gl.tensor
    stride_t: gl.tensor
    stride_h: gl.tensor
    stride_n: gl.tensor
    tiles: gl.shared_memory_descriptor  # [STAGES * HEADS * BLOCKS, BLOCK_N] if BLOCKS > 0
    BLOCKS: gl.constexpr
    WIDTH: gl.constexpr  # columns of a block

    @gluon.constexpr_function
    def __init__(self, base, stride_p, stride_t, stride_h, stride_n, tiles, BLOCKS, WIDTH):
        self.base = base
        self.stride_p = stride_p
        self.stride_t = stride_t
        self.stride_h = stride_h
        self.stride_n = stride_n
        self.tiles = tiles
        self.BLOCKS = gl.constexpr(BLOCKS)
        self.WIDTH = gl.constexpr(WIDTH)

    @gluon.jit
    def copy(self, tile, page, token, head, needed):
        """Those of a tile's tokens, 0 where not needed; ``tile`` counts those of the ring."""
        at = page.to(gl.int64) * self.stride_p + token.to(gl.int64) * self.stride_t
        at += head.to(gl.int64) * self.stride_h
        for j in gl.static_range(self.BLOCKS):
            x = gl.load(self.base + at + j * self.stride_n, mask=needed, other=0.0)
            self.tiles.index(tile * self.BLOCKS + j).store(x)

    @gluon.jit
    def of_head(self, head):
        return gl.load(self.base + head * self.stride_h)

    @gluon.jit
    def of_tokens(self, tile, j, layout: gl.constexpr):
        """Block j's, ``[BLOCK_N]``."""
        return self.tiles.index(tile * self.BLOCKS + j).load(layout)


@aggregate
class Ring:
    """The stages: ``full`` and ``empty`` barriers, and tiles of keys, RoPE keys and values."""

    k: gl.shared_memory_descriptor  # [STAGES * HEADS, 1, BLOCK_N, 1, K_WIDTH]
    r: gl.shared_memory_descriptor  # [STAGES, 1, BLOCK_N, R_WIDTH]
    v: gl.shared_memory_descriptor  # [STAGES * HEADS, 1, BLOCK_N, 1, V_WIDTH]; k if TIED
    k_scales: Scales
    v_scales: Scales
    full: gl.shared_memory_descriptor  # [STAGES, 1]
    empty: gl.shared_memory_descriptor
    STAGES: gl.constexpr
    HEADS: gl.constexpr
    BLOCK_N: gl.constexpr
    TIED: gl.constexpr
    HAS_ROPE: gl.constexpr
    TMA: gl.constexpr
    CP_ASYNC: gl.constexpr
    PREFETCH: gl.constexpr  # tiles ahead

    @gluon.constexpr_function
    def __init__(
        self,
        k,
        r,
        v,
        k_scales,
        v_scales,
        full,
        empty,
        STAGES,
        HEADS,
        BLOCK_N,
        TIED,
        HAS_ROPE,
        TMA,
        CP_ASYNC,
        PREFETCH,
    ):
        self.k = k
        self.r = r
        self.v = v
        self.k_scales = k_scales
        self.v_scales = v_scales
        self.full = full
        self.empty = empty
        self.STAGES = gl.constexpr(STAGES)
        self.HEADS = gl.constexpr(HEADS)
        self.BLOCK_N = gl.constexpr(BLOCK_N)
        self.TIED = gl.constexpr(TIED)
        self.HAS_ROPE = gl.constexpr(HAS_ROPE)
        self.TMA = gl.constexpr(TMA)
        self.CP_ASYNC = gl.constexpr(CP_ASYNC)
        self.PREFETCH = gl.constexpr(PREFETCH)

    @gluon.jit
    def wait_full(self, n):
        mbarrier.wait(self.full.index(n % self.STAGES), (n // self.STAGES) & 1)

    @gluon.jit
    def wait_empty(self, n):
        mbarrier.wait(self.empty.index(n % self.STAGES), ((n // self.STAGES) & 1) ^ 1)

    @gluon.jit
    def release(self, n):
        mbarrier.arrive(self.empty.index(n % self.STAGES))

    @gluon.jit
    def tile(self, n, h):
        """Which of the ring's tiles is head h of tile n."""
        return n % self.STAGES * self.HEADS + h

    @gluon.jit
    def keys(self, n, h):
        """``[BLOCK_N, K_WIDTH]`` of head h of tile n."""
        tile = self.k.index(self.tile(n, h))
        return tile.reshape([self.BLOCK_N, tile.shape[3]])

    @gluon.jit
    def values(self, n, h):
        tile = self.v.index(self.tile(n, h))
        return tile.reshape([self.BLOCK_N, tile.shape[3]])

    @gluon.jit
    def rope_keys(self, n):
        tile = self.r.index(n % self.STAGES)
        return tile.reshape([self.BLOCK_N, tile.shape[2]])


@aggregate
class Queries:
    """The query rows of an item in shared memory, ``STAGES`` items deep."""

    q: gl.shared_memory_descriptor  # [STAGES * HEADS, BLOCK_M, Q_WIDTH]
    r: gl.shared_memory_descriptor  # [STAGES * HEADS, BLOCK_M, R_WIDTH]
    full: gl.shared_memory_descriptor  # [STAGES, 1]
    empty: gl.shared_memory_descriptor
    STAGES: gl.constexpr
    HEADS: gl.constexpr
    BLOCK_M: gl.constexpr
    GROUP: gl.constexpr
    ROW_BLOCKS: gl.constexpr

    @gluon.constexpr_function
    def __init__(self, q, r, full, empty, STAGES, HEADS, BLOCK_M, GROUP, ROW_BLOCKS):
        self.q = q
        self.r = r
        self.full = full
        self.empty = empty
        self.STAGES = gl.constexpr(STAGES)
        self.HEADS = gl.constexpr(HEADS)
        self.BLOCK_M = gl.constexpr(BLOCK_M)
        self.GROUP = gl.constexpr(GROUP)
        self.ROW_BLOCKS = gl.constexpr(ROW_BLOCKS)

    @gluon.jit
    def wait_full(self, i):
        mbarrier.wait(self.full.index(i % self.STAGES), (i // self.STAGES) & 1)

    @gluon.jit
    def wait_empty(self, i):
        mbarrier.wait(self.empty.index(i % self.STAGES), ((i // self.STAGES) & 1) ^ 1)

    @gluon.jit
    def release(self, i):
        mbarrier.arrive(self.empty.index(i % self.STAGES))

    @gluon.jit
    def rows(self, item, layout: gl.constexpr):
        """Rows of an item within their head, ``[BLOCK_M]``."""
        return item % self.ROW_BLOCKS * self.BLOCK_M + gl.arange(0, self.BLOCK_M, layout)

    @gluon.jit
    def head(self, item, h):
        """The cached head that is head h of an item."""
        return item // self.ROW_BLOCKS * self.HEADS + h


@aggregate
class Source:
    """Rows of ``DIM`` elements: of queries (strides by sequence, token, head) or of a cache (by
    page, token, head). Strides are in units of ``UNIT`` elements, so that the compiler knows them
    to be multiples. ``RUN_TOKENS`` tokens are brought into L2 by one prefetch of ``RUN_BYTES``."""

    base: gl.tensor
    stride_0: gl.tensor
    stride_1: gl.tensor
    stride_2: gl.tensor
    DIM: gl.constexpr
    UNIT: gl.constexpr
    RUN_TOKENS: gl.constexpr
    RUN_BYTES: gl.constexpr

    @gluon.constexpr_function
    def __init__(self, base, stride_0, stride_1, stride_2, DIM, UNIT=1, RUN_TOKENS=1, RUN_BYTES=0):
        self.base = base
        self.stride_0 = stride_0
        self.stride_1 = stride_1
        self.stride_2 = stride_2
        self.DIM = gl.constexpr(DIM)
        self.UNIT = gl.constexpr(UNIT)
        self.RUN_TOKENS = gl.constexpr(RUN_TOKENS)
        self.RUN_BYTES = gl.constexpr(RUN_BYTES)

    @gluon.jit
    def at(self, i0, i1, i2):
        at = i0.to(gl.int64) * self.stride_0 + i1.to(gl.int64) * self.stride_1
        return self.base + (at + i2.to(gl.int64) * self.stride_2) * self.UNIT


@aggregate
class Pages:
    """The block table and the pages it may name."""

    table: gl.tensor
    stride_b: gl.tensor
    stride_p: gl.tensor
    num_pages: gl.tensor
    max_pages: gl.tensor
    PAGE_SIZE: gl.constexpr

    @gluon.constexpr_function
    def __init__(self, table, stride_b, stride_p, num_pages, max_pages, PAGE_SIZE):
        self.table = table
        self.stride_b = stride_b
        self.stride_p = stride_p
        self.num_pages = num_pages
        self.max_pages = max_pages
        self.PAGE_SIZE = gl.constexpr(PAGE_SIZE)

    @gluon.jit
    def of(self, b, n, needed):
        """Ids of the pages of tokens n of sequence b; ``num_pages`` where there is none."""
        i = n // self.PAGE_SIZE
        entry = self.table + b.to(gl.int64) * self.stride_b + i.to(gl.int64) * self.stride_p
        page = gl.load(entry, mask=needed & (i < self.max_pages), other=-1)
        return gl.where((page >= 0) & (page < self.num_pages), page, self.num_pages)


@gluon.constexpr_function
def columns_at_a_time(rows, width, bits):
    """Columns of ``rows`` that are in registers at a time: 64 bytes a thread, or 64 columns.

    The loads of one piece wait for the stores of the one before.
    """
    return min(width, max(64, (8 << 10) * 8 // (rows * bits)))


@gluon.constexpr_function
def row_layout(num_warps):
    """16 bytes a thread, eight threads along 128 bytes of a row."""
    return gl.BlockedLayout([1, 8], [4, 8], [num_warps, 1], [1, 0])


@gluon.jit
def load_queries(ring, queries, q, r, work, i, b, item):
    """The query rows of an item into stage i of ``queries``; rows past the last are 0.

    Where threads copy every tile, the fence of the item's first is one for the queries too.
    """
    queries.wait_empty(i)
    for h in gl.static_range(queries.HEADS):
        stage = i % queries.STAGES * queries.HEADS + h
        head = queries.head(item, h)
        load_rows(queries.q.index(stage), queries, q, work, b, item, head)
        if ring.HAS_ROPE:
            load_rows(queries.r.index(stage), queries, r, work, b, item, head)
    if ring.TMA:
        fence_async_shared()
    mbarrier.arrive(queries.full.index(i % queries.STAGES))


@gluon.jit
def load_rows(tile, queries, source, work, b, item, head):
    WIDTH: gl.constexpr = tile.shape[1]
    PIECE: gl.constexpr = columns_at_a_time(
        queries.BLOCK_M, WIDTH, source.base.dtype.element_ty.primitive_bitwidth
    )
    layout: gl.constexpr = row_layout(gl.num_warps())
    row = queries.rows(item, gl.SliceLayout(1, layout))
    pointers = source.at(b, row // queries.GROUP, head * queries.GROUP + row % queries.GROUP)
    real = row < work.query_len * queries.GROUP
    # [BLOCK_M, PIECE]
    for first in gl.static_range(0, WIDTH, PIECE):
        d = first + gl.arange(0, PIECE, gl.SliceLayout(0, layout))
        mask = real[:, None] & (d < source.DIM)[None, :]
        x = gl.load(pointers[:, None] + d[None, :], mask=mask, other=0.0)
        tile.slice(first, PIECE, 1).store(x)


@gluon.jit
def load_by_tma(work, ring, queries, pages, q, r, k, rope, v, k_desc, rope_desc, v_desc):
    """Producer: one copy of a whole page, or of a tile's part of one, by the tensor memory unit.

    A page that is not there is beyond the tensor's end, where the unit fills in zeros. Tiles in
    which some token is not seen are left to the threads: the unit knows no mask.
    """
    ROWS: gl.constexpr = min(pages.PAGE_SIZE, ring.BLOCK_N)
    BYTES: gl.constexpr = (
        ring.BLOCK_N
        // ROWS
        * (
            ring.HEADS * k_desc.block_type.nbytes
            + (rope_desc.block_type.nbytes if ring.HAS_ROPE else 0)
            + (0 if ring.TIED else ring.HEADS * v_desc.block_type.nbytes)
        )
    )
    t = work.t
    b = work.b
    base = work.base
    n = 0
    i = 0
    while t < work.stop:
        b, base, item, begin, end, first, length, _, _ = work.next(t, b, base)
        if queries.BLOCK_M >= 64:  # beside the state of the loop, so many rows are spilled
            load_queries(ring, queries, q, r, work, i, b, item)
        for tile in range(begin, end):
            if ring.PREFETCH > 0:
                stop = gl.minimum(length, end * ring.BLOCK_N)
                ahead = tile + ring.PREFETCH
                prefetch_tile(ring, queries, pages, k, rope, v, b, item, ahead, first, stop)
            stage = n % ring.STAGES
            full = ring.full.index(stage)
            if (tile * ring.BLOCK_N < first) | ((tile + 1) * ring.BLOCK_N > length):
                copy_tile(ring, queries, pages, k, rope, v, n, b, item, tile, first, length)
                async_copy.wait_group(0)
                fence_async_shared()
                mbarrier.arrive(full)
            else:
                ids = ()
                for j in gl.static_range(ring.BLOCK_N // ROWS):
                    ids = ids + (pages.of(b, tile * ring.BLOCK_N + j * ROWS, True),)
                ring.wait_empty(n)
                mbarrier.expect(full, BYTES)
                for j in gl.static_range(ring.BLOCK_N // ROWS):
                    at = (tile * ring.BLOCK_N + j * ROWS) % pages.PAGE_SIZE
                    for h in gl.static_range(ring.HEADS):
                        head = queries.head(item, h)
                        keys = ring.k.index(stage * ring.HEADS + h).slice(j * ROWS, ROWS, 1)
                        tma.async_copy_global_to_shared(k_desc, [ids[j], at, head, 0], full, keys)
                        if not ring.TIED:
                            values = ring.v.index(stage * ring.HEADS + h).slice(j * ROWS, ROWS, 1)
                            tma.async_copy_global_to_shared(
                                v_desc, [ids[j], at, head, 0], full, values
                            )
                    if ring.HAS_ROPE:
                        rotated = ring.r.index(stage).slice(j * ROWS, ROWS, 1)
                        tma.async_copy_global_to_shared(rope_desc, [ids[j], at, 0], full, rotated)
            if queries.BLOCK_M < 64 and tile == begin:  # the unit copies that tile meanwhile
                load_queries(ring, queries, q, r, work, i, b, item)
            n += 1
        i += 1
        t += end - begin


@gluon.jit
def load_by_threads(work, ring, queries, pages, q, r, k, rope, v):
    """Producer: each row from its own address, whatever the page size and strides.

    ``CP_ASYNC`` runs ``STAGES - 1`` tiles ahead of the tile that is handed over.
    """
    AHEAD: gl.constexpr = ring.STAGES - 1 if ring.CP_ASYNC else 0
    t = work.t
    b = work.b
    base = work.base
    n = 0
    sent = 0
    i = 0
    while t < work.stop:
        b, base, item, begin, end, first, length, _, _ = work.next(t, b, base)
        load_queries(ring, queries, q, r, work, i, b, item)
        for tile in range(begin, end):
            if ring.PREFETCH > 0:
                stop = gl.minimum(length, end * ring.BLOCK_N)
                ahead = tile + ring.PREFETCH
                prefetch_tile(ring, queries, pages, k, rope, v, b, item, ahead, first, stop)
            copy_tile(ring, queries, pages, k, rope, v, n, b, item, tile, first, length)
            n += 1
            if n - sent > AHEAD:
                if ring.CP_ASYNC:
                    async_copy.wait_group(AHEAD)
                fence_async_shared()
                mbarrier.arrive(ring.full.index(sent % ring.STAGES))
                sent += 1
        if AHEAD > 0:
            # The next item's queries wait for consumers, which wait for these tiles.
            async_copy.wait_group(0)
            fence_async_shared()
            while sent < n:
                mbarrier.arrive(ring.full.index(sent % ring.STAGES))
                sent += 1
        i += 1
        t += end - begin


@gluon.jit
def copy_tile(ring, queries, pages, k, rope, v, n, b, item, tile, first, length):
    """Begins to copy tile n of the program, the ``tile``-th of its sequence, by threads.

    Eight threads share a row, and with it its page id and address. Tokens that no row sees are 0:
    whatever the cache holds there, NaN too, would meet a probability of 0.
    """
    layout: gl.constexpr = gl.SliceLayout(1, row_layout(gl.num_warps()))
    token = tile * ring.BLOCK_N + gl.arange(0, ring.BLOCK_N, layout)
    needed = (token >= first) & (token < length)
    page = pages.of(b, token, needed)
    needed = needed & (page < pages.num_pages)
    token = token % pages.PAGE_SIZE
    ring.wait_empty(n)
    for h in gl.static_range(ring.HEADS):
        head = queries.head(item, h)
        copy_rows(ring, ring.keys(n, h), k, page, token, head, needed)
        ring.k_scales.copy(ring.tile(n, h), page, token, head, needed)
        if not ring.TIED:
            copy_rows(ring, ring.values(n, h), v, page, token, head, needed)
            ring.v_scales.copy(ring.tile(n, h), page, token, head, needed)
    if ring.HAS_ROPE:
        copy_rows(ring, ring.rope_keys(n), rope, page, token, item * 0, needed)
    if ring.CP_ASYNC:
        async_copy.commit_group()


@gluon.jit
def copy_rows(ring, tile, cache, page, token, head, needed):
    """Copies a row of a cache for each token into a tile; 0 beyond its end and where not needed."""
    rows = cache.at(page, token, head)
    WIDTH: gl.constexpr = tile.shape[1]
    PIECE: gl.constexpr = columns_at_a_time(
        ring.BLOCK_N, WIDTH, cache.base.dtype.element_ty.primitive_bitwidth
    )
    layout: gl.constexpr = row_layout(gl.num_warps())
    for start in gl.static_range(0, WIDTH, PIECE):
        d = start + gl.arange(0, PIECE, gl.SliceLayout(0, layout))
        mask = needed[:, None] & (d < cache.DIM)[None, :]
        # [BLOCK_N, PIECE]
        pointers = rows[:, None] + d[None, :]
        piece = tile.slice(start, PIECE, 1)
        if ring.CP_ASYNC:
            async_copy.async_copy_global_to_shared(piece, pointers, mask=mask)
        else:
            # e4m3 is exact in the queries' dtype.
            piece.store(gl.load(pointers, mask=mask, other=0.0).to(tile.dtype))


@gluon.jit
def produce(work, ring, queries, pages, q, r, k, rope, v, k_desc, rope_desc, v_desc):
    """The producer warpgroup."""
    if ring.TMA:
        load_by_tma(work, ring, queries, pages, q, r, k, rope, v, k_desc, rope_desc, v_desc)
    else:
        load_by_threads(work, ring, queries, pages, q, r, k, rope, v)
