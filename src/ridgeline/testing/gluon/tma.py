"""Tensor descriptors and the copies of the Tensor Memory Accelerator.

A load's destination holds poison from its issue until it lands; that it landed and that its barrier
knows are two events. A store reads its source at any time until ``store_wait``; what it writes is
for the kernel's end: the wait orders the reading alone.
"""

from collections import deque
from collections.abc import Callable
from math import prod
from types import SimpleNamespace
from typing import Any

import numpy as np

from ridgeline.testing.gluon import dtypes
from ridgeline.testing.gluon.barrier import barrier_of
from ridgeline.testing.gluon.errors import LayoutError, OutOfBoundsError
from ridgeline.testing.gluon.memory import Box, Buffer
from ridgeline.testing.gluon.scheduler import Once, current, machine
from ridgeline.testing.gluon.sites import site
from ridgeline.testing.gluon.tensor import Tensor, as_constant, as_shape, unwrap
from ridgeline.testing.gluon.versions import gl
from ridgeline.testing.gluon.view import View

_PADDING = {"zero": 0.0, "nan": float("nan")}


class Descriptor:
    """A tensor descriptor, from the host or from ``tma.make_tensor_descriptor``.

    ``strict``: every box must lie inside.
    """

    def __init__(
        self,
        buffer: Buffer,
        first: int,
        shape: Any,
        strides: Any,
        block_shape: Any,
        layout: Any,
        padding: str,
        strict: bool = False,
    ) -> None:
        self.buffer, self.first, self.layout = buffer, first, unwrap(layout)
        self.shape, self.strides = (
            [int(unwrap(n)) for n in shape],
            [int(unwrap(n)) for n in strides],
        )
        self.block_shape, self.dtype = list(as_shape([block_shape])), buffer.dtype
        self.padding, self.strict = padding, strict
        item = dtypes.ITEMSIZE[self.dtype]
        self.nbytes = prod(self.block_shape) * item
        self.block_type = SimpleNamespace(
            nbytes=self.nbytes, shape=self.block_shape, element_ty=self.dtype
        )
        last = first + sum((n - 1) * s for n, s in zip(self.shape, self.strides, strict=True))
        if min(self.shape) < 1 or first < 0 or last >= buffer.extent:
            raise OutOfBoundsError(
                f"a descriptor of shape {self.shape}, strides {self.strides} from element {first} "
                f"of `{buffer.name}`, which has {buffer.extent}"
            )
        if any(n < 1 or n & (n - 1) for n in self.block_shape):
            raise LayoutError(f"a descriptor's block sizes are powers of two: {self.block_shape}")
        if self.block_shape[-1] * item < 16 or self.strides[-1] != 1:
            raise LayoutError("a descriptor's last dim is contiguous, its blocks at least 16 bytes")
        if any(stride * item % 16 for stride in self.strides[:-1]) or first * item % 16:
            raise LayoutError(f"a descriptor's strides are multiples of 16 bytes: {self.strides}")

    def box(self, coord: Any, what: str) -> "Place":
        coord = [_coordinate(c) for c in unwrap(coord)]
        if len(coord) != len(self.shape):
            raise LayoutError(f"{what}: {len(coord)} coordinates for {len(self.shape)} dims")
        inside = [
            (max(0, -c), max(0, min(block, size - c)))
            for c, block, size in zip(coord, self.block_shape, self.shape, strict=True)
        ]
        whole = all(span == (0, n) for span, n in zip(inside, self.block_shape, strict=True))
        if self.strict and not whole:
            raise OutOfBoundsError(
                f"{what} of `{self.buffer.name}` {self.shape} at {coord}, a block of "
                f"{self.block_shape}, at {site()}"
            )
        return Place(self, coord, inside, whole)


def _coordinate(value: Any) -> int:
    value = unwrap(value)
    if isinstance(value, Tensor) and (value.a.ndim or value.dtype != gl.int32):
        raise LayoutError(f"a TMA coordinate is an int32 scalar, got {value.dtype} {value.shape}")
    return int(value)


class Place:
    """Where a block lies: the part inside the tensor, of the block and of the tensor."""

    def __init__(self, descriptor: Descriptor, coord: list, inside: list, whole: bool) -> None:
        self.descriptor, self.whole = descriptor, whole
        self.empty = any(high <= low for low, high in inside)
        self.block = tuple(slice(low, high) for low, high in inside)
        self._sizes = [high - low for low, high in inside]
        starts = zip(coord, inside, descriptor.strides, strict=True)
        self._first = descriptor.first + sum((c + low) * s for c, (low, _), s in starts)

    def bits(self) -> Any:
        """The part inside, as a view of global memory."""
        buffer = self.descriptor.buffer
        item = buffer.bits.itemsize
        strides = [stride * item for stride in self.descriptor.strides]
        return np.ndarray(self._sizes, buffer.bits.dtype, buffer.bits, self._first * item, strides)

    def region(self) -> Box:
        return Box(self.descriptor.buffer, self._first, self._sizes, self.descriptor.strides)


