"""What the Hopper backward computes row by row: its numbers before, dQ from its sums after.

A line is a query row of a head, where a sequence's rows begin a tile: ``lines`` of them a head, in
the order of tiles that ``find_tile`` counts. A tile then never has rows of two sequences, and the
tensor memory unit reads and adds to whole tiles.
"""

import triton
import triton.language as tl

from ridgeline.ops.attention.tiles import (
    delta_and_shift,
    find_tile,
    head_offset,
    load_columns,
    output_rows,
)
from ridgeline.ops.common.triton import store_columns


@triton.jit
def find_lines(
    cu_q,
    stride_cuq,
    batch,
    query_len,
    HEADS: tl.constexpr,
    PACKED: tl.constexpr,
    SEQUENCES: tl.constexpr,
    BLOCK_M: tl.constexpr,
):
    """Lines of a program's tile and head; their sequence, where it starts, rows, whether real, and
    index in a contiguous ``[..., HEADS]``."""
    head = tl.program_id(1)
    b, block, start, length = find_tile(
        tl.program_id(0), cu_q, stride_cuq, batch, query_len, 1, BLOCK_M, PACKED, SEQUENCES
    )
    i = tl.arange(0, BLOCK_M)
    line = (head * tl.num_programs(0) + tl.program_id(0)).to(tl.int64) * BLOCK_M + i
    row = block * BLOCK_M + i
    index = output_rows(row, b, start, head, query_len, HEADS, 1, PACKED)
    return line, b, start, row, row < length, index


@triton.jit
def prepare_kernel(
    dout,
    dlse,
    out,
    lse,
    delta,
    shift,
    cu_q,
    stride_cuq,
    batch,
    query_len,
    stride_db,
    stride_dl,
    stride_dh,
    HEADS: tl.constexpr,
    VALUE_DIM: tl.constexpr,
    WIDTH: tl.constexpr,
    PACKED: tl.constexpr,
    SEQUENCES: tl.constexpr,
    BLOCK_M: tl.constexpr,
):
    """``delta`` and ``shift`` of the lines of a tile and head."""
    line, b, start, row, real, index = find_lines(
        cu_q, stride_cuq, batch, query_len, HEADS, PACKED, SEQUENCES, BLOCK_M
    )
    rows = dout + head_offset(b, start, tl.program_id(1), stride_db, stride_dl, stride_dh)
    rows += row.to(tl.int64) * stride_dl
    row_delta, row_shift = delta_and_shift(rows, out, dlse, lse, index, real, VALUE_DIM, WIDTH)
    tl.store(delta + line, row_delta)
    tl.store(shift + line, row_shift)


@triton.jit
def finish_kernel(
    sums,
    dq,
    cu_q,
    stride_cuq,
    batch,
    query_len,
    scale,
    HEADS: tl.constexpr,
    DIM: tl.constexpr,
    SUMMED: tl.constexpr,
    WIDTH: tl.constexpr,
    PACKED: tl.constexpr,
    SEQUENCES: tl.constexpr,
    BLOCK_M: tl.constexpr,
):
    """dQ of a tile and head, from sums of ``SUMMED`` columns."""
    line, _, _, _, real, index = find_lines(
        cu_q, stride_cuq, batch, query_len, HEADS, PACKED, SEQUENCES, BLOCK_M
    )
    total = load_columns(sums + line * SUMMED, real, 0, WIDTH, DIM)
    store_columns(dq + index * DIM, total * scale, real, 0, WIDTH, DIM)
