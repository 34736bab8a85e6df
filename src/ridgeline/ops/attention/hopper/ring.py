"""Tiles in shared memory between a producer and consumers.

A dim that is no power of two may be two tiles of columns (``device.pieces``).
"""

from ridgeline.ops.common.gluon import aggregate, gl, gluon, mbarrier, tma
from ridgeline.ops.common.hopper import barriers, tiles


@aggregate
class Ring:
    """Stages of tiles of rows, each with a barrier for full and one for empty.

    Tile n, counted from the start of the program, is in stage ``n % STAGES``. ``TURNED``: tensors
    are ``[B, h, d, L]``, and rows of a tile are columns.
    """

    x0: gl.shared_memory_descriptor  # [STAGES, 1, rows, heads, width]; [STAGES, 1, 1, width, rows]
    x1: gl.shared_memory_descriptor  # x0 unless COLUMNS is 2
    full: gl.shared_memory_descriptor  # [STAGES + OWN, 1]
    empty: gl.shared_memory_descriptor  # [STAGES, 1]
    STAGES: gl.constexpr
    COLUMNS: gl.constexpr
    TURNED: gl.constexpr

    @gluon.constexpr_function
    def __init__(self, x0, x1, full, empty, STAGES, COLUMNS, TURNED):
        self.x0 = x0
        self.x1 = x1
        self.full = full
        self.empty = empty
        self.STAGES = gl.constexpr(STAGES)
        self.COLUMNS = gl.constexpr(COLUMNS)
        self.TURNED = gl.constexpr(TURNED)

    @gluon.jit
    def load(self, n, desc0, desc1, b, row, head, BESIDE: gl.constexpr = 0):
        """Producer: tile n from ``row`` and ``head`` on, once every consumer has released it.

        Its barrier awaits ``BESIDE`` bytes more, of what the caller copies beside it.
        """
        self.wait_empty(n)
        full = self.full.index(n % self.STAGES)
        self.expect(full, desc0, desc1, 1, BESIDE)
        self.copy(n, desc0, desc1, b, row, head, full, 0)

    @gluon.jit
    def wait_empty(self, n):
        """Producer: until every consumer has released what was in the stage of tile n."""
        mbarrier.wait(self.empty.index(n % self.STAGES), ((n // self.STAGES) & 1) ^ 1)

    @gluon.jit
    def expect(self, bar, desc0, desc1, BLOCKS: gl.constexpr, BESIDE: gl.constexpr = 0):
        """Producer: ``bar`` awaits so many blocks of the descriptors, and ``BESIDE`` bytes."""
        BYTES: gl.constexpr = desc0.block_type.nbytes + (
            desc1.block_type.nbytes if self.COLUMNS == 2 else 0
        )
        mbarrier.expect(bar, BLOCKS * BYTES + BESIDE)

    @gluon.jit
    def copy(self, n, desc0, desc1, b, row, head, bar, PART: gl.constexpr):
        """Producer: begins to copy a block of the descriptors, the ``PART``-th of tile n."""
        stage = n % self.STAGES
        self.copy_columns(desc0, b, row, head, 0, bar, self.x0.index(stage), PART)
        if self.COLUMNS == 2:
            FIRST: gl.constexpr = self.x0.shape[3 if self.TURNED else 4]
            self.copy_columns(desc1, b, row, head, FIRST, bar, self.x1.index(stage), PART)

    @gluon.jit
    def copy_columns(self, desc, b, row, head, column, bar, tile, PART: gl.constexpr):
        if self.TURNED:
            tma.async_copy_global_to_shared(desc, [b, head, column, row], bar, tile)
        else:
            ROWS: gl.constexpr = desc.block_type.shape[1]
            part = tile.slice(PART * ROWS, ROWS, 1)
            tma.async_copy_global_to_shared(desc, [b, row, head, column], bar, part)

    @gluon.jit
    def wait(self, n):
        """Consumer: until tile n is there."""
        mbarrier.wait(self.full.index(n % self.STAGES), (n // self.STAGES) & 1)

    @gluon.jit
    def release(self, n):
        """Consumer: its last read of tile n is over."""
        mbarrier.arrive(self.empty.index(n % self.STAGES))

    @gluon.jit
    def tile(self, n, COLUMN: gl.constexpr):
        """``[rows * heads, width]`` of tile n, its first or second columns; ``TURNED``,
        ``[width, rows]``."""
        x = self.x0.index(n % self.STAGES) if COLUMN == 0 else self.x1.index(n % self.STAGES)
        return x.reshape([x.shape[1] * x.shape[2], x.shape[3]])


@gluon.jit
def make_tiles(desc, STAGES: gl.constexpr, PARTS: gl.constexpr):
    BLOCK: gl.constexpr = desc.block_type.shape
    SHAPE: gl.constexpr = [BLOCK[0], BLOCK[1] * PARTS, BLOCK[2], BLOCK[3]]
    return tiles(desc.dtype, STAGES, SHAPE)


@gluon.jit
def make_ring(
    desc0,
    desc1,
    STAGES: gl.constexpr,
    COLUMNS: gl.constexpr,
    CONSUMERS: gl.constexpr,
    TURNED: gl.constexpr = False,
    PARTS: gl.constexpr = 1,
    OWN: gl.constexpr = 0,
):
    """A ring of tiles, each ``PARTS`` blocks of descriptors, which ``CONSUMERS`` partitions read.

    ``OWN``: barriers for full beyond those of the stages, which only the producer awaits.
    """
    x0 = make_tiles(desc0, STAGES, PARTS)
    x1 = x0
    if COLUMNS == 2:
        x1 = make_tiles(desc1, STAGES, PARTS)
    full = barriers(STAGES + OWN, 1)
    empty = barriers(STAGES, CONSUMERS)
    return Ring(x0, x1, full, empty, STAGES, COLUMNS, TURNED)
