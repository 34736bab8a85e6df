# ruff: noqa: RUF005
"""Products of tiles as consumers of the Hopper backward kernels issue and await them.

Dims that are no power of two are two tiles of columns; tuples hold them, and grow by ``+``: the
compiler knows no starred ones.
"""

from ridgeline.ops.common.gluon import (
    fence_async_shared,
    gl,
    gluon,
    warpgroup_mma,
    warpgroup_mma_wait,
)
from ridgeline.ops.common.hopper_attend import accumulator


@gluon.jit
def all_tiles(ring, n):
    """The one or two tiles of columns of tile n."""
    found = (ring.tile(n, 0),)
    if ring.COLUMNS == 2:
        found = found + (ring.tile(n, 1),)
    return found


@gluon.constexpr_function
def rows_layout(num_warps):
    """Eight elements a thread, four threads along a row."""
    return gl.BlockedLayout([1, 8], [8, 4], [num_warps, 1], [1, 0])


@gluon.jit
def zero_rows(columns, kept):
    """Rows of tiles ``[ROWS, W]`` that are not ``kept [ROWS]`` become 0.

    Whatever they hold, NaN too, would meet a factor of 0.
    """
    layout: gl.constexpr = kept.type.layout.parent
    for c in gl.static_range(len(columns)):
        x = columns[c].load(layout)
        columns[c].store(gl.where(kept[:, None], x, gl.zeros_like(x)))
    fence_async_shared()


@gluon.jit
def zeros(ROWS: gl.constexpr, WIDTH: gl.constexpr):
    return gl.zeros([ROWS, WIDTH], gl.float32, accumulator(0, gl.num_warps(), ROWS, WIDTH))


@gluon.jit
def sums_like(columns, ROWS: gl.constexpr):
    """``[ROWS, W]`` zeros for each tile of columns."""
    found = ()
    for c in gl.static_range(len(columns)):
        found = found + (zeros(ROWS, columns[c].shape[1]),)
    return found


@gluon.jit
def products(rows, others, ROWS: gl.constexpr, OTHERS: gl.constexpr):
    """Begins ``rows @ others^T`` over all their columns."""
    result = zeros(ROWS, OTHERS)
    for c in gl.static_range(len(rows)):
        result = warpgroup_mma(rows[c], others[c].permute((1, 0)), result, is_async=True)
    return result


@gluon.jit
def add_products(sums, a, columns):
    """Begins ``sums + a @ columns``, tile by tile."""
    found = ()
    for c in gl.static_range(len(columns)):
        found = found + (warpgroup_mma(a, columns[c], sums[c], is_async=True),)
    return found


@gluon.jit
def add_products_in_registers(sums, x, columns):
    """As ``add_products`` of a tensor; its operands follow the products, as they wait for both."""
    found = ()
    operands = ()
    for c in gl.static_range(len(columns)):
        a = gl.convert_layout(x, gl.DotOperandLayout(0, sums[c].type.layout, 2))
        found = found + (warpgroup_mma(a, columns[c], sums[c], is_async=True),)
        operands = operands + (a,)
    return found + operands


@gluon.jit
def finished(OUTSTANDING: gl.constexpr, pending):
    """What was begun, when at most ``OUTSTANDING`` later products are in flight."""
    if len(pending) == 1:
        found = (warpgroup_mma_wait(OUTSTANDING, [pending[0]]),)
    else:
        found = warpgroup_mma_wait(OUTSTANDING, pending)
    return found


@gluon.jit
def again(x):
    """``x``, of which the compiler does not know: what follows from it is computed once more."""
    return gl.inline_asm_elementwise(
        "mov.b32 $0, $1;", "=r,r", [x], gl.int32, is_pure=False, pack=1
    )


@gluon.jit
def store_columns(base, columns, scale, at, count, HEADS: gl.constexpr, DIM: gl.constexpr):
    """The first ``count`` rows of tiles of columns, as rows ``at``, ``at + HEADS`` and so on of
    ``base [..., DIM]``."""
    store_tile(base, columns[0], scale, at, count, 0, HEADS, DIM)
    if len(columns) == 2:
        store_tile(base, columns[1], scale, at, count, columns[0].shape[1], HEADS, DIM)


@gluon.jit
def store_tile(
    base, x, scale, at, count, FIRST: gl.constexpr, HEADS: gl.constexpr, DIM: gl.constexpr
):
    layout: gl.constexpr = x.type.layout
    row = again(gl.arange(0, x.shape[0], gl.SliceLayout(1, layout)))
    d = FIRST + gl.arange(0, x.shape[1], gl.SliceLayout(0, layout))
    # Not base + at and then the rows: all programs' offsets of rows would be kept in registers.
    pointers = base + ((at + row * HEADS) * DIM)[:, None] + d[None, :]
    mask = (row < count)[:, None] & (d < DIM)[None, :]
    gl.store(pointers, (x * scale).to(base.dtype.element_ty), mask=mask)
