"""Which tiles of keys a program of the backward computes, and over which query rows each goes.

An item is a tile of keys of a kv head. Items are in sections of heads whose queries' data fit L2
together; within one, from tile to tile of ``tiles.find_tile``, the heads side by side. Under causal
a sequence's first tile is its longest. Programs take turns as in ``work``.
"""

from ridgeline.ops.attention.hopper.backward_products import again
from ridgeline.ops.attention.hopper.work import find_block, tile_and_entity
from ridgeline.ops.attention.tiles import (
    FAR,
    find_sequence,
    first_tile,
    head_offset,
    key_interval,
    output_rows,
    tiles_between,
)
from ridgeline.ops.common.gluon import aggregate, gl, gluon


@aggregate
class KeyItem:
    """Keys from ``first`` on of sequence b, and ``[begin, end)``, whole tiles of rows that see one.

    In ``[full_begin, full_end)`` every row sees every key. ``line``: of the sequence's first row,
    as in ``backward_rows``.
    """

    b: gl.tensor
    head: gl.tensor
    first: gl.tensor
    start_k: gl.tensor
    len_k: gl.tensor
    start_q: gl.tensor
    len_q: gl.tensor
    line: gl.tensor
    begin: gl.tensor
    full_begin: gl.tensor
    full_end: gl.tensor
    end: gl.tensor
    seen_from: gl.tensor  # rows [seen_from, seen_to) see one of the keys
    seen_to: gl.tensor

    @gluon.constexpr_function
    def __init__(
        self,
        b,
        head,
        first,
        start_k,
        len_k,
        start_q,
        len_q,
        line,
        begin,
        full_begin,
        full_end,
        end,
        seen_from,
        seen_to,
    ):
        self.b = b
        self.head = head
        self.first = first
        self.start_k = start_k
        self.len_k = len_k
        self.start_q = start_q
        self.len_q = len_q
        self.line = line
        self.begin = begin
        self.full_begin = full_begin
        self.full_end = full_end
        self.end = end
        self.seen_from = seen_from
        self.seen_to = seen_to


