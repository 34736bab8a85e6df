"""Micro-kernels, one for each rule of Hopper's asynchrony, right and wrong.

``WRONG`` chooses the wrong one. Comments ``# <name>`` mark the lines that a report must name.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import (
    async_copy,
    fence_async_shared,
    mbarrier,
    tma,
    warpgroup_mma,
    warpgroup_mma_wait,
)
from triton.experimental.gluon.nvidia.hopper import TensorDescriptor

from ridgeline.ops.common.gluon import async_reduce_add
from ridgeline.testing import gluon as interp

N = gl.constexpr(64)
ROWS = gl.constexpr(gl.BlockedLayout([1, 8], [4, 8], [4, 1], [1, 0]))
FLAT = gl.constexpr(gl.BlockedLayout([1], [32], [4], [0]))
FLAT_1 = gl.constexpr(gl.BlockedLayout([2], [32], [1], [0]))
LINE = gl.constexpr(gl.SwizzledSharedLayout(1, 1, 1, [0]))
TILE = gl.constexpr(gl.NVMMASharedLayout(128, 16))
TILE_8 = gl.constexpr(gl.NVMMASharedLayout(64, 8))
ACC_8 = gl.constexpr(gl.NVMMADistributedLayout([3, 0], [4, 1], [16, 64, 32]))
ACC = gl.constexpr(gl.NVMMADistributedLayout([3, 0], [4, 1], [16, 64, 16]))


@gluon.jit
def barriers(COUNT: gl.constexpr, ARRIVALS: gl.constexpr):
    bars = gl.allocate_shared_memory(gl.int64, [COUNT, 1], mbarrier.MBarrierLayout())
    for i in gl.static_range(COUNT):
        mbarrier.init(bars.index(i), ARRIVALS)
    return bars


@gluon.jit
def tile_offsets():
    rows = gl.arange(0, N, gl.SliceLayout(1, ROWS))
    columns = gl.arange(0, N, gl.SliceLayout(0, ROWS))
    return rows[:, None] * N + columns[None, :]


@gluon.jit
def load_tile(desc, i, bar, tile):
    mbarrier.expect(bar, desc.block_type.nbytes)
    tma.async_copy_global_to_shared(desc, [i * N, 0], bar, tile)  # load


# ---------------------------------------------------------------- mbarriers and TMA loads


@gluon.jit
def _fill(desc, tiles, full, empty, count, WRONG: gl.constexpr):
    for i in range(count):
        phase = (i // 2) & 1
        if WRONG == 1:
            mbarrier.wait(empty.index(i % 2), phase)  # wait empty
        if WRONG != 1 and WRONG != 2:
            mbarrier.wait(empty.index(i % 2), phase ^ 1)
        load_tile(desc, i, full.index(i % 2), tiles.index(i % 2))


@gluon.jit
def _drain(out, tiles, full, empty, count, WRONG: gl.constexpr):
    for i in range(count):
        if WRONG == 3:
            mbarrier.wait(full.index(i % 2), ((i // 2) & 1) ^ 1)
        elif WRONG != 4:
            mbarrier.wait(full.index(i % 2), (i // 2) & 1)  # wait full
        x = tiles.index(i % 2).load(ROWS)  # read
        if WRONG != 5:
            mbarrier.arrive(empty.index(i % 2))
        if WRONG == 6:
            mbarrier.arrive(empty.index(i % 2))  # arrive again
        gl.store(out + i * N * N + tile_offsets(), x)


@gluon.jit
def ring(desc, out, count, WRONG: gl.constexpr):
    tiles = gl.allocate_shared_memory(gl.bfloat16, [2, N, N], desc.layout)
    full = barriers(2, 1)
    empty = barriers(2, 1)
    gl.warp_specialize(
        [
            (_drain, (out, tiles, full, empty, count, WRONG)),
            (_fill, (desc, tiles, full, empty, count, WRONG)),
        ],
        [1],
        [24],
    )


@gluon.jit
def expected_bytes(desc, out, EXTRA: gl.constexpr):
    tile = gl.allocate_shared_memory(gl.bfloat16, [N, N], desc.layout)
    bar = barriers(1, 1).index(0)
    mbarrier.expect(bar, desc.block_type.nbytes + EXTRA)
    tma.async_copy_global_to_shared(desc, [0, 0], bar, tile)
    mbarrier.wait(bar, 0)  # wait for bytes
    gl.store(out + tile_offsets(), tile.load(ROWS))


@gluon.jit
def initialised(desc, out, WRONG: gl.constexpr):
    tile = gl.allocate_shared_memory(gl.bfloat16, [N, N], desc.layout)
    bar = gl.allocate_shared_memory(gl.int64, [1], mbarrier.MBarrierLayout())
    if WRONG != 1:
        mbarrier.init(bar, 1)
    if WRONG == 2:
        mbarrier.init(bar, 1)  # init again
    load_tile(desc, 0, bar, tile)
    mbarrier.wait(bar, 0)
    if WRONG == 3:
        load_tile(desc, 0, bar, tile)
        mbarrier.invalidate(bar)  # invalidate
    gl.store(out + tile_offsets(), tile.load(ROWS))


@gluon.jit
def padded(desc, out, row, column, WRONG: gl.constexpr):
    tile = gl.allocate_shared_memory(gl.bfloat16, [N, N], desc.layout)
    bar = barriers(1, 1).index(0)
    mbarrier.expect(bar, desc.block_type.nbytes)
    tma.async_copy_global_to_shared(desc, [row, column], bar, tile)  # box
    mbarrier.wait(bar, 0)
    gl.store(out + tile_offsets(), tile.load(ROWS))


@gluon.jit
def unwritten(out, WRONG: gl.constexpr):
    line = gl.allocate_shared_memory(gl.float32, [128], LINE)
    if WRONG == 0:
        line.store(gl.full([128], 2.0, gl.float32, FLAT))
    x = line.load(FLAT)  # read line
    gl.store(out + gl.arange(0, 128, FLAT), x.to(gl.bfloat16))


# ---------------------------------------------------------------- TMA stores


@gluon.jit
def stored(src, desc, WRONG: gl.constexpr):
    tile = gl.allocate_shared_memory(gl.bfloat16, [N, N], desc.layout)
    tile.store(gl.load(src + tile_offsets()))  # fill
    if WRONG != 1:
        fence_async_shared()
    tma.async_copy_shared_to_global(desc, [0, 0], tile)  # out
    if WRONG == 2:
        tile.store(gl.zeros([N, N], gl.bfloat16, ROWS))  # overwrite
    if WRONG != 3:
        tma.store_wait(0)


@gluon.jit
def summed(src, desc, WRONG: gl.constexpr):
    tile = gl.allocate_shared_memory(gl.bfloat16, [N, N], desc.layout)
    tile.store(gl.load(src + tile_offsets()))
    if WRONG != 1:
        fence_async_shared()
    if WRONG == 2:
        tma.async_copy_shared_to_global(desc, [0, 0], tile)  # no sum
    else:
        async_reduce_add(desc, [0, 0], tile)  # sum
    tma.store_wait(0)


# ---------------------------------------------------------------- wgmma


@gluon.jit
def product(a_ptr, b_ptr, out, WRONG: gl.constexpr):
    a = gl.allocate_shared_memory(gl.bfloat16, [N, N], TILE)
    b = gl.allocate_shared_memory(gl.bfloat16, [N, N], TILE)
    a.store(gl.load(a_ptr + tile_offsets()))
    b.store(gl.load(b_ptr + tile_offsets()))
    if WRONG != 1:
        fence_async_shared()
    acc = gl.zeros([N, N], gl.float32, ACC)
    acc = warpgroup_mma(a, b, acc, is_async=True)  # multiply
    if WRONG == 2:
        b.store(gl.zeros([N, N], gl.bfloat16, ROWS))  # overwrite b
    acc = warpgroup_mma_wait(1 if WRONG == 3 else 0, [acc])
    gl.store(out + tile_offsets(), gl.convert_layout(acc, ROWS))  # use


@gluon.jit
def register_operand(a_ptr, b_ptr, out, WRONG: gl.constexpr):
    b = gl.allocate_shared_memory(gl.bfloat16, [N, N], TILE)
    b.store(gl.load(b_ptr + tile_offsets()))
    fence_async_shared()
    operand: gl.constexpr = gl.DotOperandLayout(0, ACC, 2)
    a = gl.convert_layout(gl.load(a_ptr + tile_offsets()), operand)
    acc = gl.zeros([N, N], gl.float32, ACC)
    acc = warpgroup_mma(a, b, acc, is_async=True)  # multiply registers
    if WRONG:
        acc = warpgroup_mma_wait(0, [acc])  # wait without a
    else:
        acc, a = warpgroup_mma_wait(0, [acc, a])
    gl.store(out + tile_offsets(), gl.convert_layout(acc, ROWS))


@gluon.jit
def fp8_product(a_ptr, b_ptr, out, WRONG: gl.constexpr):
    """a @ b.T: both operands lie contiguous along K."""
    a = gl.allocate_shared_memory(gl.float8e4nv, [N, N], TILE_8)
    b = gl.allocate_shared_memory(gl.float8e4nv, [N, N], TILE_8)
    a.store(gl.load(a_ptr + tile_offsets()))
    b.store(gl.load(b_ptr + tile_offsets()))
    if WRONG == 0:
        fence_async_shared()
    acc = gl.zeros([N, N], gl.float32, ACC_8)
    acc = warpgroup_mma(a, b.permute((1, 0)), acc)  # multiply fp8
    gl.store(out + tile_offsets(), gl.convert_layout(acc, ROWS))


# ---------------------------------------------------------------- cp.async


@gluon.jit
def grouped(src, out, WRONG: gl.constexpr):
    tiles = gl.allocate_shared_memory(gl.bfloat16, [2, N, N], TILE)
    for i in gl.static_range(2):
        pointers = src + i * N * N + tile_offsets()
        async_copy.async_copy_global_to_shared(tiles.index(i), pointers)  # copy
        if WRONG != 1:
            async_copy.commit_group()
    async_copy.wait_group(1)
    gl.store(out + tile_offsets(), tiles.index(0).load(ROWS))  # first
    if WRONG != 2:
        async_copy.wait_group(0)
    gl.store(out + N * N + tile_offsets(), tiles.index(1).load(ROWS))  # second


@gluon.jit
def masked(src, out, rows, WRONG: gl.constexpr):
    tile = gl.allocate_shared_memory(gl.bfloat16, [N, N], TILE)
    offsets = tile_offsets()
    async_copy.async_copy_global_to_shared(tile, src + offsets, mask=offsets < rows * N)
    async_copy.commit_group()
    async_copy.wait_group(0)
    gl.store(out + offsets, tile.load(ROWS))


@gluon.jit
def _copy_and_signal(src, tile, bar, WRONG: gl.constexpr):
    offsets = gl.arange(0, N, FLAT_1)
    for i in gl.static_range(4):
        async_copy.async_copy_global_to_shared(tile.index(i), src + i * N + offsets)
    if WRONG == 1:
        async_copy.mbarrier_arrive(bar, increment_count=True)  # arrive counted
    elif WRONG != 2:
        async_copy.mbarrier_arrive(bar, increment_count=False)


@gluon.jit
def _wait_and_read(out, tile, bar, WRONG: gl.constexpr):
    if WRONG != 3:
        mbarrier.wait(bar, 0)  # wait for copies
    offsets = gl.arange(0, N, gl.BlockedLayout([1], [32], [4], [0]))
    for i in gl.static_range(4):
        gl.store(out + i * N + offsets, tile.index(i).load(FLAT))  # read copy


@gluon.jit
def signalled(src, out, WRONG: gl.constexpr):
    tile = gl.allocate_shared_memory(gl.float32, [4, N], LINE)
    bar = barriers(1, 32).index(0)
    gl.warp_specialize(
        [
            (_wait_and_read, (out, tile, bar, WRONG)),
            (_copy_and_signal, (src, tile, bar, WRONG)),
        ],
        [1],
        [24],
    )


@gluon.jit
def copied_product(a_ptr, b_ptr, out, WRONG: gl.constexpr):
    a = gl.allocate_shared_memory(gl.bfloat16, [N, N], TILE)
    b = gl.allocate_shared_memory(gl.bfloat16, [N, N], TILE)
    async_copy.async_copy_global_to_shared(a, a_ptr + tile_offsets())
    async_copy.async_copy_global_to_shared(b, b_ptr + tile_offsets())
    async_copy.commit_group()
    async_copy.wait_group(0)
    if WRONG == 0:
        fence_async_shared()
    acc = gl.zeros([N, N], gl.float32, ACC)
    acc = warpgroup_mma(a, b, acc)  # multiply copies
    gl.store(out + tile_offsets(), gl.convert_layout(acc, ROWS))


# ---------------------------------------------------------------- partitions, global memory


@gluon.jit
def _give(line, bar):
    line.store(gl.full([N], 3.0, gl.float32, FLAT_1))  # give
    mbarrier.arrive(bar)


@gluon.jit
def _take(out, line, bar, WRONG: gl.constexpr):
    if WRONG == 0:
        mbarrier.wait(bar, 0)
    gl.store(out + gl.arange(0, N, FLAT), line.load(FLAT))  # take


@gluon.jit
def handed_over(out, WRONG: gl.constexpr):
    line = gl.allocate_shared_memory(gl.float32, [N], LINE)
    bar = barriers(1, 1).index(0)
    gl.warp_specialize([(_take, (out, line, bar, WRONG)), (_give, (line, bar))], [1], [24])


@gluon.jit
def last_block_sums(parts, counter, out, WRONG: gl.constexpr):
    """Each block stores a part; the last to arrive adds them up."""
    pid = gl.program_id(0)
    blocks = gl.num_programs(0)
    offsets = gl.arange(0, 128, FLAT)
    value = gl.full([128], 1.0, gl.float32, FLAT) * (pid + 1)
    gl.store(parts + pid * 128 + offsets, value)  # part
    if WRONG != 1:
        gl.thread_barrier()
    sem: gl.constexpr = "relaxed" if WRONG == 2 else "acq_rel"
    before = gl.atomic_add(counter, 1, sem=sem)
    if before == blocks - 1:
        total = gl.zeros([128], gl.float32, FLAT)
        for i in range(blocks):
            total += gl.load(parts + i * 128 + offsets)  # add up
        gl.store(out + offsets, total)


@gluon.jit
def gathered(src, out, first, WRONG: gl.constexpr):
    offsets = first + gl.arange(0, 128, FLAT)
    x = gl.load(src + offsets)  # gather
    gl.store(out + gl.arange(0, 128, FLAT), x)


@gluon.jit
def prefetched(src, out, bytes, WRONG: gl.constexpr):
    gl.inline_asm_elementwise(  # prefetch
        "{ .reg .pred p; setp.ne.b32 p, $3, 0; "
        "@p cp.async.bulk.prefetch.L2.global [$1], $2; } mov.u32 $0, 0;",
        "=r,l,r,r",
        [src, bytes, 1],
        dtype=gl.int32,
        is_pure=False,
        pack=1,
    )
    offsets = gl.arange(0, 128, FLAT)
    gl.store(out + offsets, gl.load(src + offsets))


# ---------------------------------------------------------------- how to call them


def tile(rows: int = 64, columns: int = 64, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(rows, columns, generator=generator).bfloat16()


def descriptor(tensor: torch.Tensor, padding: str = "zero") -> TensorDescriptor:
    return TensorDescriptor.from_tensor(tensor, [64, 64], TILE.value, padding)


@dataclass(frozen=True)
class Rule:
    """A kernel, its arguments as a function of nothing, what is right, and its wrong variants:
    the value of ``WRONG``, the class of the report, the marks of lines it must name."""

    kernel: Any
    arguments: Callable[[], tuple]
    out: int  # which argument holds the result
    expected: Callable[[tuple], torch.Tensor]
    wrong: tuple[tuple[int, type, str], ...]
    grid: tuple[int, ...] = (1,)


def _as_double(x: Any) -> torch.Tensor:
    return (x.base if isinstance(x, TensorDescriptor) else x).double()


def _ring_arguments() -> tuple:
    k = tile(5 * 64)
    return descriptor(k), torch.zeros_like(k), 5


def _products() -> tuple:
    return tile(seed=1), tile(seed=2), torch.zeros(64, 64)


def _matmul(args: tuple) -> torch.Tensor:
    return args[0].double() @ args[1].double()


RULES = {
    "ring": Rule(ring, _ring_arguments, 1, lambda a: a[0].base, (
        (1, interp.DeadlockError, "# wait empty"),
        (2, interp.GluonError, ""),
        (3, interp.GluonError, ""),
        (4, interp.GluonError, "# read"),
        (5, interp.DeadlockError, "# wait full"),
        (6, interp.BarrierError, ""),
    )),
    "bytes": Rule(
        expected_bytes, lambda: (descriptor(tile()), torch.zeros(64, 64).bfloat16()), 1,
        lambda a: a[0].base,
        ((16, interp.DeadlockError, "# wait for bytes"), (-16, interp.BarrierError, "")),
    ),
    "init": Rule(
        initialised, lambda: (descriptor(tile()), torch.zeros(64, 64).bfloat16()), 1,
        lambda a: a[0].base,
        (
            (1, interp.BarrierError, "mbarrier.expect"),
            (2, interp.BarrierError, "# init again"),
            (3, interp.RaceError, "# invalidate"),
        ),
    ),
    "unwritten": Rule(
        unwritten, lambda: (torch.zeros(128).bfloat16(),), 0, lambda a: torch.full((128,), 2.0),
        ((1, interp.UnwrittenReadError, "# read line"),),
    ),
    "store": Rule(
        stored, lambda: (tile(), descriptor(torch.zeros(64, 64).bfloat16())), 1, lambda a: a[0],
        (
            (1, interp.MissingFenceError, "# out"),
            (2, interp.RaceError, "# overwrite"),
            (3, interp.InFlightError, "# out"),
        ),
    ),
    "reduce": Rule(
        summed, lambda: (torch.ones(64, 64).bfloat16(), descriptor(torch.zeros(64, 64).bfloat16())),
        1, lambda a: torch.full((64, 64), 3.0),
        ((1, interp.MissingFenceError, "# sum"), (2, interp.RaceError, "# no sum")), grid=(3,),
    ),
    "wgmma": Rule(product, _products, 2, _matmul, (
        (1, interp.MissingFenceError, "# multiply"),
        (2, interp.RaceError, "# overwrite b"),
        (3, interp.InFlightError, "# use"),
    )),
    "wgmma-fp8": Rule(
        fp8_product,
        lambda: (*[tile(seed=s).to(torch.float8_e4m3fn) for s in (1, 2)], torch.zeros(64, 64)),
        2,
        lambda a: a[0].double() @ a[1].double().T,
        ((1, interp.MissingFenceError, "# multiply fp8"),),
    ),
    "register-operand": Rule(
        register_operand, _products, 2, _matmul, ((1, interp.InFlightError, "# wait without a"),)
    ),
    "cp.async-groups": Rule(
        grouped, lambda: (tile(128), torch.zeros(128, 64).bfloat16()), 1, lambda a: a[0],
        ((1, interp.RaceError, "# first"), (2, interp.RaceError, "# second")),
    ),
    "cp.async-barrier": Rule(
        signalled, lambda: (torch.randn(4, 64), torch.zeros(4, 64)), 1, lambda a: a[0],
        (
            (1, interp.DeadlockError, "# wait for copies"),
            (2, interp.InFlightError, "async_copy_global_to_shared(tile"),
            (3, interp.GluonError, "# read copy"),
        ),
    ),
    "cp.async-wgmma": Rule(
        copied_product, _products, 2, _matmul,
        ((1, interp.MissingFenceError, "# multiply copies"),),
    ),
    "partitions": Rule(
        handed_over, lambda: (torch.zeros(64),), 0, lambda a: torch.full((64,), 3.0),
        ((1, interp.GluonError, "# take"),),
    ),
    "last-block": Rule(
        last_block_sums,
        lambda: (torch.zeros(3, 128), torch.zeros(1, dtype=torch.int32), torch.zeros(128)), 2,
        lambda a: torch.full((128,), 6.0),
        ((1, interp.RaceError, "# add up"), (2, interp.RaceError, "# add up")), grid=(3,),
    ),
}  # fmt: skip