def _check(descriptor: Any, view: Any, what: str) -> None:
    if not isinstance(descriptor, Descriptor) or not isinstance(view, View):
        raise TypeError(f"{what}: expected a descriptor and shared memory")
    ours = (view.shape, view.dtype, view.layout)
    theirs = (descriptor.block_shape, descriptor.dtype, descriptor.layout)
    if ours != theirs:
        raise LayoutError(
            f"{what}: shared memory {ours} does not go with the descriptor's {theirs}"
        )
    if view.offset % 128:
        raise LayoutError(f"{what}: shared memory at byte {view.offset}, not a multiple of 128")


def load(desc: Any, coord: Any, barrier: Any, result: Any, pred: Any = True) -> None:
    """``async_copy_global_to_shared``."""
    owner = machine()
    owner.switch()
    if not unwrap(pred):
        return
    _check(desc, result, "TMA load")
    signal, place = barrier_of(barrier), desc.box(coord, "TMA load")
    barrier.access("TMA load's barrier", write=False)
    access = result.access(
        "TMA load", write=True, asynchronous=True, agent=signal, epoch=float("inf")
    )
    result.poison()
    signal.copies.append(access.site)
    if not place.empty:
        desc.buffer.memory.read(place.region(), "TMA load", current().id)

    def land() -> None:
        if not place.whole:
            result.write(dtypes.encode(_filler(desc), desc.dtype)[0])
        if not place.empty:
            result.write(place.bits(), place.block)
        owner.later(complete)

    def complete() -> None:
        signal.copies.remove(access.site)
        access.epoch = signal.phase + 1  # known to whoever sees this phase's end
        signal.complete(desc.nbytes, access.site)

    owner.later(land)


def _filler(desc: Descriptor) -> Any:
    value = _PADDING[desc.padding]
    return np.full(1, value, np.float32) if desc.dtype.is_floating() else np.zeros(1, np.int64)


class Stores:
    """TMA stores of a partition that still read their source."""

    def __init__(self, agent: tuple) -> None:
        self.agent, self.issued, self.reading = agent, 0, deque()


def stores_of(partition: Any) -> Stores:
    return partition.queue("stores", lambda: Stores(("tma reads", partition.id)))


def store(desc: Any, coord: Any, src: Any) -> None:
    """``async_copy_shared_to_global``."""
    _copy_out(desc, coord, src, "TMA store", lambda old, new: new)


def reduce_add(desc: Any, coord: Any, src: Any) -> None:
    """``cp.reduce.async.bulk.tensor`` with ``.add``; in no order with others of its kind.

    The Gluon of Triton 3.6 has no name for it: this is ``ops.common.gluon.async_reduce_add``.
    """
    _copy_out(desc, coord, src, "TMA reduce-add", np.add, atomic=True)


def _copy_out(
    desc: Any, coord: Any, src: Any, what: str, combine: Callable, *, atomic: bool = False
) -> None:
    owner, me = machine(), current()
    owner.switch()
    _check(desc, src, what)
    place, stores = desc.box(coord, what), stores_of(me)
    stores.issued += 1
    src.access(what, write=False, asynchronous=True, agent=stores.agent, epoch=stores.issued)
    src.check_written(what)
    if not place.empty:
        desc.buffer.memory.write(place.region(), what, ("tma store", me.id), atomic=atomic)

    def write() -> None:
        if not place.empty:
            bits = src.plane(src.allocation.fenced)[place.block]
            old = dtypes.decode(place.bits(), desc.dtype)
            new = dtypes.cast(combine(old, dtypes.decode(bits, desc.dtype)), desc.dtype)
            place.bits()[...] = dtypes.encode(new, desc.dtype)

    stores.reading.append(Once(write, site(), stores.issued))
    owner.later(stores.reading[-1])


def store_wait(pendings: Any) -> None:
    machine().switch()
    me = current()
    stores, left = stores_of(me), as_constant(pendings, "the number of pending stores")
    while len(stores.reading) > left:
        oldest = stores.reading.popleft()
        oldest()
        me.clock[stores.agent] = oldest.number


def make_tensor_descriptor(
    base: Any, shape: Any, strides: Any, block_shape: Any, layout: Any, padding_option: Any = "zero"
) -> Descriptor:
    first, padding = int(base.off), unwrap(padding_option)
    return Descriptor(base.buffer, first, shape, strides, block_shape, layout, padding)


FUNCTIONS = {
    "async_copy_global_to_shared": load,
    "async_copy_shared_to_global": store,
    "store_wait": store_wait,
    "make_tensor_descriptor": make_tensor_descriptor,
}
