# ruff: noqa: RUF005
"""Tiles of keys and of values out of pages, as the producer of the forward kernel loads them.

The part of a page that a tile has is one copy of the tensor memory unit. A part with no token that
a query sees is neither looked up nor read: its copy is from behind the cache's end, zeros. Beside
tokens that are seen a page may hold anything. Scores of such keys are masked; values would meet a
probability of 0, which does not silence a NaN: they become 0 before consumers have the tile.
"""

from ridgeline.ops.common.gluon import fence_async_shared, gl, gluon, mbarrier

AHEAD = gl.constexpr(2)  # pages that are looked up before the first of them is copied
GROUP = gl.constexpr(8)  # rows that are changed at a time, 64 columns of them
LAYOUT = gl.constexpr(gl.BlockedLayout([1, 8], [4, 8], [1, 1], [1, 0]))  # of one warp


@gluon.jit
def load_pages(ring, n, desc0, desc1, work, pages, item, tile, head):
    """Tile n of the ring: the ``tile``-th of an item's sequence."""
    ring.wait_empty(n)
    full = ring.full.index(n % ring.STAGES)
    copy_pages(ring, n, desc0, desc1, work, pages, item, tile, head, full)


@gluon.jit
def load_pages_of_values(ring, n, desc0, desc1, work, pages, item, tile, head, changed):
    """As ``load_pages``; values that no query sees are 0.

    Returns how many tiles of the program's were ``changed`` for that, with this one.
    """
    stage = n % ring.STAGES
    low = work.first_seen(item) - tile * work.BLOCK_N
    high = item.len_k - tile * work.BLOCK_N
    cut = (low > 0) | (high < work.BLOCK_N)
    ring.wait_empty(n)
    own = ring.full.index(ring.STAGES)
    full = ring.full.index(gl.where(cut, ring.STAGES, stage))
    copy_pages(ring, n, desc0, desc1, work, pages, item, tile, head, full)
    if cut:
        mbarrier.wait(own, changed & 1)
        zero_outside(ring.x0, stage, low, high)
        if ring.COLUMNS == 2:
            zero_outside(ring.x1, stage, low, high)
        fence_async_shared()
        mbarrier.arrive(ring.full.index(stage))
        changed += 1
    return changed


@gluon.jit
def copy_pages(ring, n, desc0, desc1, work, pages, item, tile, head, full):
    ROWS: gl.constexpr = desc0.block_type.shape[1]
    PARTS: gl.constexpr = work.BLOCK_N // ROWS
    AT_ONCE: gl.constexpr = min(PARTS, AHEAD)
    first = work.first_seen(item)
    ring.expect(full, desc0, desc1, PARTS)
    for j in gl.static_range(0, PARTS, AT_ONCE):
        ids = ()
        for i in gl.static_range(AT_ONCE):
            token = tile * work.BLOCK_N + (j + i) * ROWS
            needed = (token + ROWS > first) & (token < item.len_k)
            ids = ids + (pages.of(item.b, token, needed),)
        for i in gl.static_range(AT_ONCE):
            row = (tile * work.BLOCK_N + (j + i) * ROWS) % pages.PAGE_SIZE
            ring.copy(n, desc0, desc1, ids[i], row, head, full, j + i)


@gluon.jit
def zero_outside(x, stage, low, high):
    """Rows of a tile of ``x [STAGES, 1, rows, 1, width]`` that are not in [low, high) become 0."""
    ROWS: gl.constexpr = x.shape[2]
    WIDTH: gl.constexpr = x.shape[4]
    COLUMNS: gl.constexpr = min(WIDTH, 64)
    rows = x.index(stage).reshape([ROWS, WIDTH])
    for first in gl.static_range(0, ROWS, GROUP):
        if (first < low) | (first + GROUP > high):
            row = first + gl.arange(0, GROUP, gl.SliceLayout(1, LAYOUT))
            kept = (row >= low) & (row < high)
            for column in gl.static_range(0, WIDTH, COLUMNS):
                piece = rows.slice(first, GROUP, 0).slice(column, COLUMNS, 1)
                values = piece.load(LAYOUT)
                piece.store(gl.where(kept[:, None], values, gl.zeros_like(values)))
