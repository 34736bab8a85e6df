# ruff: noqa: RUF005
"""Products of probabilities with values, and the outputs that add them up.

An output is in parts side by side, each of a product of its own; tuples hold them, and grow by
``+``: the compiler knows no starred ones. Of BF16 and FP16 a part is a tile of value columns, and
tensor cores add to it. Of FP8 (values ``turned``) a part has at most ``FP8_PART`` columns: tensor
cores add FP8 products in fewer bits than float32 has, so a product is of one tile of keys alone,
which the output takes in float32, times the scale of its values. Parts take turns with one set of
registers.
"""

from ridgeline.ops.attention.hopper.config import FP8_PART, MAX_DIM, ROWS
from ridgeline.ops.common.gluon import gl, gluon, pack_e4m3, warpgroup_mma, warpgroup_mma_wait
from ridgeline.ops.common.hopper_attend import accumulator

FP8_PART = gl.constexpr(FP8_PART)
ROWS = gl.constexpr(ROWS)


@gluon.constexpr_function
def products_layout(columns, dtype):
    """Of products of a warpgroup's rows, whose operands are of ``dtype``."""
    return accumulator(0, 4, ROWS.value, columns, 256 // dtype.primitive_bitwidth)


@gluon.constexpr_function
def parts_of(values):
    """Tile, first column and columns of each part."""
    axis, widest = (3, FP8_PART.value) if values.TURNED else (4, MAX_DIM)
    widths = [x.shape[axis] for x in (values.x0, values.x1)[: values.COLUMNS]]
    return [
        (i, first, min(width, widest))
        for i, width in enumerate(widths)
        for first in range(0, width, widest)
    ]


@gluon.jit
def outputs(values):
    """Zeros."""
    PARTS: gl.constexpr = parts_of(values)
    os = ()
    for i in gl.static_range(len(PARTS)):
        os = os + (nothing(PARTS[i][2], values.x0.dtype),)
    return os


@gluon.jit
def nothing(WIDTH: gl.constexpr, dtype: gl.constexpr):
    return gl.zeros([ROWS, WIDTH], gl.float32, products_layout(WIDTH, dtype))


@gluon.jit
def packed(p, values):
    """Probabilities as loops carry them: of FP8 four to a register, in the order of its keys."""
    if values.TURNED:
        COUNT: gl.constexpr = p.shape[1] // 4
        groups = p.reshape([ROWS, p.shape[1] // 16, 2, 4, 2]).permute((0, 1, 3, 2, 4))
        even, odd = gl.split(groups.reshape([ROWS, COUNT, 2, 2]))
        p0, p2 = gl.split(even)
        p1, p3 = gl.split(odd)
        result = pack_e4m3((p0, p1, p2, p3))
    else:
        result = p.to(values.x0.dtype)
    return result


@gluon.jit
def unpacked(x):
    """``[ROWS, 4 * columns]`` from bytes of ``x [ROWS, columns]``."""
    low = gl.join(x.to(gl.int8), (x >> 8).to(gl.int8))
    high = gl.join((x >> 16).to(gl.int8), (x >> 24).to(gl.int8))
    p = gl.join(low, high).permute((0, 1, 3, 2)).reshape([ROWS, 4 * x.shape[1]])
    return p.to(gl.float8e4nv, bitcast=True)


@gluon.jit
def operands(p, values):
    """What ``packed`` gave as operand A of products with each tile of values."""
    PARTS: gl.constexpr = parts_of(values)
    if values.TURNED:
        p = unpacked(p)
    ps = ()
    for i in gl.static_range(len(PARTS)):
        if PARTS[i][1] == 0:
            ps = ps + (operand(p, products_layout(PARTS[i][2], values.x0.dtype)),)
    return ps


@gluon.jit
def operand(p, products: gl.constexpr):
    layout: gl.constexpr = gl.DotOperandLayout(0, products, 32 // p.dtype.primitive_bitwidth)
    return gl.convert_layout(p, layout, assert_trivial=True)


@gluon.jit
def fp8_product(ps, values, n, i: gl.constexpr):
    """Begins ``ps @ values`` of part i of tile n."""
    PART: gl.constexpr = parts_of(values)[i]
    tile = values.tile(n, PART[0]).slice(PART[1], PART[2], 0).permute((1, 0))
    acc = nothing(PART[2], values.x0.dtype)
    return warpgroup_mma(ps[PART[0]], tile, acc, use_acc=False, is_async=True)


@gluon.jit
def begin(os, ps, values, n):
    """Begins ``os + ps @ values`` of tile n; of FP8 ``ps @ values`` of the first part."""
    pending = ()
    if values.TURNED:
        pending = pending + (fp8_product(ps, values, n, 0),)
    else:
        for i in gl.static_range(len(os)):
            product = warpgroup_mma(ps[i], values.tile(n, i), os[i], is_async=True)
            pending = pending + (product,)
    return pending


@gluon.jit
def finish(os, pending, ps, values, n, factor, weight):
    """What ``begin`` began, times ``factor [ROWS]``; of FP8 the outputs times ``factor`` plus the
    products times ``weight``."""
    new = ()
    for i in gl.static_range(len(os)):
        by_row = gl.convert_layout(factor, gl.SliceLayout(1, os[i].type.layout))[:, None]
        if values.TURNED:
            found = warpgroup_mma_wait(0, pending + ps)
            if i + 1 < len(os):
                pending = (fp8_product(ps, values, n, i + 1),)
            new = new + (os[i] * by_row + found[0] * weight,)
        else:
            if i == 0:
                found = warpgroup_mma_wait(0, pending + ps)
            new = new + (found[i] * by_row,)
    return new


@gluon.jit
def times(os, factor):
    """Outputs times a number."""
    new = ()
    for i in gl.static_range(len(os)):
        new = new + (os[i] * factor,)
    return new
