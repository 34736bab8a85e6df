"""What a consumer of the forward kernel gives: rows of the output and their lse."""

from ridgeline.ops.attention.hopper.config import ROWS
from ridgeline.ops.common.gluon import aggregate, gl, gluon
from ridgeline.ops.common.triton import natural_lse

ROWS = gl.constexpr(ROWS)


@aggregate
class Results:
    """``out [..., HEADS, VALUE_DIM]`` and ``lse [..., HEADS]``, contiguous."""

    out: gl.tensor
    lse: gl.tensor
    spoilt: gl.tensor  # how many rows are not finite, if COUNT
    HEADS: gl.constexpr
    VALUE_DIM: gl.constexpr
    COUNT: gl.constexpr

    @gluon.constexpr_function
    def __init__(self, out, lse, spoilt, HEADS, VALUE_DIM, COUNT):
        self.out = out
        self.lse = lse
        self.spoilt = spoilt
        self.HEADS = gl.constexpr(HEADS)
        self.VALUE_DIM = gl.constexpr(VALUE_DIM)
        self.COUNT = gl.constexpr(COUNT)

    @gluon.jit
    def store(self, work, item, first, os, m, l):
        """Rows from ``first`` on of an item; ``m`` and ``l [ROWS]``."""
        column = 0
        for i in gl.static_range(len(os)):
            self.store_columns(work, item, first, os[i], l, column)
            column += os[i].shape[1]
        layout: gl.constexpr = m.type.layout
        at, real = self.rows(work, item, first, layout)
        gl.store(self.lse + at, natural_lse(m, l), mask=real)

    @gluon.jit
    def store_columns(self, work, item, first, o, l, column):
        rows: gl.constexpr = gl.SliceLayout(1, o.type.layout)
        at, real = self.rows(work, item, first, rows)
        total = gl.convert_layout(l, rows)
        total = gl.where(total == 0.0, 1.0, total)
        d = column + gl.arange(0, o.shape[1], gl.SliceLayout(0, o.type.layout))
        x = (o / total[:, None]).to(self.out.dtype.element_ty)
        pointers = self.out + (at * self.VALUE_DIM)[:, None] + d[None, :]
        gl.store(pointers, x, mask=real[:, None] & (d < self.VALUE_DIM)[None, :])
        if self.COUNT:
            # NaN of a row with an element that is not finite; of ``o`` it would keep registers.
            bad = gl.sum(x.to(gl.float32) * 0.0, 1) != 0.0
            one = gl.full([ROWS], 1, gl.int32, rows)
            gl.atomic_add(self.spoilt + one * 0, one, mask=bad & real, sem="relaxed")

    @gluon.jit
    def rows(self, work, item, first, layout: gl.constexpr):
        """Where rows from ``first`` on go, and which of them there are."""
        row = first + gl.arange(0, ROWS, layout)
        token = item.start_q + row // work.PACK
        if not work.PACKED:
            token += item.b.to(gl.int64) * work.query_len
        at = token * self.HEADS + item.entity * work.PACK + row % work.PACK
        return at, row < item.len_q * work.PACK
