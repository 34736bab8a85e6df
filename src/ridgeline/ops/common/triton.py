"""What the Triton kernels share: loading paged tiles, online softmax, prefetch; version names.

Kernel code: ``m`` counts query rows of a tile, ``n`` cached tokens, ``d`` columns. Every product of
a page or token index with a stride is 64 bits wide.
"""

import triton
import triton.language as tl

INTERPRETED = tl.constexpr(bool(triton.knobs.runtime.interpret))
LOG2_E = tl.constexpr(1.4426950408889634)
LN_2 = tl.constexpr(0.6931471805599453)
LINE = tl.constexpr(128)  # bytes that one prefetch brings into L2


@triton.jit
def tile_range(length, query_len, window_left, BLOCK_N: tl.constexpr):
    """The first token that a query sees, its tile, and the number of tiles (at least one).

    ``max(a, left) - left`` is ``max(a - left, 0)`` that cannot overflow; left is -1 for no window.
    """
    first = tl.where(window_left < 0, 0, tl.maximum(length - query_len, window_left) - window_left)
    begin = first // BLOCK_N
    return first, begin, tl.maximum(tl.cdiv(length, BLOCK_N) - begin, 1)


@triton.jit
def page_of(table_row, stride_tp, n, needed, BLOCK_N: tl.constexpr, PAGE_SIZE: tl.constexpr):
    """Page ids of the tokens of a tile, ``[BLOCK_N]`` or one for all; 0 where not ``needed``."""
    if PAGE_SIZE % BLOCK_N == 0:
        tile = tl.min(n, 0)
        mask = tl.max(needed.to(tl.int32), 0) > 0
        entry = table_row + (tile // PAGE_SIZE).to(tl.int64) * stride_tp
    else:
        mask = needed
        entry = table_row + (n // PAGE_SIZE).to(tl.int64) * stride_tp
    return tl.load(entry, mask=mask, other=0).to(tl.int64)


@triton.jit
def load_tile(rows, needed, FIRST: tl.constexpr, WIDTH: tl.constexpr, DIM: tl.constexpr):
    """Columns ``FIRST : FIRST + WIDTH`` of the tokens at ``rows``; 0 if not needed or past DIM."""
    d = FIRST + tl.arange(0, WIDTH)
    # [BLOCK_N, WIDTH]
    pointers = rows[:, None] + d[None, :]
    mask = needed[:, None]
    if FIRST + WIDTH > DIM:
        mask = mask & (d < DIM)[None, :]
    return tl.load(pointers, mask=mask, other=0.0)


@triton.jit
def load_queries(rows, needed, FIRST: tl.constexpr, WIDTH: tl.constexpr, DIM: tl.constexpr):
    """As ``load_tile``, of query rows."""
    d = FIRST + tl.arange(0, WIDTH)
    mask = needed[:, None] & (d < DIM)[None, :]
    return tl.load(rows[:, None] + d[None, :], mask=mask, other=0.0)


@triton.jit
def from_e4m3(x, dtype: tl.constexpr):
    """An FP8 tile in ``dtype``; e4m3 given as bytes, for devices without the conversion, by bits.

    The bits of |x| shifted into float16 are |x| / 2**8 there: the exponent biases are 7 and 15.
    """
    if x.dtype == tl.uint8:
        bits = x.to(tl.uint16)
        magnitude = ((bits & 0x7F) << 7).to(tl.float16, bitcast=True).to(tl.float32) * 256.0
        magnitude = tl.where((bits & 0x7F) == 0x7F, float("nan"), magnitude)
        x = tl.where((bits & 0x80) == 0, magnitude, -magnitude)
    return x.to(dtype)


@triton.jit
def dequantize(
    x,
    scale_rows,
    stride_block,
    needed,
    dtype: tl.constexpr,
    FIRST: tl.constexpr,
    WIDTH: tl.constexpr,
    DIM: tl.constexpr,
    BLOCKS: tl.constexpr,
):
    """A tile in the queries' ``dtype``; ``BLOCKS`` scales a token at ``scale_rows``, 0 for none."""
    if BLOCKS > 0 and WIDTH == DIM and triton.next_power_of_2(BLOCKS) == BLOCKS:
        block = tl.arange(0, BLOCKS).to(tl.int64)
        # [BLOCK_N, BLOCKS]
        pointers = scale_rows[:, None] + block[None, :] * stride_block
        scale = tl.load(pointers, mask=needed[:, None], other=0.0)
        scale = tl.broadcast_to(scale[:, :, None], [x.shape[0], BLOCKS, WIDTH // BLOCKS])
        x = from_e4m3(x, tl.float32) * tl.reshape(scale, [x.shape[0], WIDTH])
    elif BLOCKS > 0:
        d = FIRST + tl.arange(0, WIDTH)
        block = (d // (DIM // BLOCKS)).to(tl.int64)
        mask = needed[:, None] & (d < DIM)[None, :]
        # [BLOCK_N, WIDTH]
        scale = tl.load(scale_rows[:, None] + block[None, :] * stride_block, mask=mask, other=0.0)
        x = from_e4m3(x, tl.float32) * scale
    return from_e4m3(x, dtype)


@triton.jit
def dot(a, b):
    """``a @ b`` in float32; float32 operands are multiplied exactly, never as TF32."""
    return tl.dot(a, b, input_precision="ieee", out_dtype=tl.float32)


@triton.jit
def tanh(x):
    """Within 3 ulp: a polynomial near 0, where ``(1 - e) / (1 + e)`` cancels."""
    z = x * x
    p = 0.02111622 - 0.00627639 * z
    p = -0.3333333 + z * (0.13332924 + z * (-0.05387514 + z * p))
    e = tl.exp2(tl.abs(x) * (-2.0 * LOG2_E))
    far = (1.0 - e) / (1.0 + e)
    return tl.where(tl.abs(x) < 0.6, x + x * (z * p), tl.where(x < 0, -far, far))


@triton.jit
def visible(
    n,
    needed,
    position,
    real,
    window_left,
    window_right,
    CAUSAL: tl.constexpr,
    WINDOW: tl.constexpr,
):
    """``[BLOCK_M, BLOCK_N]``: which ``real`` rows at ``position`` see which ``needed`` tokens."""
    distance = n[None, :] - position[:, None]
    seen = needed[None, :] & real[:, None]
    if CAUSAL:
        seen = seen & (distance <= 0)
    if WINDOW:
        seen = seen & ((window_left < 0) | (-distance <= window_left))
        seen = seen & ((window_right < 0) | (distance <= window_right))
    return seen


@triton.jit
def online_softmax_update(scores, m, l):
    """One tile of scores, in base 2, joins the running maximum ``m`` and sum ``l``.

    Returns the tile's probabilities, the factor of what was accumulated so far, and the new m and
    l. A row that has seen nothing has m = -inf; its differences are taken from 0 instead.
    """
    m_new = tl.maximum(m, tl.max(scores, 1))
    base = tl.where(m_new == float("-inf"), 0.0, m_new)
    p = tl.exp2(scores - base[:, None])
    alpha = tl.exp2(m - base)
    return p, alpha, m_new, l * alpha + tl.sum(p, 1)


@triton.jit
def natural_lse(m, l):
    """Of a maximum in base 2 and its sum; -inf where nothing was seen."""
    return tl.where(l == 0.0, float("-inf"), (m + tl.log2(tl.where(l == 0.0, 1.0, l))) * LN_2)


@triton.jit
def store_item(
    acc0,
    acc1,
    m,
    l,
    b,
    head,
    row,
    real,
    slot,
    whole,
    query_len,
    out,
    lse,
    partial_out,
    partial_sums,
    KV_HEADS: tl.constexpr,
    GROUP: tl.constexpr,
    VALUE_DIM: tl.constexpr,
    W0: tl.constexpr,
    W1: tl.constexpr,
    BLOCK_M: tl.constexpr,
):
    """The query rows of an item: the result if ``whole``, else their part into the workspace."""
    if whole:
        at = b.to(tl.int64) * query_len + row // GROUP
        at = at * (KV_HEADS * GROUP) + head * GROUP + row % GROUP
        total = tl.where(l == 0.0, 1.0, l)[:, None]
        out_rows = out + at * VALUE_DIM
        store_columns(out_rows, acc0 / total, real, 0, W0, VALUE_DIM)
        if W1 > 0:
            store_columns(out_rows, acc1 / total, real, W0, W1, VALUE_DIM)
        tl.store(lse + at, natural_lse(m, l), mask=real)
    else:
        i = tl.arange(0, BLOCK_M)
        sums = partial_sums + slot * (2 * BLOCK_M) + i
        tl.store(sums, m, mask=real)
        tl.store(sums + BLOCK_M, l, mask=real)
        rows = partial_out + (slot * BLOCK_M + i) * (W0 + W1)
        store_columns(rows, acc0, real, 0, W0, VALUE_DIM)
        if W1 > 0:
            store_columns(rows, acc1, real, W0, W1, VALUE_DIM)


@triton.jit
def store_columns(rows, x, real, FIRST: tl.constexpr, WIDTH: tl.constexpr, DIM: tl.constexpr):
    d = FIRST + tl.arange(0, WIDTH)
    mask = real[:, None] & (d < DIM)[None, :]
    tl.store(rows[:, None] + d[None, :], x.to(rows.dtype.element_ty), mask=mask)


@triton.jit
def prefetch_rows(rows, needed, DIM: tl.constexpr):
    """Asks for the lines of ``DIM`` elements at each of ``rows`` to be brought into L2."""
    BYTES: tl.constexpr = DIM * rows.dtype.element_ty.primitive_bitwidth // 8
    LINES: tl.constexpr = triton.next_power_of_2((BYTES + 127) // 128)
    line = tl.arange(0, LINES)
    # [BLOCK_N, LINES]
    address = rows.to(tl.int64)[:, None] + (line * LINE)[None, :]
    wanted = needed[:, None] & (line * LINE < BYTES)[None, :]
    if INTERPRETED:  # which knows no assembly: a wild address crashes it
        tl.load(address.to(tl.pointer_type(tl.int8)), mask=wanted)
    else:
        tl.inline_asm_elementwise(
            "{ .reg .pred p; setp.ne.s32 p, $2, 0; @p prefetch.global.L2 [$1]; mov.u32 $0, 0; }",
            "=r,l,r",
            [address, wanted.to(tl.int32)],
            dtype=tl.int32,
            is_pure=False,
            pack=1,
        )
