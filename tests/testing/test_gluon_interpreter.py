"""Launching kernels on the interpreter: schedules, allocations, names, arguments, reports."""

import re
import threading

import pytest
import torch
import triton
import triton.language as tl
from gluon_kernels import RULES, handed_over, ring
from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import mbarrier
from triton.language.core import _aggregate as aggregate

from ridgeline.testing import gluon as interp
from ridgeline.testing.gluon import mutations

FLAT = gl.constexpr(gl.BlockedLayout([1], [32], [4], [0]))
LINE = gl.constexpr(gl.SwizzledSharedLayout(1, 1, 1, [0]))


def _report(seed: int, wrong: int) -> str:
    try:
        return str(interp.run(ring, (3,), *RULES["ring"].arguments(), wrong, seed=seed))
    except interp.GluonError as error:
        return f"{type(error).__name__} {error}"


def test_a_seed_is_one_schedule() -> None:
    for seed in range(3):
        assert _report(seed, 4) == _report(seed, 4)
    assert len({_report(seed, 4) for seed in range(10)}) > 1


def test_a_deadlock_names_the_line_of_every_partition() -> None:
    with pytest.raises(interp.DeadlockError) as error:
        interp.run(ring, (1,), *RULES["ring"].arguments(), 5)
    text = str(error.value)
    assert re.search(
        r"block \(0, 0, 0\) ring: at gluon_kernels.py:\d+ in _drain: .*# wait full", text
    )
    assert re.search(r"block \(0, 0, 0\) 0 _fill: at gluon_kernels.py:\d+ in _fill: .*wait", text)
    assert "2 phases completed" in text or "1 phases completed" in text


def test_a_failed_run_leaves_nothing_behind() -> None:
    threads, settings = threading.active_count(), torch.get_num_threads()
    for seed in range(5):
        with pytest.raises(interp.GluonError):
            interp.run(ring, (6,), *RULES["ring"].arguments(), 5, seed=seed, resident=6)
    assert (threading.active_count(), torch.get_num_threads()) == (threads, settings)
    interp.run(ring, (1,), *RULES["ring"].arguments(), 0)


@gluon.jit
def _kept(out, i, UNROLLED: gl.constexpr):
    at = gl.arange(0, 128, FLAT)
    line = gl.allocate_shared_memory(gl.float32, [128], LINE)
    if UNROLLED:
        line.store(gl.full([128], 1.0, gl.float32, FLAT))
    else:
        if i == 0:
            line.store(gl.full([128], 7.0, gl.float32, FLAT))
    gl.store(out + i * 128 + at, line.load(FLAT))


@gluon.jit
def allocated(out, UNROLLED: gl.constexpr):
    if UNROLLED:
        for i in gl.static_range(3):
            _kept(out, i, UNROLLED)
    else:
        for i in range(3):
            _kept(out, i, UNROLLED)


@pytest.mark.parametrize("unrolled", [True, False])
def test_an_allocation_in_a_loop_is_one_and_in_an_unrolled_one_several(unrolled: bool) -> None:
    out = torch.zeros(3, 128)
    report = interp.run(allocated, (1,), out, unrolled)
    assert report.shared_bytes == (3 if unrolled else 1) * 512
    assert (out == (1.0 if unrolled else 7.0)).all()


@gluon.jit
def too_much():
    gl.allocate_shared_memory(gl.float32, [64 * 1024], LINE)


def test_shared_memory_has_an_end() -> None:
    with pytest.raises(interp.LayoutError, match="262144 bytes of shared memory"):
        interp.run(too_much, (1,))


@gluon.jit
def viewed(out):
    tiles = gl.allocate_shared_memory(
        gl.float32, [2, 4, 32], gl.SwizzledSharedLayout(1, 1, 1, [1, 0])
    )
    layout: gl.constexpr = gl.BlockedLayout([1, 1], [1, 32], [4, 1], [1, 0])
    for i in gl.static_range(2):
        rows = gl.arange(0, 4, gl.SliceLayout(1, layout))
        columns = gl.arange(0, 32, gl.SliceLayout(0, layout))
        values = (i * 128 + rows[:, None] * 32 + columns[None, :]).to(gl.float32)
        tiles.index(i).store(values)
    half = tiles.index(1).slice(2, 2).slice(16, 16, 1)
    flipped: gl.constexpr = gl.BlockedLayout([1, 1], [16, 2], [1, 4], [1, 0])
    rows = gl.arange(0, 16, gl.SliceLayout(1, flipped))
    columns = gl.arange(0, 2, gl.SliceLayout(0, flipped))
    x = half.permute((1, 0)).load(flipped)
    gl.store(out + rows[:, None] * 2 + columns[None, :], x)
    words = tiles.index(0)._reinterpret(gl.int32, [128], LINE).load(FLAT)
    gl.store(out + 32 + gl.arange(0, 128, FLAT), words.to(gl.float32, bitcast=True))


