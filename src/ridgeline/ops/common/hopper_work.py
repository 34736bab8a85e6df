"""What every warp role of a Hopper decode kernel knows: the runs of tiles, rows and masks.

Rows of an item: row r of a cached head is query head ``r % GROUP`` of the group and query token
``r // GROUP``. An item holds ``BLOCK_M`` rows of each of ``HEADS`` cached heads.
"""

from ridgeline.ops.common.gluon import aggregate, gl, gluon
from ridgeline.ops.common.triton import natural_lse, tile_range
from ridgeline.ops.common.triton_splits import chunk_of, next_work
from ridgeline.ops.common.triton_splits import first_work as first_work_of_item

SEQUENCES = gl.constexpr(32)  # whose lengths are read at a time


@aggregate
class Work:
    """The tiles ``t : stop`` of a program and where they begin; fields as in ``triton_splits``."""

    cache_seqlens: gl.tensor
    stride_length: gl.tensor
    items: gl.tensor  # of a sequence
    query_len: gl.tensor
    window_left: gl.tensor
    launched: gl.tensor
    t: gl.tensor
    stop: gl.tensor
    b: gl.tensor
    base: gl.tensor
    BALANCED: gl.constexpr
    BLOCK_N: gl.constexpr

    @gluon.constexpr_function
    def __init__(
        self,
        cache_seqlens,
        stride_length,
        items,
        query_len,
        window_left,
        launched,
        t,
        stop,
        b,
        base,
        BALANCED,
        BLOCK_N,
    ):
        self.cache_seqlens = cache_seqlens
        self.stride_length = stride_length
        self.items = items
        self.query_len = query_len
        self.window_left = window_left
        self.launched = launched
        self.t = t
        self.stop = stop
        self.b = b
        self.base = base
        self.BALANCED = gl.constexpr(BALANCED)
        self.BLOCK_N = gl.constexpr(BLOCK_N)

    @gluon.jit
    def next(self, t, b, base):
        """The run of tiles at t, as ``triton_splits.next_work``; tiles count from token 0."""
        b, base, item, begin, end, length, slot, whole = next_work(
            t,
            self.stop,
            b,
            base,
            self.cache_seqlens,
            self.stride_length,
            self.items,
            self.query_len,
            self.window_left,
            self.launched,
            self.BALANCED,
            self.BLOCK_N,
        )
        first, tile, _ = tile_range(length, self.query_len, self.window_left, self.BLOCK_N)
        return b, base, item, tile + begin, tile + end, first, length, slot, whole


@gluon.jit
def tiles_of(work_lengths, stride_length, batch, start, query_len, window_left, BLOCK_N):
    """Tiles of one item of ``SEQUENCES`` sequences from ``start`` on, summed."""
    b = start + gl.arange(0, SEQUENCES, gl.BlockedLayout([1], [32], [gl.num_warps()], [0]))
    pointers = work_lengths + b.to(gl.int64) * stride_length
    _, _, count = tile_range(
        gl.load(pointers, mask=b < batch, other=0), query_len, window_left, BLOCK_N
    )
    return gl.sum(gl.where(b < batch, count, 0), 0)


@gluon.jit
def first_work(
    cache_seqlens,
    stride_length,
    batch,
    items,
    query_len,
    window_left,
    launched,
    BALANCED: gl.constexpr,
    BLOCK_N: gl.constexpr,
    MIN_TILES: gl.constexpr,
):
    """What a program computes, as ``triton_splits.first_work``.

    Balanced, b is a sequence at most ``SEQUENCES`` before the one of t: ``Work.next`` walks on.
    """
    if BALANCED:
        total = 0
        for i in range(0, batch, SEQUENCES):
            total += tiles_of(
                cache_seqlens, stride_length, batch, i, query_len, window_left, BLOCK_N
            )
        chunk = chunk_of(total * items, launched, MIN_TILES)
        t = gl.program_id(0) * chunk
        stop = gl.minimum(t + chunk, total * items)
        b = 0
        base = 0
        passed = 0
        for i in range(0, batch, SEQUENCES):
            passed += tiles_of(
                cache_seqlens, stride_length, batch, i, query_len, window_left, BLOCK_N
            )
            behind = (passed * items <= t) & (i + SEQUENCES < batch)
            b = gl.where(behind, i + SEQUENCES, b)
            base = gl.where(behind, passed, base)
    else:
        t, stop, b, base = first_work_of_item(
            cache_seqlens,
            stride_length,
            batch,
            items,
            query_len,
            window_left,
            launched,
            False,
            BLOCK_N,
            SEQUENCES,
            MIN_TILES,
        )
    return Work(
        cache_seqlens,
        gl.to_tensor(stride_length),
        gl.to_tensor(items),
        gl.to_tensor(query_len),
        gl.to_tensor(window_left),
        gl.to_tensor(launched),
        t,
        stop,
        b,
        base,
        BALANCED,
        BLOCK_N,
    )


