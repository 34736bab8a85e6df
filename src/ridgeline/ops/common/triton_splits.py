"""How sequences are cut over programs, and the exact merge of what they computed.

An item is a block of query rows of one cached head of one sequence: ``heads`` of them a sequence.
Its tokens are a run of tiles. Two ways to cut runs:

- balanced (``num_splits = 0``): all tiles of the batch in one row, (sequence, item, tile), are
  dealt out in equal chunks; program p takes the p-th. It reads the lengths on the device, so
  neither the grid nor the workspace depends on them.
- ``num_splits`` cuts every item's run into that many parts by its own length alone.

An item that one program computes is written at once. Of others a program leaves its maximum, sum
and unnormalised output in the workspace, and ``combine`` merges them in the order of their tokens.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from ridgeline.ops.common.device import DecodeConfig, next_power_of_2, processors
from ridgeline.ops.common.triton import INTERPRETED, natural_lse, tile_range

MIN_TILES = 4  # of a chunk: below, merging costs more than balance gains
SEQUENCES = 128  # whose lengths are read at a time
PARTS = 16  # that are merged at a time


@triton.jit
def total_tiles(
    cache_seqlens,
    stride_length,
    batch,
    before,
    query_len,
    window_left,
    BLOCK_N: tl.constexpr,
    SEQUENCES: tl.constexpr,
):
    """Tiles of one item of each sequence, of the whole batch and of those before ``before``."""
    total = tl.zeros([SEQUENCES], tl.int32)
    earlier = tl.zeros([SEQUENCES], tl.int32)
    for i in range(0, batch, SEQUENCES):
        b = i + tl.arange(0, SEQUENCES)
        length = tl.load(cache_seqlens + b.to(tl.int64) * stride_length, mask=b < batch, other=0)
        _, _, count = tile_range(length, query_len, window_left, BLOCK_N)
        total += tl.where(b < batch, count, 0)
        earlier += tl.where(b < before, count, 0)
    return tl.sum(total, 0), tl.sum(earlier, 0)


@triton.jit
def find_sequence(
    tile,
    cache_seqlens,
    stride_length,
    batch,
    heads,
    query_len,
    window_left,
    BLOCK_N: tl.constexpr,
    SEQUENCES: tl.constexpr,
):
    """The sequence whose items hold a tile of the batch, and the tiles of an item before it."""
    sequence = 0
    earlier = 0
    base = 0
    for i in range(0, batch, SEQUENCES):
        b = i + tl.arange(0, SEQUENCES)
        length = tl.load(cache_seqlens + b.to(tl.int64) * stride_length, mask=b < batch, other=0)
        _, _, count = tile_range(length, query_len, window_left, BLOCK_N)
        count = tl.where(b < batch, count, 0)
        passed = (b < batch) & ((base + tl.cumsum(count, 0)) * heads <= tile)
        sequence += tl.sum(passed.to(tl.int32), 0)
        earlier += tl.sum(tl.where(passed, count, 0), 0)
        base += tl.sum(count, 0)
    return sequence, earlier


@triton.jit
def chunk_of(total, programs, MIN_TILES: tl.constexpr):
    """Tiles of a program of the balanced schedule."""
    return tl.maximum(tl.cdiv(total, programs), MIN_TILES)


@triton.jit
def first_work(
    cache_seqlens,
    stride_length,
    batch,
    heads,
    query_len,
    window_left,
    launched,
    BALANCED: tl.constexpr,
    BLOCK_N: tl.constexpr,
    SEQUENCES: tl.constexpr,
    MIN_TILES: tl.constexpr,
):
    """What a program computes: tiles ``t : stop``, from sequence b on.

    Balanced, t counts the tiles of the batch and ``base`` those before b; else t counts those of
    one item, and ``base`` is that item.
    """
    program = tl.program_id(0)
    if BALANCED:
        total, _ = total_tiles(
            cache_seqlens, stride_length, batch, 0, query_len, window_left, BLOCK_N, SEQUENCES
        )
        chunk = chunk_of(total * heads, launched, MIN_TILES)
        t = program * chunk
        stop = tl.minimum(t + chunk, total * heads)
        b, base = find_sequence(
            t,
            cache_seqlens,
            stride_length,
            batch,
            heads,
            query_len,
            window_left,
            BLOCK_N,
            SEQUENCES,
        )
    else:
        item = program // launched
        b = item // heads
        base = item % heads
        length = tl.load(cache_seqlens + b.to(tl.int64) * stride_length)
        _, _, count = tile_range(length, query_len, window_left, BLOCK_N)
        part = tl.cdiv(count, launched)
        t = (program % launched) * part
        stop = tl.minimum(t + part, count)
    return t, stop, b, base


@triton.jit
def next_work(
    t,
    stop,
    b,
    base,
    cache_seqlens,
    stride_length,
    heads,
    query_len,
    window_left,
    launched,
    BALANCED: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """The run of tiles of one item at t: its sequence, item, tiles, and slot of the workspace.

    Balanced, a program leaves at most two partial results: of an item that began before it (slot
    0), and of one that goes on after it (slot 1).
    """
    program = tl.program_id(0)
    length = tl.load(cache_seqlens + b.to(tl.int64) * stride_length)
    _, _, count = tile_range(length, query_len, window_left, BLOCK_N)
    if BALANCED:
        while t >= (base + count) * heads:
            base += count
            b += 1
            length = tl.load(cache_seqlens + b.to(tl.int64) * stride_length)
            _, _, count = tile_range(length, query_len, window_left, BLOCK_N)
        item = (t - base * heads) // count
        begin = (t - base * heads) % count
        end = tl.minimum(count, begin + stop - t)
        slot = 2 * program + (begin == 0).to(tl.int32)
    else:
        item = base
        begin = t
        end = stop
        slot = program
    whole = (begin == 0) & (end == count)
    return b, base, item, begin, end, length, slot.to(tl.int64), whole


@triton.jit
def item_rows(
    item,
    length,
    query_len,
    GROUP: tl.constexpr,
    ROW_BLOCKS: tl.constexpr,
    BLOCK_M: tl.constexpr,
):
    """The cached head of an item, its query rows, which of them there are, and their positions.

    Row r is the query token ``r // GROUP`` and the head ``r % GROUP`` of those of the cached head.
    """
    head = (item // ROW_BLOCKS).to(tl.int64)
    row = item % ROW_BLOCKS * BLOCK_M + tl.arange(0, BLOCK_M)
    return head, row, row < query_len * GROUP, length - query_len + row // GROUP


@triton.jit
def combine_kernel(
    partial_out,
    partial_sums,
    out,
    lse,
    cache_seqlens,
    stride_length,
    batch,
    query_len,
    window_left,
    launched,
    KV_HEADS: tl.constexpr,
    GROUP: tl.constexpr,
    ROW_BLOCKS: tl.constexpr,
    ROWS: tl.constexpr,
    WIDTH: tl.constexpr,
    VALUE_DIM: tl.constexpr,
    BALANCED: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
    PARTS: tl.constexpr,
    SEQUENCES: tl.constexpr,
    MIN_TILES: tl.constexpr,
):
    """``ROWS`` query rows of an item, ``BLOCK_D`` columns: merges the parts that programs left."""
    heads = KV_HEADS * ROW_BLOCKS
    blocks = BLOCK_M // ROWS
    item = tl.program_id(0) // blocks
    i = tl.program_id(0) % blocks * ROWS + tl.arange(0, ROWS)
    b = item // heads
    row = item % ROW_BLOCKS * BLOCK_M + i
    real = row < query_len * GROUP
    length = tl.load(cache_seqlens + b.to(tl.int64) * stride_length)
    _, _, count = tile_range(length, query_len, window_left, BLOCK_N)
    if BALANCED:
        total, earlier = total_tiles(
            cache_seqlens, stride_length, batch, b, query_len, window_left, BLOCK_N, SEQUENCES
        )
        chunk = chunk_of(total * heads, launched, MIN_TILES)
        begin = earlier * heads + item % heads * count
        first = begin // chunk
        parts = (begin + count - 1) // chunk - first + 1
    else:
        first = item * launched
        parts = tl.cdiv(count, tl.cdiv(count, launched))
    if parts == 1:
        return
    m = tl.full([ROWS], float("-inf"), tl.float32)
    for p in range(0, parts, PARTS):
        part, slot = part_slots(p, first, BALANCED, PARTS)
        # [PARTS, ROWS]
        sums = partial_sums + (slot * (2 * BLOCK_M))[:, None] + i[None, :]
        mask = (part < parts)[:, None] & real[None, :]
        m = tl.maximum(m, tl.max(tl.load(sums, mask=mask, other=float("-inf")), 0))
    base = tl.where(m == float("-inf"), 0.0, m)
    d = tl.program_id(1) * BLOCK_D + tl.arange(0, BLOCK_D)
    l = tl.zeros([ROWS], tl.float32)
    acc = tl.zeros([ROWS, BLOCK_D], tl.float32)
    for p in range(0, parts, PARTS):
        part, slot = part_slots(p, first, BALANCED, PARTS)
        sums = partial_sums + (slot * (2 * BLOCK_M))[:, None] + i[None, :]
        mask = (part < parts)[:, None] & real[None, :]
        weight = tl.exp2(tl.load(sums, mask=mask, other=float("-inf")) - base[None, :])
        l += tl.sum(weight * tl.load(sums + BLOCK_M, mask=mask, other=0.0), 0)
        # [PARTS, ROWS, BLOCK_D]
        rows = ((slot * BLOCK_M)[:, None] + i[None, :]) * WIDTH
        pointers = partial_out + rows[:, :, None] + d[None, None, :]
        mask = mask[:, :, None] & (d < VALUE_DIM)[None, None, :]
        acc += tl.sum(weight[:, :, None] * tl.load(pointers, mask=mask, other=0.0), 0)
    result = acc / tl.where(l == 0.0, 1.0, l)[:, None]
    at = b.to(tl.int64) * query_len + row // GROUP
    at = at * (KV_HEADS * GROUP) + item % heads // ROW_BLOCKS * GROUP + row % GROUP
    pointers = out + at[:, None] * VALUE_DIM + d[None, :]
    mask = real[:, None] & (d < VALUE_DIM)[None, :]
    tl.store(pointers, result.to(out.dtype.element_ty), mask=mask)
    tl.store(lse + at, natural_lse(m, l), mask=real & (tl.program_id(1) == 0))


@triton.jit
def part_slots(p, first, BALANCED: tl.constexpr, PARTS: tl.constexpr):
    """The ``PARTS`` parts of an item from p on, and their slots; ``first`` is that of part 0.

    Balanced, ``first`` is the program of part 0, which left it in its slot 1, and every later
    program its own in slot 0.
    """
    part = p + tl.arange(0, PARTS)
    slot = 2 * (first + part) + (part == 0).to(tl.int32) if BALANCED else first + part
    return part, slot.to(tl.int64)


class Splits:
    """The grid and the workspace of a call, from shapes alone."""

    def __init__(
        self,
        q: Tensor,
        cache: Tensor,
        cache_seqlens: Tensor,
        capacity: int,
        window_left: int,
        num_splits: int,
        width: int,
        config: DecodeConfig,
    ) -> None:
        """``capacity``: tokens that a row of the table can hold; ``width``: columns of a part."""
        batch, query_len, heads, _ = q.shape
        kv_heads = cache.shape[2]
        self.group, self.kv_heads = heads // kv_heads, kv_heads
        self.row_blocks = -(-query_len * self.group // config.block_m)
        self.items = batch * kv_heads * self.row_blocks
        self.width, self.config = width, config
        tiles = max(-(-capacity // config.block_n), 1)
        self.balanced = num_splits == 0
        if self.balanced:
            # More programs than tiles would find none; the workspace has two slots a program.
            programs = processors(q) * config.programs
            self.launched = min(programs, max(self.items * tiles, 1))
            self.grid, slots = (self.launched,), 2 * self.launched
        else:
            # No item has more tiles, and with as many parts as tiles or more a part is one tile.
            self.launched = min(num_splits, tiles)
            self.grid = (self.items * self.launched,)
            slots = self.items * self.launched if self.launched > 1 else 0
        self.partial_out = q.new_empty(slots, config.block_m, width, dtype=torch.float32)
        self.partial_sums = q.new_empty(slots, 2, config.block_m, dtype=torch.float32)
        self.lengths = (cache_seqlens, cache_seqlens.stride(0), batch, query_len, window_left)
        self.lengths += (self.launched,)
        self.constants = {
            "KV_HEADS": kv_heads,
            "GROUP": self.group,
            "ROW_BLOCKS": self.row_blocks,
            "WIDTH": width,
            "BALANCED": self.balanced,
            "BLOCK_M": config.block_m,
            "BLOCK_N": config.block_n,
            "SEQUENCES": SEQUENCES,
            "MIN_TILES": MIN_TILES,
        }

    def combine(self, out: Tensor, lse: Tensor) -> None:
        """Merges what the programs left; nothing to do where no item is cut."""
        if self.launched == 1:
            return
        value_dim = out.shape[-1]
        block_d = min(128, max(16, next_power_of_2(value_dim)))
        rows = self.config.block_m if INTERPRETED else 1
        grid = (self.items * self.config.block_m // rows, -(-value_dim // block_d))
        combine_kernel[grid](
            self.partial_out,
            self.partial_sums,
            out,
            lse,
            *self.lengths,
            ROWS=rows,
            VALUE_DIM=value_dim,
            BLOCK_D=block_d,
            PARTS=PARTS,
            num_warps=4,
            **self.constants,
        )
