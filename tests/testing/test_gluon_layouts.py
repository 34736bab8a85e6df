"""What the compiler refuses, the interpreter refuses: layouts, shapes, run-time constants."""

import pytest
import torch
from triton.compiler.errors import CompilationError
from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import (
    mbarrier,
    tma,
    warpgroup_mma,
    warpgroup_mma_wait,
)
from triton.experimental.gluon.nvidia.hopper import TensorDescriptor

from ridgeline.testing import gluon as interp
from ridgeline.testing.gluon_aot import compiled, launch

ROWS = gl.constexpr(gl.BlockedLayout([1, 8], [4, 8], [4, 1], [1, 0]))
FLAT = gl.constexpr(gl.BlockedLayout([1], [32], [4], [0]))
TILE = gl.constexpr(gl.NVMMASharedLayout(128, 16))
BYTES = gl.constexpr(gl.NVMMASharedLayout(64, 8))
LINE = gl.constexpr(gl.SwizzledSharedLayout(1, 1, 1, [0]))
ACC = gl.constexpr(gl.NVMMADistributedLayout([3, 0], [4, 1], [16, 64, 16]))
ACC_8 = gl.constexpr(gl.NVMMADistributedLayout([3, 0], [4, 1], [16, 64, 32]))


@gluon.jit
def other_slice(desc, out, n):
    rows = gl.arange(0, 64, gl.SliceLayout(1, ROWS))
    gl.store(out + rows[None, :], 1.0)


@gluon.jit
def no_slice(desc, out, n):
    gl.store(out + gl.arange(0, 64, FLAT)[:, None], 1.0)


@gluon.jit
def added_across_layouts(desc, out, n):
    rows = gl.arange(0, 64, gl.SliceLayout(1, ROWS))
    gl.store(out + rows, (rows + gl.arange(0, 64, FLAT)).to(gl.float32))


@gluon.jit
def stored_across_layouts(desc, out, n):
    value = gl.zeros([64], gl.float32, gl.SliceLayout(1, ROWS))
    gl.store(out + gl.arange(0, 64, FLAT), value)


@gluon.jit
def masked_across_layouts(desc, out, n):
    mask = gl.arange(0, 64, gl.SliceLayout(1, ROWS)) < n
    gl.store(out + gl.arange(0, 64, FLAT), gl.zeros([64], gl.float32, FLAT), mask=mask)


@gluon.jit
def no_power_of_two(desc, out, n):
    gl.store(out + gl.arange(0, 48, FLAT), 1.0)


@gluon.jit
def shape_of_the_run(desc, out, n):
    gl.store(out + gl.arange(0, 64, FLAT), gl.zeros([n], gl.float32, FLAT))


@gluon.jit
def slice_of_the_run(desc, out, n):
    line = gl.allocate_shared_memory(gl.float32, [128], LINE)
    line.slice(n, 64).store(gl.zeros([64], gl.float32, FLAT))


@gluon.jit
def other_type_in_shared_memory(desc, out, n):
    line = gl.allocate_shared_memory(gl.float32, [64], LINE)
    line.store(gl.zeros([64], gl.bfloat16, FLAT))


@gluon.jit
def other_shape_in_shared_memory(desc, out, n):
    line = gl.allocate_shared_memory(gl.float32, [128], LINE)
    line.store(gl.zeros([64], gl.float32, FLAT))


@gluon.jit
def product_of_few_rows(desc, out, n):
    a = gl.allocate_shared_memory(gl.bfloat16, [32, 64], TILE)
    b = gl.allocate_shared_memory(gl.bfloat16, [64, 64], TILE)
    acc = warpgroup_mma(a, b, gl.zeros([32, 64], gl.float32, ACC), is_async=True)
    acc = warpgroup_mma_wait(0, [acc])


@gluon.jit
def product_of_other_sizes(desc, out, n):
    a = gl.allocate_shared_memory(gl.bfloat16, [64, 32], TILE)
    b = gl.allocate_shared_memory(gl.bfloat16, [64, 64], TILE)
    acc = warpgroup_mma(a, b, gl.zeros([64, 64], gl.float32, ACC), is_async=True)
    acc = warpgroup_mma_wait(0, [acc])


