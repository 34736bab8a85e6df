"""Allocating shared memory, and the fence of the asynchronous proxy."""

from typing import Any

import numpy as np

from ridgeline.testing.gluon import dtypes
from ridgeline.testing.gluon.allocation import Allocation
from ridgeline.testing.gluon.errors import LayoutError
from ridgeline.testing.gluon.scheduler import current, machine
from ridgeline.testing.gluon.sites import kernel_frames, site
from ridgeline.testing.gluon.tensor import as_shape, unwrap
from ridgeline.testing.gluon.versions import SharedLayout
from ridgeline.testing.gluon.view import View, strided

BYTES_PER_BLOCK = 227 * 1024


def allocate_shared_memory(element_ty: Any, shape: Any, layout: Any, value: Any = None) -> View:
    """One buffer a call site, as in the compiler: in a loop it is the same memory every time.

    The key is the path of calls to here, with the indices of the unrolled loops around.
    """
    me, dtype = current(), dtypes.canonical(unwrap(element_ty))
    shape, layout = as_shape([shape]), unwrap(layout)
    if not isinstance(layout, SharedLayout):
        raise LayoutError(f"expected a shared memory layout, got {layout}")
    key = (me.path, tuple((f.f_code, f.f_lasti) for f in kernel_frames()), tuple(me.unrolled))
    block, size = me.block, int(np.prod(shape)) * dtypes.ITEMSIZE[dtype]
    if key not in block.allocations:
        block.allocations[key] = Allocation(_name(), size)
        block.shared_bytes += size
        if block.shared_bytes > BYTES_PER_BLOCK:
            raise LayoutError(
                f"{block.shared_bytes} bytes of shared memory at {site()}; "
                f"a block has {BYTES_PER_BLOCK}"
            )
    allocation = block.allocations[key]
    ranges, axes = tuple((0, n) for n in shape), tuple(range(len(shape)))
    strides = strided(shape, dtypes.ITEMSIZE[dtype], layout)
    view = View(allocation, 0, shape, strides, dtype, layout, ranges, axes)
    if value is not None:
        view.store(value)
    return view


def _name() -> str:
    text = str(site()).split("`")
    return text[1].split("=")[0].strip() if len(text) > 1 else "?"


def fence_async_shared(cluster: Any = False) -> None:
    """What this partition knows to be written is from now on visible to the asynchronous proxy."""
    machine().switch()
    me = current()
    for allocation in me.block.allocations.values():
        if allocation.unfenced:
            allocation.fence(me.clock)
    me.fenced.update({a: e for a, e in me.clock.items() if e > me.fenced.get(a, 0)})
    me.tick()