@aggregate
class KeyWork:
    """Items of a launch; numbers as in ``tiles.Problem``."""

    cu_q: gl.tensor
    cu_k: gl.tensor
    stride_cuq: gl.tensor
    stride_cuk: gl.tensor
    batch: gl.tensor
    query_len: gl.tensor
    key_len: gl.tensor
    left: gl.tensor
    right: gl.tensor
    ends: gl.tensor
    stride_eb: gl.tensor
    stride_el: gl.tensor
    key_tiles: gl.tensor
    section: gl.tensor  # heads side by side
    PACKED: gl.constexpr
    LEFT: gl.constexpr
    RIGHT: gl.constexpr
    TREE: gl.constexpr
    KV_HEADS: gl.constexpr
    GROUP: gl.constexpr
    BLOCK_M: gl.constexpr
    BLOCK_N: gl.constexpr

    @gluon.constexpr_function
    def __init__(
        self,
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
        stride_eb,
        stride_el,
        key_tiles,
        section,
        PACKED,
        LEFT,
        RIGHT,
        TREE,
        KV_HEADS,
        GROUP,
        BLOCK_M,
        BLOCK_N,
    ):
        self.cu_q = cu_q
        self.cu_k = cu_k
        self.stride_cuq = stride_cuq
        self.stride_cuk = stride_cuk
        self.batch = batch
        self.query_len = query_len
        self.key_len = key_len
        self.left = left
        self.right = right
        self.ends = ends
        self.stride_eb = stride_eb
        self.stride_el = stride_el
        self.key_tiles = key_tiles
        self.section = section
        self.PACKED = gl.constexpr(PACKED)
        self.LEFT = gl.constexpr(LEFT)
        self.RIGHT = gl.constexpr(RIGHT)
        self.TREE = gl.constexpr(TREE)
        self.KV_HEADS = gl.constexpr(KV_HEADS)
        self.GROUP = gl.constexpr(GROUP)
        self.BLOCK_M = gl.constexpr(BLOCK_M)
        self.BLOCK_N = gl.constexpr(BLOCK_N)

    @gluon.jit
    def items(self):
        return self.key_tiles * self.KV_HEADS

    @gluon.jit
    def item(self, t):
        tile, head = tile_and_entity(t, again(self.key_tiles), self.KV_HEADS, again(self.section))
        b, block = find_block(
            tile,
            self.cu_k,
            self.stride_cuk,
            self.batch,
            again(self.key_len),
            1,
            self.BLOCK_N,
            self.PACKED,
        )
        start_q, len_q = find_sequence(
            b, self.cu_q, self.stride_cuq, again(self.query_len), self.PACKED
        )
        start_k, len_k = find_sequence(
            b, self.cu_k, self.stride_cuk, again(self.key_len), self.PACKED
        )
        first = block * self.BLOCK_N
        last = gl.minimum(first + self.BLOCK_N, len_k) - 1
        # Intervals grow from key to key.
        low, full_high = self.interval_of(first, b, start_k, len_k, False)
        full_low, high = self.interval_of(last, b, start_k, len_k, False)
        if self.TREE:
            layout: gl.constexpr = gl.BlockedLayout([1], [32], [gl.num_warps()], [0])
            n = first + gl.arange(0, self.BLOCK_N, layout)
            _, stop = self.interval_of(n, b, start_k, len_k, True)
            full_high = gl.min(gl.where(n < len_k, stop, FAR), 0)
            high = gl.max(gl.where(n < len_k, stop, 0), 0)
        seen_from, _, _, seen_to = tiles_between(low, full_low, full_high, high, len_q, len_k, 1, 1)
        begin, full_begin, full_end, end = tiles_between(
            low, full_low, full_high, high, len_q, len_k, 1, self.BLOCK_M
        )
        # Keys past the end are seen by none; a tile of packed sequences may have no others.
        full_end = gl.where(first + self.BLOCK_N > len_k, full_begin, full_end)
        end = gl.where(first >= len_k, begin, end)
        full_begin = gl.minimum(full_begin, end)
        full_end = gl.minimum(full_end, end)
        line = first_tile(b, start_q, again(self.query_len), self.BLOCK_M, self.PACKED)
        return KeyItem(
            b,
            head,
            first,
            start_k,
            len_k,
            start_q,
            len_q,
            line.to(gl.int32) * self.BLOCK_M,
            begin * self.BLOCK_M,
            full_begin * self.BLOCK_M,
            full_end * self.BLOCK_M,
            end * self.BLOCK_M,
            seen_from,
            seen_to,
        )

    @gluon.jit
    def interval_of(self, n, b, start_k, len_k, TREE: gl.constexpr):
        ends = self.ends
        if TREE:
            ends += head_offset(b, start_k, 0, self.stride_eb, self.stride_el, 0)
        return key_interval(
            n,
            len_k,
            ends,
            self.stride_el,
            self.left,
            self.right,
            self.LEFT,
            self.RIGHT,
            TREE,
        )

    @gluon.jit
    def interval(self, item, layout: gl.constexpr):
        """``[low, high)``, the positions that see each of an item's keys, ``[BLOCK_N]``."""
        n = item.first + gl.arange(0, self.BLOCK_N, layout)
        return self.interval_of(n, item.b, item.start_k, item.len_k, self.TREE)

    @gluon.jit
    def some_unseen(self, item):
        """Whether no row may see some of an item's keys: without a window or a tree, past the end
        alone."""
        found = item.first + self.BLOCK_N > item.len_k
        if self.LEFT or self.TREE:
            found = item.end > item.begin
        return found

    @gluon.jit
    def tiles(self, item, MASKED: gl.constexpr):
        """How many tiles of rows have a row that does not see all keys, or have none, and the first
        row of the first of them."""
        whole = item.full_end - item.full_begin
        if MASKED:
            count = item.end - item.begin - whole
            row = gl.where(item.begin == item.full_begin, item.full_end, item.begin)
        else:
            count = whole
            row = item.full_begin
        return count // self.BLOCK_M, row

    @gluon.jit
    def next_row(self, item, row, MASKED: gl.constexpr):
        """The first row of the tile after that from ``row`` on."""
        row += self.BLOCK_M
        if MASKED:
            row = gl.where(row == item.full_begin, item.full_end, row)
        return row

    @gluon.jit
    def outputs(self, item):
        """Where an item's keys are in a contiguous ``[..., KV_HEADS]``."""
        return output_rows(
            item.first,
            item.b,
            item.start_k,
            item.head,
            self.key_len,
            self.KV_HEADS,
            1,
            self.PACKED,
        )
