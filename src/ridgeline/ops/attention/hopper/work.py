"""Which tiles of query rows a program computes, and over which tiles of keys each of them goes.

An item is a tile of rows of ``PACK`` query heads that share a kv head. Items are in sections of
heads whose keys and values fit L2 together; within one, from tile to tile of ``tiles.find_rows``,
the heads side by side. Under causal a sequence's first tile is its longest. Programs take turns,
every other round backwards, so that no program has the longer item of each round.
"""

from ridgeline.ops.attention.tiles import find_sequence, key_interval, key_range
from ridgeline.ops.common.gluon import aggregate, gl, gluon

SEQUENCES = gl.constexpr(128)  # whose starts are read at a time


@gluon.jit
def find_block(
    t,
    cu_seqlens,
    stride_cu,
    batch,
    length,
    ROWS: gl.constexpr,
    BLOCK: gl.constexpr,
    PACKED: gl.constexpr,
):
    """Sequence and block of tile t, as ``tiles.find_tile``."""
    if PACKED:
        layout: gl.constexpr = gl.BlockedLayout([1], [32], [gl.num_warps()], [0])
        b = -1
        for i in range(0, batch, SEQUENCES):
            s = i + gl.arange(0, SEQUENCES, layout)
            pointers = cu_seqlens + s.to(gl.int64) * stride_cu
            start = gl.load(pointers, mask=s < batch, other=0)
            start = start.to(gl.int64) * ROWS // BLOCK + s
            b += gl.sum(((s < batch) & (start <= t)).to(gl.int32), 0)
        start = gl.load(cu_seqlens + b.to(gl.int64) * stride_cu).to(gl.int64)
        block = (t - (start * ROWS // BLOCK + b)).to(gl.int32)
    else:
        blocks = gl.cdiv(length * ROWS, BLOCK)
        b = t // blocks
        block = t % blocks
    return b, block


@gluon.jit
def tile_and_entity(t, tiles, entities, section):
    """Of item t: ``section`` entities side by side go from tile to tile together."""
    size = section * tiles
    s = t // size
    t -= s * size
    here = gl.minimum(section, entities - s * section)
    return t // here, s * section + t % here


@aggregate
class Item:
    """Rows from ``begin`` on (none if negative) of sequence b, and what they see.

    Tiles of keys are counted in the order in which they are taken: ``masked`` that some row does
    not see whole, then the others.
    """

    b: gl.tensor
    begin: gl.tensor
    entity: gl.tensor  # of PACK query heads
    start_q: gl.tensor
    len_q: gl.tensor
    start_k: gl.tensor
    len_k: gl.tensor
    masked: gl.tensor
    count: gl.tensor
    first: gl.tensor  # tile that the first is
    jump: gl.tensor  # after so many of the masked follow those that are seen whole
    row_list: gl.tensor

    @gluon.constexpr_function
    def __init__(
        self,
        b,
        begin,
        entity,
        start_q,
        len_q,
        start_k,
        len_k,
        masked,
        count,
        first,
        jump,
        row_list,
    ):
        self.b = b
        self.begin = begin
        self.entity = entity
        self.start_q = start_q
        self.len_q = len_q
        self.start_k = start_k
        self.len_k = len_k
        self.masked = masked
        self.count = count
        self.first = first
        self.jump = jump
        self.row_list = row_list


@aggregate
class Work:
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
    lists: gl.tensor
    capacity: gl.tensor
    stride_eb: gl.tensor
    stride_el: gl.tensor
    band: gl.tensor
    row_tiles: gl.tensor
    entities: gl.tensor
    section: gl.tensor  # entities side by side
    items: gl.tensor  # all of them: a number that every partition would compute, and keep
    PACKED: gl.constexpr
    PAGED: gl.constexpr  # ``cu_k`` has each sequence's number of keys, ``key_len`` the most
    LEFT: gl.constexpr
    RIGHT: gl.constexpr
    TREE: gl.constexpr
    PACK: gl.constexpr
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
        lists,
        capacity,
        stride_eb,
        stride_el,
        band,
        row_tiles,
        entities,
        section,
        items,
        PACKED,
        PAGED,
        LEFT,
        RIGHT,
        TREE,
        PACK,
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
        self.lists = lists
        self.capacity = capacity
        self.stride_eb = stride_eb
        self.stride_el = stride_el
        self.band = band
        self.row_tiles = row_tiles
        self.entities = entities
        self.section = section
        self.items = items
        self.PACKED = gl.constexpr(PACKED)
        self.PAGED = gl.constexpr(PAGED)
        self.LEFT = gl.constexpr(LEFT)
        self.RIGHT = gl.constexpr(RIGHT)
        self.TREE = gl.constexpr(TREE)
        self.PACK = gl.constexpr(PACK)
        self.GROUP = gl.constexpr(GROUP)
        self.BLOCK_M = gl.constexpr(BLOCK_M)
        self.BLOCK_N = gl.constexpr(BLOCK_N)

    @gluon.jit
    def rounds(self):
        """In how many a program takes at most one item each."""
        return gl.cdiv(self.items, gl.num_programs(0))

    @gluon.jit
    def nth(self, i):
        """The program's item of round i, -1 if there is none."""
        programs = gl.num_programs(0)
        p = gl.program_id(0)
        t = i * programs + gl.where(i % 2 == 0, p, programs - 1 - p)
        return gl.where(t < self.items, t, -1)

    @gluon.jit
    def item(self, t):
        tile, entity = tile_and_entity(t, self.row_tiles, self.entities, self.section)
        b, block = self.find(self.band + tile)
        start_q, len_q = find_sequence(b, self.cu_q, self.stride_cuq, self.query_len, self.PACKED)
        start_k, len_k = find_sequence(b, self.cu_k, self.stride_cuk, self.key_len, self.PACKED)
        if self.PAGED:
            found = gl.load(self.cu_k + b.to(gl.int64) * self.stride_cuk)
            len_k = gl.minimum(gl.maximum(found, 0), self.key_len)
        begin = (gl.cdiv(len_q * self.PACK, self.BLOCK_M) - 1 - block) * self.BLOCK_M
        first = len_k - len_q + begin // self.PACK
        last = gl.minimum(len_k - len_q + (begin + self.BLOCK_M - 1) // self.PACK, len_k - 1)
        row_list = self.lists
        if self.TREE:
            row_list += tile.to(gl.int64) * (self.capacity + 2)
            masked = gl.load(row_list)
            count = masked + gl.load(row_list + 1)
            first_tile = masked * 0
            jump = masked * 0
        else:
            first_tile, full_begin, full_end, end = key_range(
                first, last, len_k, self.left, self.right, self.LEFT, self.RIGHT, self.BLOCK_N
            )
            count = end - first_tile
            masked = count - (full_end - full_begin)
            jump = full_begin - first_tile
        return Item(
            b,
            begin,
            entity,
            start_q,
            len_q,
            start_k,
            len_k,
            gl.to_tensor(masked),
            gl.to_tensor(count),
            gl.to_tensor(first_tile),
            gl.to_tensor(jump),
            row_list,
        )

    @gluon.jit
    def find(self, t):
        """Sequence and block of tile t."""
        return find_block(
            t,
            self.cu_q,
            self.stride_cuq,
            self.batch,
            self.query_len,
            self.PACK,
            self.BLOCK_M,
            self.PACKED,
        )

    @gluon.jit
    def tile(self, item, j):
        """The tile of keys that an item's j-th is; lists as in ``tiles.loop_over``."""
        whole = item.count - item.masked
        if self.TREE:
            back = self.capacity + 1 - (j - item.masked)
            found = gl.load(item.row_list + gl.where(j < item.masked, 2 + j, back))
        else:
            masked = j + gl.where(j < item.jump, 0, whole)
            found = item.first + gl.where(j < item.masked, masked, item.jump + j - item.masked)
        return found

    @gluon.jit
    def interval(self, item, j, layout: gl.constexpr):
        """``[low, high)``, the positions that see each key of the j-th tile, ``[BLOCK_N]``."""
        n = self.tile(item, j) * self.BLOCK_N + gl.arange(0, self.BLOCK_N, layout)
        ends = self.ends
        if self.TREE:
            ends += item.b.to(gl.int64) * self.stride_eb + item.start_k * self.stride_el
        return key_interval(
            n,
            item.len_k,
            ends,
            self.stride_el,
            self.left,
            self.right,
            self.LEFT,
            self.RIGHT,
            self.TREE,
        )

    @gluon.jit
    def seen(self, item, j, position, layout: gl.constexpr):
        """``[rows, BLOCK_N]``: which rows at ``position`` see which keys of the j-th tile."""
        low, high = self.interval(item, j, gl.SliceLayout(0, layout))
        return (low[None, :] <= position[:, None]) & (position[:, None] < high[None, :])

    @gluon.jit
    def first_seen(self, item):
        """The first key of an item's sequence that a window leaves to any of its queries."""
        first = 0
        if self.LEFT:
            first = gl.maximum(item.len_k - item.len_q - self.left, 0)
        return first

    @gluon.jit
    def kv_head(self, item):
        return item.entity * self.PACK // self.GROUP


@gluon.jit
def make_work(
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
    entities,
    section,
    items,
    PACKED: gl.constexpr,
    LEFT: gl.constexpr,
    RIGHT: gl.constexpr,
    TREE: gl.constexpr,
    PACK: gl.constexpr,
    GROUP: gl.constexpr,
    BLOCK_M: gl.constexpr,
    BLOCK_N: gl.constexpr,
    PAGED: gl.constexpr = False,
):
    """The work of a launch, from numbers as a kernel has them."""
    return Work(
        cu_q,
        cu_k,
        gl.to_tensor(stride_cuq),
        gl.to_tensor(stride_cuk),
        gl.to_tensor(batch),
        gl.to_tensor(query_len),
        gl.to_tensor(key_len),
        gl.to_tensor(left),
        gl.to_tensor(right),
        ends,
        lists,
        gl.to_tensor(capacity),
        gl.to_tensor(stride_eb),
        gl.to_tensor(stride_el),
        gl.to_tensor(band),
        gl.to_tensor(row_tiles),
        gl.to_tensor(entities),
        gl.to_tensor(section),
        gl.to_tensor(items),
        PACKED,
        PAGED,
        LEFT,
        RIGHT,
        TREE,
        PACK,
        GROUP,
        BLOCK_M,
        BLOCK_N,
    )