def test_views_of_shared_memory() -> None:
    out = torch.zeros(160)
    interp.run(viewed, (1,), out)
    tiles = torch.arange(256.0).view(2, 4, 32)
    assert torch.equal(out[:32].view(16, 2), tiles[1, 2:, 16:].T)
    assert torch.equal(out[32:], tiles[0].flatten())


@aggregate
class Counter:
    start: gl.tensor
    STEP: gl.constexpr

    @gluon.constexpr_function
    def __init__(self, start, STEP):
        self.start = start
        self.STEP = gl.constexpr(STEP)

    @gluon.jit
    def create(start, STEP: gl.constexpr):
        return Counter(start, STEP)

    @gluon.jit
    def at(self, i):
        return self.start + i * self.STEP


@triton.jit
def halves(n):
    return tl.cdiv(n, 2), tl.maximum(n // 2, tl.program_id(0))


@gluon.constexpr_function
def tripled(x):
    return 3 * x


@gluon.jit
def named(out, n, NAMES: gl.constexpr):
    counter = Counter.create(n, tripled(NAMES[1]))
    upper, lower = halves(n)
    both = (upper, lower) + (counter.at(2),)  # noqa: RUF005 (the compiler knows no stars)
    for i in gl.static_range(3):
        gl.store(out + i, both[i])


def test_aggregates_tuples_triton_helpers_and_constexpr_functions() -> None:
    out = torch.zeros(3, dtype=torch.int32)
    interp.run(named, (1,), out, 7, ("x", 5))
    assert out.tolist() == [4, 3, 7 + 2 * 15]


@gluon.jit
def wrong_field(out):
    Counter(3, 4)


def test_a_field_of_another_type_is_refused() -> None:
    with pytest.raises(TypeError, match=r"Counter\.start"):
        interp.run(wrong_field, (1,), torch.zeros(1))


@gluon.jit
def with_histogram(out):
    gl.histogram(gl.arange(0, 128, FLAT), 16, layout=FLAT)


def test_what_is_not_interpreted_says_so() -> None:
    with pytest.raises(interp.UnsupportedError, match=r"language\.histogram"):
        interp.run(with_histogram, (1,), torch.zeros(1))


def test_arguments_that_the_kernel_does_not_have() -> None:
    with pytest.raises(ValueError, match="unknown"):
        interp.run(handed_over, (1,), torch.zeros(64), 0, unknown=1)
    with pytest.raises(ValueError, match="desc"):
        interp.run(handed_over, (1,), torch.zeros(64), 0, in_bounds=["desc"])


def test_launchers_run_on_the_interpreter() -> None:
    out = torch.zeros(3, 128)
    with interp.interpreted(seed=4) as reports:
        allocated[lambda _: (1,)](out, UNROLLED=True, num_warps=4)
        handed_over[(1,)](out, 0, num_warps=4)
    assert [report.partitions for report in reports] == [1, 2]
    assert (out[0, :64] == 3.0).all()
    assert (out[1] == 1.0).all()


@gluon.jit
def needless(out):
    line = gl.allocate_shared_memory(gl.float32, [128], LINE)
    bar = gl.allocate_shared_memory(gl.int64, [1], mbarrier.MBarrierLayout())
    mbarrier.init(bar, 1)
    line.store(gl.full([128], 5.0, gl.float32, FLAT))
    gl.thread_barrier()
    gl.store(out + gl.arange(0, 128, FLAT), line.load(FLAT))


def _check_needless(seed: int) -> None:
    out = torch.zeros(128)
    interp.run(needless, (1,), out, seed=seed)
    assert (out == 5.0).all()


def test_mutations_find_lines_that_nothing_needs() -> None:
    survivors = mutations.survivors(_check_needless, range(3))
    assert [(m.change, m.text) for m in survivors] == [
        ("deleted", "mbarrier.init(bar, 1)"),
        ("a count of one more", "mbarrier.init(bar, 1)"),
        ("deleted", "gl.thread_barrier()"),
    ]


def test_a_check_that_fails_unchanged_proves_nothing() -> None:
    def check(seed: int) -> None:
        interp.run(ring, (1,), *RULES["ring"].arguments(), 5, seed=seed)

    with pytest.raises(interp.DeadlockError):
        mutations.survivors(check)
