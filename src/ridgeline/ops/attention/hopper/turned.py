"""Values as FP8 products read them: keys side by side, in the order in which threads have them.

wgmma takes FP8 operands along K alone, which for values are keys. As the result of one product a
thread has, of 16 columns, 2t, 2t + 1, 2t + 8 and 2t + 9; as operand A of the next it needs four
that are neighbours. So each 16 keys are in that order, and probabilities stay where they are.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from ridgeline.ops.attention.tiles import SEQUENCES, Problem, find_tile
from ridgeline.ops.common.device import next_power_of_2

UNIT = tl.constexpr(16)  # keys that change places
BLOCK = 128  # keys of a program


@triton.jit
def turn_kernel(
    v,
    turned,
    cu_k,
    stride_cuk,
    batch,
    key_len,
    stride_b,
    stride_l,
    stride_h,
    length,
    DIM: tl.constexpr,
    WIDTH: tl.constexpr,
    BLOCK: tl.constexpr,
    PACKED: tl.constexpr,
    SEQUENCES: tl.constexpr,
):
    """Bytes of ``v [B, L, h, d]`` or packed to ``turned [B, h, d, length]``; zeros behind them."""
    b, block, start, count = find_tile(
        tl.program_id(0), cu_k, stride_cuk, batch, key_len, 1, BLOCK, PACKED, SEQUENCES
    )
    head = tl.program_id(1).to(tl.int64)
    place = block * BLOCK + tl.arange(0, BLOCK)
    inner = place % UNIT
    key = place - inner + inner % 4 // 2 * 8 + inner // 4 * 2 + inner % 2
    d = tl.arange(0, WIDTH)
    wide = b.to(tl.int64)
    rows = v + wide * stride_b + head * stride_h + (start + key) * stride_l
    mask = (key < count)[:, None] & (d < DIM)[None, :]
    x = tl.load(rows[:, None] + d[None, :], mask=mask, other=0)
    if PACKED:
        first = (start // UNIT + wide) * UNIT
        room = ((start + count) // UNIT + wide + 1) * UNIT - first
        base = turned + head * DIM * length + first
    else:
        room = length
        base = turned + (wide * tl.num_programs(1) + head) * DIM * length
    pointers = base + d.to(tl.int64)[:, None] * length + place[None, :]
    tl.store(pointers, tl.trans(x), mask=(d < DIM)[:, None] & (place < room)[None, :])


def turned(v: Tensor, problem: Problem) -> Tensor:
    """``[B, h, d, length]``, or of packed values ``[1, h, d, length]``.

    Packed, keys of sequence b begin at ``(cu_seqlens_k[b] // 16 + b) * 16``: room for all, whatever
    the lengths, in whole groups of 16.
    """
    unit = UNIT.value
    total, heads, dim = v.shape[-3:]
    batch = 1 if problem.packed else problem.batch
    length = (total // unit + problem.batch) * unit if problem.packed else -(-total // unit) * unit
    out = torch.empty(batch, heads, dim, length, dtype=v.dtype, device=v.device)
    turn_kernel[(problem.tiles(total, BLOCK), heads)](
        v.view(torch.uint8),
        out.view(torch.uint8),
        problem.cu_k,
        problem.layout[3],
        problem.batch,
        total,
        *problem.strides(v),
        length,
        DIM=dim,
        WIDTH=next_power_of_2(dim),
        BLOCK=BLOCK,
        PACKED=problem.packed,
        SEQUENCES=SEQUENCES,
        num_warps=4,
    )
    return out
