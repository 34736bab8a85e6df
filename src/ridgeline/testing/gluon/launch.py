"""Running a kernel: ``run`` for one launch, ``interpreted`` for launchers that launch it."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from unittest import mock

import torch

from ridgeline.testing.gluon import async_copy, namespace, tma, wgmma
from ridgeline.testing.gluon.errors import GluonError, InFlightError
from ridgeline.testing.gluon.memory import GlobalMemory, synchronise_lanes
from ridgeline.testing.gluon.scheduler import Machine, Partition
from ridgeline.testing.gluon.sites import Site
from ridgeline.testing.gluon.tensor import Pointer, as_tensor, unwrap
from ridgeline.testing.gluon.versions import GluonJITFunction, TensorDescriptor, gl

recorded_sites: set[Site] | None = None  # of every launch, while somebody collects them


@dataclass(frozen=True)
class Report:
    """Of a launch. ``findings``: class and text of each, where they are collected."""

    findings: tuple[tuple[type[GluonError], str], ...]
    steps: int
    partitions: int
    shared_bytes: int


class _Block:
    """One program: its index, shared memory and barriers."""

    def __init__(self, index: tuple, grid: tuple, memory: GlobalMemory, asm_hooks: dict) -> None:
        self.index, self.grid, self.memory, self.asm_hooks = index, grid, memory, asm_hooks
        self.allocations: dict[Any, Any] = {}
        self.barriers: dict[Any, Any] = {}
        self.shared_bytes = 0


class _Launch:
    """Blocks of one launch: started in a random order, ``resident`` of them at a time."""

    def __init__(self, owner: Machine, kernel: Any, grid: tuple, num_warps: int) -> None:
        self.owner, self.kernel, self.grid, self.num_warps = owner, kernel, grid, num_warps
        self.memory, self.shared_bytes = GlobalMemory(), 0
        self.waiting: list[tuple] = [
            (x, y, z) for x in range(grid[0]) for y in range(grid[1]) for z in range(grid[2])
        ]
        owner.random.shuffle(self.waiting)

    def start_next(self, call: Callable[[], Any], asm_hooks: dict) -> None:
        if not self.waiting:
            return
        block = _Block(self.waiting.pop(), self.grid, self.memory, asm_hooks)
        name = self.kernel.fn.__name__
        Partition(self.owner, block, (name,), call, self.num_warps)

    def at_end(self, partition: Partition) -> None:
        synchronise_lanes()
        left = [
            ("wgmma", wgmma.fly_on(partition)),
            ("TMA store", list(tma.stores_of(partition).reading)),
            ("cp.async", async_copy.abandoned(partition)),
        ]
        for what, pending in left:
            if pending:
                message = f"the partition ends without a wait for the {what} of {pending[0].site}"
                self.owner.report(InFlightError, message)
        if partition.parent is None:
            self._end_block(partition.block)

    def _end_block(self, block: _Block) -> None:
        for barrier in block.barriers.values():
            if barrier.copies:
                message = f"the block ends with the copy of {barrier.copies[0]} in flight"
                self.owner.report(InFlightError, message)
        self.shared_bytes = max(self.shared_bytes, block.shared_bytes)
        block.allocations.clear()


def run(
    kernel: Any,
    grid: Sequence[int],
    *args: Any,
    seed: int = 0,
    num_warps: int = 4,
    in_bounds: Sequence[str] = (),
    collect: bool = False,
    resident: int = 4,
    max_steps: int = 500_000,
    asm_hooks: dict[str, Callable] | None = None,
    **kwargs: Any,
) -> Report:
    """Runs a ``@gluon.jit`` kernel on CPU tensors and descriptors of them.

    Args:
        kernel: The jitted function.
        grid: Up to three sizes.
        args, kwargs: The kernel's arguments, as for a launch.
        seed: Of the schedule; the same seed gives the same run.
        num_warps: Of the default partition.
        in_bounds: Names of descriptor arguments whose blocks must all lie inside the tensor.
        collect: Note races, unwritten reads and missing fences and go on, instead of raising.
        resident: Blocks that run at the same time.
        max_steps: Scheduling steps after which the run counts as hanging.
        asm_hooks: Functions for inline PTX that the interpreter does not know, by its text; they
            take and return arrays.

    Raises:
        GluonError: What went wrong, with the lines of the kernel.
        ValueError: For arguments that the kernel does not have.
    """
    namespace.reset()
    owner = Machine(seed, collect, max_steps)
    owner.sites = recorded_sites
    launch = _Launch(owner, kernel, (*grid, 1, 1)[:3], num_warps)
    call = _bound(kernel, launch.memory, args, kwargs, in_bounds)

    def at_end(partition: Partition) -> None:
        launch.at_end(partition)
        if partition.parent is None:
            launch.start_next(call, asm_hooks or {})

    def start() -> None:
        for _ in range(resident):
            launch.start_next(call, asm_hooks or {})

    owner.at_end = at_end
    owner.run(start)
    findings, partitions = tuple(owner.findings), len(owner.partitions)
    return Report(findings, owner.steps, partitions, launch.shared_bytes)


def _bound(
    kernel: Any, memory: GlobalMemory, args: Sequence, kwargs: dict, in_bounds: Sequence[str]
) -> Callable[[], Any]:
    """The kernel's call, with its arguments as the kernel sees them."""
    params = {param.name: param for param in kernel.params}
    given = dict(zip(params, args, strict=False)) | kwargs
    unknown = sorted((given.keys() | set(in_bounds)) - params.keys())
    if unknown or len(args) > len(params):
        raise ValueError(f"{kernel.fn.__name__}: expected arguments {list(params)}, got {unknown}")
    values = {
        name: _argument(name, value, params[name], memory, name in in_bounds)
        for name, value in given.items()
    }
    function = namespace.emulated(kernel)
    return lambda: function(**values)


def _argument(name: str, value: Any, param: Any, memory: GlobalMemory, strict: bool) -> Any:
    value = unwrap(value)
    if param.is_constexpr or value is None:
        return namespace.emulated(value)
    if isinstance(value, TensorDescriptor):
        buffer = memory.buffer(value.base, name)
        return tma.Descriptor(
            buffer, 0, value.shape, value.strides, value.block_shape, value.layout, value.padding,
            strict,
        )  # fmt: skip
    if isinstance(value, torch.Tensor):
        return Pointer(memory.buffer(value, name), 0)
    if isinstance(value, tuple):
        return tuple(_argument(name, v, param, memory, strict) for v in value)
    if isinstance(value, float):
        return as_tensor(value, gl.float32)
    return as_tensor(value)


@contextmanager
def interpreted(**options: Any) -> Iterator[list[Report]]:
    """Launches ``kernel[grid](...)`` of Gluon kernels run here; gives the list of their reports.

    ``options`` are those of ``run``.
    """
    reports: list[Report] = []

    def launch(self: Any, *args: Any, grid: Any, warmup: bool = False, **kwargs: Any) -> None:
        names = {param.name for param in self.params}
        chosen = {key: value for key, value in kwargs.items() if key in names}
        if callable(grid):
            grid = grid(dict(zip(self.arg_names, args, strict=False)) | kwargs)
        known = dict(options)
        known["in_bounds"] = [n for n in options.get("in_bounds", ()) if n in names]
        warps = kwargs.get("num_warps", 4)
        reports.append(run(self, grid, *args, num_warps=warps, **known, **chosen))

    with mock.patch.object(GluonJITFunction, "run", launch):
        yield reports
