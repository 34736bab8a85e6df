"""Bounds and order of global memory, boxes of TMA, prefetches and atomics on the interpreter."""

import pytest
import torch
from gluon_kernels import descriptor, gathered, masked, padded, prefetched, product, stored, tile
from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import mbarrier, tma

from ridgeline.testing import gluon as interp

FLAT = gl.constexpr(gl.BlockedLayout([1], [32], [4], [0]))
ROWS = gl.constexpr(gl.BlockedLayout([1, 8], [4, 8], [4, 1], [1, 0]))
TILE = gl.constexpr(gl.NVMMASharedLayout(128, 16))


def test_a_load_beyond_its_tensor_is_reported() -> None:
    src, out = torch.randn(256), torch.zeros(128)
    interp.run(gathered, (1,), src, out, 128, 0)
    assert torch.equal(out, src[128:])
    for first in (129, -1):
        with pytest.raises(interp.OutOfBoundsError, match=r"# gather"):
            interp.run(gathered, (1,), src, out, first, 0)


def test_a_load_between_the_rows_of_a_view_is_reported() -> None:
    view = torch.randn(4, 192)[:, :128]
    interp.run(gathered, (1,), view, torch.zeros(128), 192, 0)
    with pytest.raises(interp.OutOfBoundsError, match=r"between its rows, at offset 128"):
        interp.run(gathered, (1,), view, torch.zeros(128), 100, 0)


@pytest.mark.parametrize("padding", ["zero", "nan"])
@pytest.mark.parametrize(("row", "column"), [(40, 0), (-8, 0), (0, 24), (-8, -16), (500, 0)])
def test_a_box_is_padded_outside_its_tensor(row: int, column: int, padding: str) -> None:
    x, out = tile(80, 72), torch.zeros(64, 64).bfloat16()
    interp.run(padded, (1,), descriptor(x, padding), out, row, column, 0)
    whole = torch.full((1000, 1000), 0.0 if padding == "zero" else float("nan")).bfloat16()
    whole[100:180, 100:172] = x
    expected = whole[100 + row : 164 + row, 100 + column : 164 + column]
    torch.testing.assert_close(out, expected, rtol=0, atol=0, equal_nan=True)


def test_a_box_outside_its_tensor_is_reported_where_none_may_be() -> None:
    x, out = tile(80), torch.zeros(64, 64).bfloat16()
    interp.run(padded, (1,), descriptor(x), out, 16, 0, 0, in_bounds=["desc"])
    with pytest.raises(interp.OutOfBoundsError, match=r"# box"):
        interp.run(padded, (1,), descriptor(x), out, 17, 0, 0, in_bounds=["desc"])


def test_a_masked_copy_fills_in_zeros() -> None:
    src, out = tile(), torch.full((64, 64), 9.0).bfloat16()
    interp.run(masked, (1,), src[:40], out, 40, 0)
    assert torch.equal(out[:40], src[:40])
    assert not out[40:].any()


@gluon.jit
def described(x_ptr, out, rows, columns):
    desc = tma.make_tensor_descriptor(x_ptr, [rows, columns], [columns, 1], [64, 64], TILE)
    buffer = gl.allocate_shared_memory(gl.bfloat16, [64, 64], TILE)
    bar = gl.allocate_shared_memory(gl.int64, [1], mbarrier.MBarrierLayout())
    mbarrier.init(bar, 1)
    mbarrier.expect(bar, desc.block_type.nbytes)
    tma.async_copy_global_to_shared(desc, [8, 0], bar, buffer)
    mbarrier.wait(bar, 0)
    at = gl.arange(0, 64, gl.SliceLayout(1, ROWS))[:, None] * 64
    gl.store(out + at + gl.arange(0, 64, gl.SliceLayout(0, ROWS))[None, :], buffer.load(ROWS))


def test_descriptors_made_in_a_kernel() -> None:
    x, out = tile(96), torch.zeros(64, 64).bfloat16()
    interp.run(described, (1,), x, out, 96, 64)
    assert torch.equal(out, x[8:72])
    with pytest.raises(interp.OutOfBoundsError, match="descriptor of shape"):
        interp.run(described, (1,), x, out, 97, 64)


@gluon.jit
def all_write(out, SAME: gl.constexpr):
    first = 0 if SAME else gl.program_id(0) * 128
    gl.store(out + first + gl.arange(0, 128, FLAT), 1.0)  # all write


def test_blocks_that_write_the_same_address_race() -> None:
    interp.run(all_write, (3,), torch.zeros(3, 128), False)
    with pytest.raises(interp.RaceError, match=r"store at .*# all write.* write by block"):
        interp.run(all_write, (3,), torch.zeros(3, 128), True)


@gluon.jit
def reads_and_writes(x, out):
    pid = gl.program_id(0)
    at = gl.arange(0, 128, FLAT)
    if pid == 0:
        gl.store(x + at, 1.0)  # writes
    else:
        gl.store(out + at, gl.load(x + at))  # reads


