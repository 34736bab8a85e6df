"""The ``gl`` namespace: the program's own operations, and the table of all on register tensors."""

from collections.abc import Iterator
from typing import Any

import numpy as np

from ridgeline.testing.gluon import arithmetic, reductions, shapes
from ridgeline.testing.gluon.errors import GluonError, LayoutError
from ridgeline.testing.gluon.memory import synchronise_lanes
from ridgeline.testing.gluon.scheduler import current, machine
from ridgeline.testing.gluon.sites import site
from ridgeline.testing.gluon.tensor import Tensor, as_constant, as_tensor, cast, unwrap
from ridgeline.testing.gluon.versions import gl


def program_id(axis: Any) -> Tensor:
    return as_tensor(current().block.index[as_constant(axis, "an axis")], gl.int32)


def num_programs(axis: Any) -> Tensor:
    return as_tensor(current().block.grid[as_constant(axis, "an axis")], gl.int32)


def num_warps() -> int:
    return current().num_warps


def num_ctas() -> int:
    return 1


def thread_barrier() -> None:
    """The threads of this partition meet: what each of them stored, all of them know."""
    machine().switch()
    synchronise_lanes()


def static_range(*bounds: Any) -> Iterator[int]:
    """Unrolled: each iteration has its own allocations."""
    unrolled = current().unrolled
    for i in range(*(as_constant(b, "static_range") for b in bounds)):
        unrolled.append(i)
        try:
            yield i
        finally:
            unrolled.pop()


def run_range(*bounds: Any) -> Iterator[Tensor]:
    """``range`` in a kernel: its index is a value of the run."""
    bounds = [as_tensor(unwrap(b)) for b in bounds]
    wide = any(b.dtype == gl.int64 for b in bounds)
    for i in range(*(int(b) for b in bounds)):
        yield as_tensor(i, gl.int64 if wide else gl.int32)


def static_assert(condition: Any, msg: Any = "") -> None:
    if not unwrap(condition):
        raise LayoutError(f"static_assert: {unwrap(msg)} at {site()}")


def device_assert(condition: Any, msg: Any = "", mask: Any = None) -> None:
    failed = ~np.asarray(cast(condition, gl.int1).a)
    if mask is not None:
        failed = failed & np.asarray(cast(mask, gl.int1).a)
    if failed.any():
        raise GluonError(f"device_assert: {unwrap(msg)} at {site()}")


def _print(*args: Any, **_: Any) -> None:
    print(*args)


def _same(x: Any, *_: Any) -> Any:
    return x


def constexpr(value: Any) -> Any:
    return unwrap(value)


_ON_TENSORS = {**shapes.FUNCTIONS, **arithmetic.FUNCTIONS, **reductions.FUNCTIONS}
FUNCTIONS: dict[str, Any] = {
    **_ON_TENSORS,
    "assume": _same,
    "constexpr": constexpr,
    "device_assert": device_assert,
    "device_print": _print,
    "max_constancy": _same,
    "max_contiguous": _same,
    "multiple_of": _same,
    "num_ctas": num_ctas,
    "num_programs": num_programs,
    "num_warps": num_warps,
    "program_id": program_id,
    "static_assert": static_assert,
    "static_print": _print,
    "static_range": static_range,
    "thread_barrier": thread_barrier,
    "to_tensor": as_tensor,
    "tuple": tuple,
}
Tensor.members = _ON_TENSORS  # x.sum(0), x.exp2(), x.permute(1, 0), ...
