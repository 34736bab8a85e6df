"""What the GPU kernels of ``attention`` share: a tile's sequence, loads, visibility, bounds.

Query row r of a sequence is its query ``r // GROUP`` and head ``r % GROUP`` of a kv head's group.
Positions are bottom-right aligned. Which queries see key n is one interval of positions:

    ``n - right <= p < min(n + left + 1, subtree_end[n])``

where causal, and subtrees, make ``right`` 0. A side that is not bounded drops out at compile time
(``LEFT``, ``RIGHT``, ``TREE``).
"""

from collections.abc import Iterator

import triton
import triton.language as tl
from torch import Tensor

from ridgeline.ops.common.device import pieces
from ridgeline.ops.common.triton import LOG2_E, tanh

SEQUENCES = 128  # whose starts are read at a time
CHUNK = 128  # tiles of keys that are listed at a time
BAND = 1 << 22  # tiles in the lists of one launch: 16 MiB
FAR = tl.constexpr(2**31 - 1)


@triton.jit
def find_tile(
    t,
    cu_seqlens,
    stride_cu,
    batch,
    length,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
    PACKED: tl.constexpr,
    SEQUENCES: tl.constexpr,
):
    """Sequence b and block of tile t, b's first token and length; ``ROWS`` rows a token.

    Packed, the tiles of b start at ``cu_seqlens[b] * ROWS // BLOCK + b``: room for all of them
    and at most one more, whatever the lengths, so that a grid needs no length.
    """
    if PACKED:
        b = 0
        for i in range(0, batch, SEQUENCES):
            s = i + tl.arange(0, SEQUENCES)
            start = tl.load(cu_seqlens + s.to(tl.int64) * stride_cu, mask=s < batch, other=0)
            start = start.to(tl.int64) * ROWS // BLOCK + s
            b += tl.sum(((s < batch) & (start <= t)).to(tl.int32), 0)
        b -= 1
        start, length = find_sequence(b, cu_seqlens, stride_cu, length, PACKED)
        block = (t - (start * ROWS // BLOCK + b)).to(tl.int32)
    else:
        blocks = tl.cdiv(length * ROWS, BLOCK)
        b = t // blocks
        block = t % blocks
        start, length = find_sequence(b, cu_seqlens, stride_cu, length, PACKED)
    return b, block, start, length


@triton.jit
def find_sequence(b, cu_seqlens, stride_cu, length, PACKED: tl.constexpr):
    """First token, 64 bits wide, and length of sequence b."""
    if PACKED:
        at = cu_seqlens + b.to(tl.int64) * stride_cu
        start = tl.load(at).to(tl.int64)
        return start, (tl.load(at + stride_cu) - start).to(tl.int32)
    return (b * 0).to(tl.int64), length


@triton.jit
def find_rows(
    t,
    cu_q,
    cu_k,
    stride_cuq,
    stride_cuk,
    batch,
    query_len,
    key_len,
    GROUP: tl.constexpr,
    PACKED: tl.constexpr,
    SEQUENCES: tl.constexpr,
    BLOCK_M: tl.constexpr,
):
    """The query rows of tile t and their positions; sequence b, and where it lies.

    Under causal the last rows see most keys: they start first. A tile that is one too many begins
    before row 0.
    """
    b, block, start_q, len_q = find_tile(
        t, cu_q, stride_cuq, batch, query_len, GROUP, BLOCK_M, PACKED, SEQUENCES
    )
    begin = (tl.cdiv(len_q * GROUP, BLOCK_M) - 1 - block) * BLOCK_M
    row = begin + tl.arange(0, BLOCK_M)
    start_k, len_k = find_sequence(b, cu_k, stride_cuk, key_len, PACKED)
    position = len_k - len_q + row // GROUP
    return b, begin, row, position, start_q, len_q, start_k, len_k


@triton.jit
def first_and_last(position, len_k):
    """The positions that rows of a tile have, without those that only fill the tile."""
    return tl.min(position, 0), tl.minimum(tl.max(position, 0), len_k - 1)


@triton.jit
def first_tile(b, start, length, BLOCK: tl.constexpr, PACKED: tl.constexpr):
    """The tile of keys, counted as in ``find_tile``, that is the first of sequence b."""
    if PACKED:
        return start // BLOCK + b
    return b.to(tl.int64) * tl.cdiv(length, BLOCK)


@triton.jit
def head_offset(b, start, head, stride_b, stride_l, stride_h):
    """Offset of the first token of a sequence and head, 64 bits wide."""
    return b.to(tl.int64) * stride_b + start * stride_l + head * stride_h


@triton.jit
def row_offsets(row, b, start, head, stride_b, stride_l, stride_h, GROUP: tl.constexpr):
    """Offsets of query rows, 64 bits wide."""
    at = b.to(tl.int64) * stride_b + (start + row // GROUP) * stride_l
    return at + (head * GROUP + row % GROUP) * stride_h


@triton.jit
def output_rows(
    row,
    b,
    start,
    head,
    query_len,
    KV_HEADS: tl.constexpr,
    GROUP: tl.constexpr,
    PACKED: tl.constexpr,
):
    """Query rows of a contiguous ``[B, L, h_q]`` or ``[total, h_q]``."""
    token = start + row // GROUP
    if not PACKED:
        token += b.to(tl.int64) * query_len
    return token * (KV_HEADS * GROUP) + head * GROUP + row % GROUP


@triton.jit
def load_columns(
    rows,
    needed,
    FIRST: tl.constexpr,
    WIDTH: tl.constexpr,
    DIM: tl.constexpr,
    MASKED: tl.constexpr = True,
):
    """Columns ``FIRST : FIRST + WIDTH`` of ``rows``; 0 past DIM and, if MASKED, where not needed.

    Rows that nobody sees are not read: what they hold may be NaN, and 0 times NaN is NaN.
    """
    d = FIRST + tl.arange(0, WIDTH)
    pointers = rows[:, None] + d[None, :]
    if FIRST + WIDTH > DIM:
        if MASKED:
            return tl.load(pointers, mask=needed[:, None] & (d < DIM)[None, :], other=0.0)
        return tl.load(pointers, mask=(d < DIM)[None, :], other=0.0)
    if MASKED:
        return tl.load(pointers, mask=needed[:, None], other=0.0)
    return tl.load(pointers)


@triton.jit
def key_interval(
    n,
    key_len,
    ends,
    stride_end,
    left,
    right,
    LEFT: tl.constexpr,
    RIGHT: tl.constexpr,
    TREE: tl.constexpr,
):
    """Positions ``[low, high)`` of the queries that see each of the keys n, any tensor of them."""
    low = tl.where(n < key_len, n - right if RIGHT else -FAR, FAR)
    high = n + left + 1 if LEFT else n * 0 + FAR
    if TREE:
        end = tl.load(ends + n.to(tl.int64) * stride_end, mask=n < key_len, other=0)
        high = tl.minimum(high, end)
    return low, high


@triton.jit
def key_range(
    first,
    last,
    key_len,
    left,
    right,
    LEFT: tl.constexpr,
    RIGHT: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """Tiles ``[begin, end)`` of keys that positions ``first`` to ``last`` may see, subtrees aside.

    Those in ``[full_begin, full_end)`` every position sees whole.
    """
    begin = tl.maximum(first - left, 0) // BLOCK_N if LEFT else 0
    stop = tl.minimum(last + right + 1, key_len) if RIGHT else key_len
    end = tl.cdiv(tl.maximum(stop, 0), BLOCK_N)
    full_begin = tl.cdiv(tl.maximum(last - left, 0), BLOCK_N) if LEFT else 0
    full_stop = tl.minimum(first + right + 1, key_len) if RIGHT else key_len
    full_end = tl.maximum(full_stop, 0) // BLOCK_N
    end = tl.maximum(begin, end)
    full_begin = tl.minimum(tl.maximum(begin, full_begin), end)
    full_end = tl.minimum(tl.maximum(full_begin, full_end), end)
    return begin, full_begin, full_end, end


@triton.jit
def row_range(low, high, real, len_q, len_k, GROUP: tl.constexpr, BLOCK_M: tl.constexpr):
    """Tiles ``[begin, end)`` of query rows that see one of the ``real`` keys, given intervals.

    Those in ``[full_begin, full_end)`` see all of them.
    """
    begin = tl.min(tl.where(real, low, FAR), 0)
    stop = tl.max(tl.where(real, high, -FAR), 0)
    full_begin = tl.max(tl.where(real, low, -FAR), 0)
    full_stop = tl.min(tl.where(real, high, FAR), 0)
    return tiles_between(begin, full_begin, full_stop, stop, len_q, len_k, GROUP, BLOCK_M)


@triton.jit
def tiles_between(
    begin, full_begin, full_stop, stop, len_q, len_k, GROUP: tl.constexpr, BLOCK_M: tl.constexpr
):
    """As ``row_range``, given the positions from ``begin`` to ``stop`` that see one of the keys and
    those from ``full_begin`` to ``full_stop`` that see all."""
    offset = len_k - len_q
    # Within the positions that there are, so that 32 bits hold the differences.
    begin = tl.minimum(tl.maximum(begin, offset), len_k) - offset
    stop = tl.minimum(tl.maximum(stop, offset), len_k) - offset
    full_begin = tl.minimum(tl.maximum(full_begin, offset), len_k) - offset
    full_stop = tl.minimum(tl.maximum(full_stop, offset), len_k) - offset
    begin = begin * GROUP // BLOCK_M
    end = tl.maximum(begin, tl.cdiv(stop * GROUP, BLOCK_M))
    full_begin = tl.minimum(tl.cdiv(full_begin * GROUP, BLOCK_M), end)
    full_end = tl.minimum(tl.maximum(full_begin, full_stop * GROUP // BLOCK_M), end)
    return begin, full_begin, full_end, end


@triton.jit
def loop_over(
    begin,
    full_begin,
    full_end,
    end,
    row_list,
    capacity,
    MASKED: tl.constexpr,
    LISTED: tl.constexpr,
):
    """How many tiles a loop has, and what ``nth_tile`` needs: those seen whole, or the others.

    LISTED, ``row_list`` has both counts, then the others from its front and those seen whole from
    its back.
    """
    full = full_end - full_begin
    if LISTED:
        if MASKED:
            return tl.load(row_list), 2, 0, 0
        return tl.load(row_list + 1), capacity + 1, 0, 0
    if MASKED:
        return end - begin - full, begin, full_begin - begin, full
    return full, full_begin, full, 0


@triton.jit
def nth_tile(
    i, first, jump, gap, row_list, MASKED: tl.constexpr = False, LISTED: tl.constexpr = False
):
    """Tile i of a loop: from ``first`` on without ``gap`` of them after ``jump``; or listed."""
    if LISTED:
        return tl.load(row_list + first + i if MASKED else row_list + first - i)
    return first + i + tl.where(i < jump, 0, gap)


@triton.jit
def logits(x, scale, softcap, SOFTCAP: tl.constexpr, SCALED: tl.constexpr):
    """Products ``q · k`` as what ``factor`` times is a score in base 2.

    Not SCALED, that is the product itself, and the factor joins the exponent's subtraction in one
    instruction; it has to be positive, so that the largest product is the largest score.
    """
    if SOFTCAP:
        return tanh(x * (scale / softcap)) * (softcap * LOG2_E)
    if SCALED:
        return x * (scale * LOG2_E)
    return x


@triton.jit
def cap_slope(x, softcap):
    """The slope of the soft cap where ``logits`` gave x."""
    t = x / (softcap * LOG2_E)
    return 1.0 - t * t


@triton.jit
def delta_and_shift(
    dout_rows,
    out,
    dlse,
    lse,
    row,
    real,
    VALUE_DIM: tl.constexpr,
    WIDTH: tl.constexpr,
):
    """Of query rows: ``dout · out - dlse``, and the lse in base 2; 0 and inf where nothing is seen.

    ``dout_rows``: where rows of dout begin; ``row``: their index in contiguous ``out`` and lse's.
    """
    row_lse = tl.load(lse + row, mask=real, other=float("-inf"))
    seeing = row_lse != float("-inf")
    # [BLOCK, WIDTH]
    upstream = load_columns(dout_rows, seeing, 0, WIDTH, VALUE_DIM).to(tl.float32)
    result = load_columns(out + row * VALUE_DIM, seeing, 0, WIDTH, VALUE_DIM).to(tl.float32)
    delta = tl.sum(upstream * result, 1)
    if dlse is not None:
        delta -= tl.load(dlse + row, mask=seeing, other=0.0)
    return delta, tl.where(seeing, row_lse * LOG2_E, float("inf"))


@triton.jit
def ends_kernel(
    subtree_end,
    extents,
    cu_k,
    stride_cuk,
    batch,
    key_len,
    tiles,
    stride_eb,
    stride_el,
    BLOCK_N: tl.constexpr,
    PACKED: tl.constexpr,
    SEQUENCES: tl.constexpr,
):
    """Least and largest ``subtree_end`` of each tile of keys: ``extents [2, tiles]``."""
    t = tl.program_id(0)
    b, block, start, length = find_tile(
        t, cu_k, stride_cuk, batch, key_len, 1, BLOCK_N, PACKED, SEQUENCES
    )
    n = block * BLOCK_N + tl.arange(0, BLOCK_N)
    rows = subtree_end + b.to(tl.int64) * stride_eb + (start + n) * stride_el
    tl.store(extents + t, tl.min(tl.load(rows, mask=n < length, other=FAR), 0))
    tl.store(extents + tiles + t, tl.max(tl.load(rows, mask=n < length, other=0), 0))


@triton.jit
def lists_kernel(
    extents,
    lists,
    capacity,
    key_tiles,
    band,
    cu_q,
    cu_k,
    stride_cuq,
    stride_cuk,
    batch,
    query_len,
    key_len,
    left,
    right,
    GROUP: tl.constexpr,
    LEFT: tl.constexpr,
    RIGHT: tl.constexpr,
    PACKED: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    SEQUENCES: tl.constexpr,
    CHUNK: tl.constexpr,
):
    """The tiles of keys that one of a tile of rows sees: ``[tiles of the band, capacity + 2]``.

    A list, where a test in the loop would keep the next tile from being loaded ahead. See
    ``loop_over`` for what it holds. All heads share it.
    """
    b, row, _, position, _, _, start_k, len_k = find_rows(
        band + tl.program_id(0),
        cu_q,
        cu_k,
        stride_cuq,
        stride_cuk,
        batch,
        query_len,
        key_len,
        GROUP,
        PACKED,
        SEQUENCES,
        BLOCK_M,
    )
    if row < 0:
        return
    first, last = first_and_last(position, len_k)
    begin, full_begin, full_end, end = key_range(
        first, last, len_k, left, right, LEFT, RIGHT, BLOCK_N
    )
    row_list = lists + tl.program_id(0).to(tl.int64) * (capacity + 2)
    extents += first_tile(b, start_k, key_len, BLOCK_N, PACKED)
    cut_count = 0
    full_count = 0
    for i in range(begin, end, CHUNK):
        tile = i + tl.arange(0, CHUNK)
        least = tl.load(extents + tile, mask=tile < end, other=0)
        most = tl.load(extents + key_tiles + tile, mask=tile < end, other=0)
        seen = (tile < end) & (most > first)
        whole = seen & (tile >= full_begin) & (tile < full_end) & (least > last)
        cut = (seen & (whole == 0)).to(tl.int32)
        whole = whole.to(tl.int32)
        tl.store(row_list + 1 + cut_count + tl.cumsum(cut, 0), tile, mask=cut > 0)
        tl.store(row_list + capacity + 2 - full_count - tl.cumsum(whole, 0), tile, mask=whole > 0)
        cut_count += tl.sum(cut, 0)
        full_count += tl.sum(whole, 0)
    tl.store(row_list, cut_count)
    tl.store(row_list + 1, full_count)


class Problem:
    """A call's layout and options as the kernels take them; allocations depend on shapes alone.

    ``key_len``: the most keys of a sequence where ``k`` is pages of them. ``group``: the heads of a
    kv head's group that are rows of one tile, by default all.
    """

    def __init__(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        cu_seqlens_q: Tensor | None,
        cu_seqlens_k: Tensor | None,
        subtree_end: Tensor | None,
        softmax_scale: float,
        causal: bool,
        window_left: int,
        window_right: int,
        softcap: float,
        *,
        key_len: int | None = None,
        group: int | None = None,
    ) -> None:
        packed = cu_seqlens_q is not None
        self.q, self.k, self.v = q, k, v
        self.batch = cu_seqlens_q.shape[0] - 1 if packed else q.shape[0]
        self.query_len, self.key_len = q.shape[-3], key_len or k.shape[-3]  # packed: of all
        self.packed, self.cu_q, self.cu_k = packed, cu_seqlens_q, cu_seqlens_k
        self.subtree_end = subtree_end
        self.kv_heads = k.shape[-2]
        self.group = group or q.shape[-2] // self.kv_heads
        tree = subtree_end is not None
        # A side of the window that bounds no query's view is dropped: 32 bits hold the sums.
        left = -1 if window_left >= self.key_len else window_left
        right = 0 if causal or tree else window_right
        right = -1 if right >= self.query_len - 1 else right
        # See ``logits``. A scale that small would leave the normal range as a factor.
        scaled = softcap > 0 or not softmax_scale > 1e-30
        self.factor = 1.0 if scaled else softmax_scale * LOG2_E.value
        self.options = (self.factor, softmax_scale, softcap, left, right)
        self.layout = (
            cu_seqlens_q,
            cu_seqlens_k,
            cu_seqlens_q.stride(0) if packed else 0,
            cu_seqlens_k.stride(0) if packed else 0,
            self.batch,
            self.query_len,
            self.key_len,
        )
        (k0, k1), (v0, v1) = pieces(q.shape[-1]), pieces(v.shape[-1])
        self.constants = {
            "KV_HEADS": self.kv_heads,
            "GROUP": self.group,
            "DIM": q.shape[-1],
            "VALUE_DIM": v.shape[-1],
            "K0": k0,
            "K1": k1,
            "V0": v0,
            "V1": v1,
            "PACKED": packed,
            "LEFT": left >= 0,
            "RIGHT": right >= 0,
            "TREE": tree,
            "SOFTCAP": softcap > 0,
            "SCALED": scaled,
            "SEQUENCES": SEQUENCES,
        }

    def tiles(self, length: int, block: int) -> int:
        """Tiles of ``length`` rows a sequence, or of all if packed; see ``find_tile``."""
        if self.packed:
            return length // block + self.batch
        return -(-length // block) * self.batch

    def bands(
        self, block_m: int, block_n: int
    ) -> Iterator[tuple[Tensor | None, Tensor | None, int, int, int, int, int]]:
        """What launches over tiles of query rows take, one launch a band of them.

        ``subtree_end``, the lists of ``lists_kernel`` and their capacity, two strides of the
        first, the first tile of the band and how many it has. Lists are 4 bytes for ``block_m *
        block_n`` pairs of a row and a key: a band is as long as fits ``BAND`` of them, and the
        next one's lists take their place. Without subtrees one band has all tiles.
        """
        row_tiles = self.tiles(self.query_len * self.group, block_m)
        ends, *strides = self.ends()
        if ends is None:
            yield None, None, 0, *strides, 0, row_tiles
            return
        capacity = -(-self.key_len // block_n)
        key_tiles = self.tiles(self.key_len, block_n)
        band_tiles = min(max(BAND // (capacity + 2), 1), row_tiles)
        extents = ends.new_empty(2, key_tiles)
        lists = ends.new_empty(band_tiles, capacity + 2)
        shared = {"BLOCK_N": block_n, "PACKED": self.packed, "SEQUENCES": SEQUENCES}
        if key_tiles:
            ends_kernel[(key_tiles,)](
                ends,
                extents,
                self.cu_k,
                self.layout[3],
                self.batch,
                self.key_len,
                key_tiles,
                *strides,
                **shared,
                num_warps=1,
            )
        for band in range(0, row_tiles, band_tiles):
            count = min(band_tiles, row_tiles - band)
            lists_kernel[(count,)](
                extents,
                lists,
                capacity,
                key_tiles,
                band,
                *self.layout,
                *self.options[-2:],
                GROUP=self.group,
                LEFT=self.constants["LEFT"],
                RIGHT=self.constants["RIGHT"],
                BLOCK_M=block_m,
                CHUNK=CHUNK,
                **shared,
                num_warps=1,
            )
            yield ends, lists, capacity, *strides, band, count

    def ends(self) -> tuple[Tensor | None, int, int]:
        """``subtree_end`` and its strides."""
        if self.subtree_end is None:
            return None, 0, 0
        return self.subtree_end, *self.strides(self.subtree_end, 1)

    def strides(self, x: Tensor, dims: int = 2) -> tuple[int, ...]:
        """Of sequence, token and head of ``x [B, L, h, ...]`` or ``[total, h, ...]``."""
        return (0,) * self.packed + x.stride()[: dims + 1 - self.packed]