@gluon.jit
def product_of_blocked_registers(desc, out, n):
    a = gl.zeros([64, 64], gl.bfloat16, ROWS)
    b = gl.allocate_shared_memory(gl.bfloat16, [64, 64], TILE)
    acc = warpgroup_mma(a, b, gl.zeros([64, 64], gl.float32, ACC), is_async=True)
    acc, a = warpgroup_mma_wait(0, [acc, a])


@gluon.jit
def fp8_product_against_k(desc, out, n):
    a = gl.allocate_shared_memory(gl.float8e4nv, [64, 64], BYTES)
    b = gl.allocate_shared_memory(gl.float8e4nv, [64, 64], BYTES)
    acc = warpgroup_mma(a, b, gl.zeros([64, 64], gl.float32, ACC_8), is_async=True)
    acc = warpgroup_mma_wait(0, [acc])


@gluon.jit
def small_box(desc, out, n):
    tile = gl.allocate_shared_memory(gl.bfloat16, [32, 64], desc.layout)
    bar = gl.allocate_shared_memory(gl.int64, [1], mbarrier.MBarrierLayout())
    mbarrier.init(bar, 1)
    mbarrier.expect(bar, desc.block_type.nbytes)
    tma.async_copy_global_to_shared(desc, [0, 0], bar, tile)
    mbarrier.wait(bar, 0)


@gluon.jit
def long_coordinate(desc, out, n):
    tile = gl.allocate_shared_memory(gl.bfloat16, [64, 64], desc.layout)
    bar = gl.allocate_shared_memory(gl.int64, [1], mbarrier.MBarrierLayout())
    mbarrier.init(bar, 1)
    mbarrier.expect(bar, desc.block_type.nbytes)
    tma.async_copy_global_to_shared(desc, [n.to(gl.int64), 0], bar, tile)
    mbarrier.wait(bar, 0)


@gluon.jit
def _takes_a_tensor(x):
    gl.static_assert(x.shape[0] == 64)


@gluon.jit
def _takes_nothing():
    pass


@gluon.jit
def tensor_for_a_worker(desc, out, n):
    x = gl.zeros([64], gl.float32, FLAT)
    gl.warp_specialize([(_takes_nothing, ()), (_takes_a_tensor, (x,))], [4], [24])


@gluon.jit
def false_assertion(desc, out, n):
    WIDTH: gl.constexpr = 128
    gl.static_assert(WIDTH == 64, "width")


@gluon.jit
def converted_trivially(desc, out, n):
    x = gl.zeros([64, 64], gl.float32, ROWS)
    x = gl.convert_layout(x, gl.BlockedLayout([8, 1], [8, 4], [1, 4], [0, 1]), assert_trivial=True)


REFUSED = [
    other_slice, no_slice, added_across_layouts, stored_across_layouts, masked_across_layouts,
    no_power_of_two, shape_of_the_run, slice_of_the_run, other_type_in_shared_memory,
    other_shape_in_shared_memory, product_of_few_rows, product_of_other_sizes,
    fp8_product_against_k, long_coordinate, false_assertion, converted_trivially,
]  # fmt: skip
# Triton 3.6 aborts on the first, and takes the others: memory is corrupted, registers are copied.
REFUSED_HERE = [product_of_blocked_registers, small_box, tensor_for_a_worker]


def arguments() -> tuple:
    desc = TensorDescriptor.from_tensor(torch.zeros(64, 64).bfloat16(), [64, 64], TILE.value)
    return desc, torch.zeros(64, 64), 7


@pytest.mark.parametrize("kernel", REFUSED + REFUSED_HERE, ids=lambda k: k.fn.__name__)
def test_it_is_refused(kernel: object) -> None:
    with pytest.raises(interp.LayoutError, match=r"test_gluon_layouts\.py:\d+ in "):
        interp.run(kernel, (1,), *arguments())


@pytest.mark.parametrize("kernel", REFUSED, ids=lambda k: k.fn.__name__)
def test_the_compiler_refuses_it_too(kernel: object, capfd: pytest.CaptureFixture) -> None:
    with pytest.raises((CompilationError, RuntimeError)):
        compiled(launch(kernel, *arguments()))
    capfd.readouterr()  # what MLIR prints
