"""``gl.warp_specialize``: a block forks into partitions, and goes on when all have ended."""

from typing import Any

from ridgeline.testing.gluon.errors import LayoutError
from ridgeline.testing.gluon.memory import synchronise_lanes
from ridgeline.testing.gluon.scheduler import Partition, current, join, machine
from ridgeline.testing.gluon.sites import kernel_frames
from ridgeline.testing.gluon.tensor import Pointer, Tensor, as_constant, unwrap

_REGISTERS = 64 * 1024  # of a block
_THREADS_PER_WARP = 32


def warp_specialize(functions_and_args: Any, worker_num_warps: Any, worker_num_regs: Any) -> Any:
    """The first function runs in this partition's warps and may take and return tensors."""
    owner, me = machine(), current()
    (default, default_args), *workers = [(f, unwrap(args)) for f, args in functions_and_args]
    warps = [as_constant(w, "a worker's warps") for w in unwrap(worker_num_warps)]
    registers = [as_constant(r, "a worker's registers") for r in unwrap(worker_num_regs)]
    _check(me, workers, warps, registers)
    synchronise_lanes()
    where = tuple((f.f_code, f.f_lasti) for f in kernel_frames())
    started = [
        Partition(
            owner, me.block, (*me.path, where, f"{i} {function.__name__}"),
            lambda function=function, args=args: function(*args), warps[i], me,
        )
        for i, (function, args) in enumerate(workers)
    ]  # fmt: skip
    me.tick()
    result = default(*default_args)
    owner.switch(lambda: all(p.done for p in started), lambda: "the worker partitions to end")
    for partition in started:
        join(me.clock, partition.clock)
        join(me.fenced, partition.fenced)
    if result is None or isinstance(result, tuple):
        return result
    raise LayoutError("the default partition of warp_specialize returns None or a tuple")


def _check(me: Partition, workers: list, warps: list[int], registers: list[int]) -> None:
    if me.parent is not None:
        raise LayoutError("warp_specialize inside a worker of warp_specialize")
    if not len(workers) == len(warps) == len(registers):
        raise LayoutError(
            f"warp_specialize: {len(workers)} workers, {len(warps)} warp counts, "
            f"{len(registers)} register counts"
        )
    for function, args in workers:
        if any(isinstance(a, Tensor | Pointer) and a.shape for a in args):
            raise LayoutError(f"warp_specialize: worker {function.__name__} takes a block tensor")
    for count in registers:
        if count % 8 or not 24 <= count <= 256:
            raise LayoutError(f"warp_specialize: {count} registers, not a multiple of 8 in 24..256")
    pairs = zip(warps, registers, strict=True)
    taken = sum(w * r * _THREADS_PER_WARP for w, r in pairs)
    if taken >= _REGISTERS:
        raise LayoutError(f"warp_specialize: the workers take {taken} of {_REGISTERS} registers")