def test_a_read_and_a_write_by_different_blocks_race_in_either_order() -> None:
    reports = set()
    for seed in range(20):
        with pytest.raises(interp.RaceError) as error:
            interp.run(reads_and_writes, (2,), torch.zeros(128), torch.zeros(128), seed=seed)
        reports.add("load at" in str(error.value))
    assert reports == {True, False}


@gluon.jit
def counted(counters, out):
    pid = gl.program_id(0)
    gl.atomic_add(counters, pid + 1)
    gl.atomic_max(counters + 1, pid)
    gl.atomic_min(counters + 2, pid)
    gl.atomic_or(counters + 3, 1 << pid)
    gl.atomic_xchg(counters + 4, pid)
    gl.atomic_cas(counters + 5, 0, pid + 1)
    at = gl.arange(0, 128, FLAT)
    gl.atomic_add(out + at % 2, gl.full([128], 0.5, gl.float32, FLAT))


def test_atomics() -> None:
    swapped = set()
    for seed in range(5):
        counters, out = torch.tensor([0, -9, 9, 0, 0, 0], dtype=torch.int32), torch.zeros(2)
        interp.run(counted, (4,), counters, out, seed=seed)
        assert counters[:4].tolist() == [10, 3, 0, 15]
        assert out.tolist() == [128.0, 128.0]
        swapped.add(counters[5].item())
    assert len(swapped) > 1


@gluon.jit
def handed_on(x, flag, out, SCOPE: gl.constexpr):
    at = gl.arange(0, 128, FLAT)
    if gl.program_id(0) == 0:
        gl.store(x + at, 2.0)
        gl.thread_barrier()
        gl.atomic_xchg(flag, 1, sem="release", scope=SCOPE)
    else:
        while gl.atomic_add(flag, 0, sem="acquire", scope=SCOPE) == 0:
            pass
        gl.store(out + at, gl.load(x + at))  # take over


def test_a_flag_hands_over_between_blocks_at_the_scope_of_the_device() -> None:
    for seed in range(5):
        x, flag, out = torch.zeros(128), torch.zeros(1, dtype=torch.int32), torch.zeros(128)
        interp.run(handed_on, (2,), x, flag, out, "gpu", seed=seed)
        assert (out == 2.0).all()
        flag.zero_()
        with pytest.raises(interp.RaceError, match=r"# take over"):
            interp.run(handed_on, (2,), x, flag, out, "cta", seed=seed)


def test_a_block_that_spins_without_its_peer_hangs() -> None:
    """One block at a time: half of the schedules begin with the one that waits."""
    hung = 0
    for seed in range(8):
        x, flag, out = torch.zeros(128), torch.zeros(1, dtype=torch.int32), torch.zeros(128)
        try:
            interp.run(handed_on, (2,), x, flag, out, "gpu", seed=seed, resident=1, max_steps=500)
        except interp.DeadlockError as error:
            hung += "no end after 500 steps" in str(error)
    assert 0 < hung < 8


def test_a_prefetch_is_checked() -> None:
    src, out = torch.randn(128), torch.zeros(128)
    interp.run(prefetched, (1,), src, out, 512, 0)
    assert torch.equal(out, src)
    for size, what in ((520, "multiples of 16"), (528, "prefetch of 528 bytes")):
        with pytest.raises(interp.OutOfBoundsError, match=what):
            interp.run(prefetched, (1,), src, out, size, 0)


@gluon.jit
def unknown_ptx(x, out):
    at = gl.arange(0, 128, FLAT)
    y = gl.inline_asm_elementwise(
        "popc.b32 $0, $1;", "=r,r", [gl.load(x + at)], dtype=gl.int32, is_pure=True, pack=1
    )
    gl.store(out + at, y)


def test_unknown_ptx_is_an_error_or_the_callers() -> None:
    x, out = torch.arange(128, dtype=torch.int32), torch.zeros(128, dtype=torch.int32)
    with pytest.raises(interp.UnsupportedError, match=r"popc\.b32"):
        interp.run(unknown_ptx, (1,), x, out)
    ones = {"popc.b32 $0, $1;": lambda a: [bin(v).count("1") for v in a]}
    interp.run(unknown_ptx, (1,), x, out, asm_hooks=ones)
    assert out.tolist() == [bin(v).count("1") for v in range(128)]


def test_races_can_be_collected_and_spoil_the_numbers() -> None:
    """Without the fence, wgmma and TMA read what was there before: NaN."""
    a, b, out = tile(seed=1), tile(seed=2), torch.zeros(64, 64)
    report = interp.run(product, (1,), a, b, out, 1, collect=True)
    assert {kind for kind, _ in report.findings} == {interp.MissingFenceError}
    assert out.isnan().all()
    desc = descriptor(torch.zeros(64, 64).bfloat16())
    report = interp.run(stored, (1,), a, desc, 1, collect=True)
    assert {kind for kind, _ in report.findings} == {interp.MissingFenceError}
    assert desc.base.isnan().all()