@gluon.jit
def visible(n, position, first, length, left, right, CAUSAL: gl.constexpr, WINDOW: gl.constexpr):
    """Which rows at ``position`` see which tokens ``n``, shapes that broadcast to a tile."""
    distance = n - position
    seen = (n >= first) & (n < length) & (position == position)
    if CAUSAL:
        seen = seen & (distance <= 0)
    if WINDOW:
        seen = seen & ((left < 0) | (-distance <= left)) & ((right < 0) | (distance <= right))
    return seen


@gluon.jit
def store_rows(
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
    query_len,
    results,
    AXIS: gl.constexpr,
    SUMS: gl.constexpr,
):
    """The rows of one head of an item: the result if ``whole``, else a part in the workspace.

    ``o`` has the rows along ``AXIS`` and the columns ``d`` along the other; ``row`` counts within
    the head ``head``, which is head h of the item. ``SUMS``: with their maximum and sum.
    """
    GROUP: gl.constexpr = results.GROUP
    VALUE_DIM: gl.constexpr = results.VALUE_DIM
    real = row < query_len * GROUP
    mask = gl.expand_dims(real, 1 - AXIS) & gl.expand_dims(d < VALUE_DIM, AXIS)
    token = row // GROUP
    if whole:
        at = (b.to(gl.int64) * query_len + token) * results.Q_HEADS + head * GROUP + row % GROUP
        total = gl.where(l == 0.0, 1.0, l)
        x = (o / gl.expand_dims(total, 1 - AXIS)).to(results.out.dtype.element_ty)
        pointers = gl.expand_dims(at * VALUE_DIM, 1 - AXIS) + gl.expand_dims(d, AXIS)
        gl.store(results.out + pointers, x, mask=mask)
        if SUMS:
            gl.store(results.lse + at, natural_lse(m, l), mask=real)
    else:
        i = token * (results.HEADS * GROUP) + h * GROUP + row % GROUP
        i = i % results.PART_M
        sums = results.partial_sums + slot * (2 * results.PART_M) + i
        if SUMS:
            gl.store(sums, m, mask=real)
            gl.store(sums + results.PART_M, l, mask=real)
        at = (slot * results.PART_M + i) * results.WIDTH
        pointers = gl.expand_dims(at, 1 - AXIS) + gl.expand_dims(d, AXIS)
        gl.store(results.partial_out + pointers, o, mask=mask)


@aggregate
class Results:
    """Where an item goes: ``out``, ``lse``, or a slot of ``PART_M`` rows of the workspace."""

    out: gl.tensor
    lse: gl.tensor
    partial_out: gl.tensor
    partial_sums: gl.tensor
    Q_HEADS: gl.constexpr
    GROUP: gl.constexpr
    HEADS: gl.constexpr
    VALUE_DIM: gl.constexpr
    PART_M: gl.constexpr
    WIDTH: gl.constexpr

    @gluon.constexpr_function
    def __init__(
        self,
        out,
        lse,
        partial_out,
        partial_sums,
        Q_HEADS,
        GROUP,
        HEADS,
        VALUE_DIM,
        PART_M,
        WIDTH,
    ):
        self.out = out
        self.lse = lse
        self.partial_out = partial_out
        self.partial_sums = partial_sums
        self.Q_HEADS = gl.constexpr(Q_HEADS)
        self.GROUP = gl.constexpr(GROUP)
        self.HEADS = gl.constexpr(HEADS)
        self.VALUE_DIM = gl.constexpr(VALUE_DIM)
        self.PART_M = gl.constexpr(PART_M)
        self.WIDTH = gl.constexpr(WIDTH)
