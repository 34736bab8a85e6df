"""Shared memory descriptors: views of allocations, and their accesses."""

from collections.abc import Hashable
from types import SimpleNamespace
from typing import Any

import numpy as np

from ridgeline.testing.gluon import dtypes, infer, layouts
from ridgeline.testing.gluon.allocation import POISON, Access, Allocation
from ridgeline.testing.gluon.errors import (
    LayoutError,
    MissingFenceError,
    OutOfBoundsError,
    RaceError,
    UnwrittenReadError,
)
from ridgeline.testing.gluon.scheduler import current, machine
from ridgeline.testing.gluon.sites import site
from ridgeline.testing.gluon.tensor import Tensor, as_constant, as_shape, as_tensor, unwrap
from ridgeline.testing.gluon.versions import gl


class View:
    """A shared memory descriptor: ``shape`` and byte ``strides`` from ``offset`` on.

    ``ranges`` is the box of the allocation that the view covers, ``axes`` which of its dims the
    view's are; both None where a reshape or reinterpretation lost them.
    """

    __slots__ = (
        "_key", "allocation", "axes", "dtype", "layout", "offset", "ranges", "shape_", "strides",
    )  # fmt: skip

    def __init__(
        self,
        allocation: Allocation,
        offset: int,
        shape: tuple[int, ...],
        strides: tuple[int, ...],
        dtype: gl.dtype,
        layout: Any,
        ranges: tuple | None = None,
        axes: tuple | None = None,
    ) -> None:
        self.allocation, self.offset, self.shape_, self.strides = allocation, offset, shape, strides
        self.dtype, self.layout, self.ranges, self.axes = dtype, layout, ranges, axes
        self._key: tuple | None = None

    @property
    def shape(self) -> list[int]:
        return list(self.shape_)

    @property
    def rank(self) -> int:
        return len(self.shape_)

    @property
    def numel(self) -> int:
        return int(np.prod(self.shape_))

    @property
    def nbytes(self) -> int:
        return self.numel * dtypes.ITEMSIZE[self.dtype]

    @property
    def type(self) -> Any:
        return SimpleNamespace(shape=self.shape, element_ty=self.dtype, layout=self.layout)

    @property
    def key(self) -> tuple:
        """Equal for views of the same bytes, in whatever dims and order: offset and runs."""
        if self._key is None:
            runs: list[tuple[int, int]] = []
            for stride, size in sorted(zip(self.strides, self.shape_, strict=True)):
                if runs and stride == runs[-1][0] * runs[-1][1]:
                    runs[-1] = runs[-1][0], runs[-1][1] * size
                elif size > 1:
                    runs.append((stride, size))
            self._key = self.offset, dtypes.ITEMSIZE[self.dtype], tuple(runs)
        return self._key

    # ------------------------------------------------------------------ views of views
    def index(self, index: Any) -> "View":
        i = int(unwrap(index))
        if self.rank < 2:
            raise LayoutError(f"index of a shared memory descriptor of shape {self.shape}")
        if not 0 <= i < self.shape_[0]:
            raise OutOfBoundsError(
                f"index {i} of shared memory `{self.allocation.name}` {self.shape} at {site()}"
            )
        offset, ranges, axes = self.offset + i * self.strides[0], None, None
        if self.ranges is not None:
            ranges, axes = self._cut(0, i, i + 1), self.axes[1:]
        return View(
            self.allocation, offset, self.shape_[1:], self.strides[1:], self.dtype, self.layout,
            ranges, axes,
        )  # fmt: skip

    def _cut(self, dim: int, low: int, high: int) -> tuple:
        ranges, axis = list(self.ranges), self.axes[dim]
        first = ranges[axis][0]
        ranges[axis] = (first + low, first + high)
        return tuple(ranges)

    def slice(self, start: Any, length: Any, dim: Any = 0) -> "View":
        start = as_constant(start, "the start of a slice of shared memory")
        length = as_constant(length, "the length of a slice of shared memory")
        dim = as_constant(dim, "the dim of a slice")
        if not 0 <= start <= start + length <= self.shape_[dim]:
            raise OutOfBoundsError(
                f"slice {start}:{start + length} along dim {dim} of shared memory "
                f"`{self.allocation.name}` {self.shape} at {site()}"
            )
        shape = (*self.shape_[:dim], length, *self.shape_[dim + 1 :])
        ranges = self._cut(dim, start, start + length) if self.ranges is not None else None
        offset = self.offset + start * self.strides[dim]
        return View(
            self.allocation, offset, shape, self.strides, self.dtype, self.layout, ranges, self.axes
        )

    def permute(self, order: Any) -> "View":
        order = as_shape([order])
        if sorted(order) != list(range(self.rank)):
            raise LayoutError(f"permute of shape {self.shape} by {order}")
        shape = tuple(self.shape_[i] for i in order)
        strides = tuple(self.strides[i] for i in order)
        axes = None if self.axes is None else tuple(self.axes[i] for i in order)
        return View(
            self.allocation, self.offset, shape, strides, self.dtype,
            infer.shared("permute", self.layout, self.dtype, self.shape_, order), self.ranges, axes,
        )  # fmt: skip

    def reshape(self, shape: Any) -> "View":
        shape = as_shape([shape])
        if int(np.prod(shape)) != self.numel:
            raise LayoutError(f"reshape of shared memory of shape {self.shape} to {shape}")
        item = dtypes.ITEMSIZE[self.dtype]
        self._need_contiguous("reshape")
        layout = infer.shared("reshape", self.layout, self.dtype, self.shape_, shape)
        return View(self.allocation, self.offset, shape, row_major(shape, item), self.dtype, layout)

    def _reinterpret(self, dtype: Any, shape: Any, layout: Any) -> "View":
        dtype, shape = dtypes.canonical(unwrap(dtype)), as_shape([shape])
        item = dtypes.ITEMSIZE[dtype]
        self._need_contiguous("_reinterpret")
        if int(np.prod(shape)) * item > self.nbytes:
            raise LayoutError(f"_reinterpret of {self.nbytes} bytes as {list(shape)} of {dtype}")
        layout = unwrap(layout)
        return View(
            self.allocation, self.offset, shape, strided(shape, item, layout), dtype, layout
        )

    def _need_contiguous(self, what: str) -> None:
        expected = 1
        for stride, size in sorted(zip(self.strides, self.shape_, strict=True)):
            if size > 1 and stride != expected * dtypes.ITEMSIZE[self.dtype]:
                raise LayoutError(f"{what} of a strided view {self.shape} {self.strides}")
            expected *= size

    def _keep_alive(self) -> None:
        """Lifetimes are not modelled."""

    # ------------------------------------------------------------------ bytes
    def plane(self, plane: np.ndarray) -> np.ndarray:
        """The view's elements in one of the allocation's planes."""
        kind = dtypes.MEMORY[self.dtype]
        return np.ndarray(self.shape_, kind, plane, self.offset, self.strides)

    def marks(self) -> np.ndarray:
        """One byte of each element in the plane of what was written."""
        plane = self.allocation.written
        return np.ndarray(self.shape_, np.uint8, plane, self.offset, self.strides)

    def read(self, asynchronous: bool) -> np.ndarray:
        """Values as registers hold them."""
        allocation = self.allocation
        bits = self.plane(allocation.fenced if asynchronous else allocation.generic)
        return dtypes.decode(bits, self.dtype)

    def write(self, bits: Any, where: Any = ...) -> None:
        """Bits, seen by both proxies."""
        self.plane(self.allocation.generic)[where] = bits
        self.plane(self.allocation.fenced)[where] = bits
        self._mark(where, 1)

    def write_generic(self, bits: Any, access: Access) -> None:
        """Bits that the asynchronous proxy sees after a fence."""
        self.plane(self.allocation.generic)[...] = bits
        self._mark(..., 1)
        unfenced = self.allocation.unfenced
        unfenced[:] = [a for a in unfenced if a.view.key != self.key or a.agent != access.agent]
        unfenced.append(access)

    def poison(self) -> None:
        """What a copy in flight leaves: anything."""
        bits = np.array(POISON, np.uint8).view(np.uint8)
        kind = dtypes.MEMORY[self.dtype]
        self.write(np.frombuffer(bits.tobytes() * kind.itemsize, kind)[0])
        self._mark(..., 0)

    def _mark(self, where: Any, value: int) -> None:
        item = dtypes.ITEMSIZE[self.dtype]
        self.marks()[where] = value
        if item > 1:  # a reinterpreted view may look at any byte of the element
            for byte in range(1, item):
                plane = self.allocation.written
                shape, offset = self.shape_, self.offset + byte
                np.ndarray(shape, np.uint8, plane, offset, self.strides)[where] = value

    def check_written(self, what: str) -> None:
        if not self.marks().all():
            machine().report(
                UnwrittenReadError,
                f"{what} of shared memory `{self.allocation.name}` that nobody wrote, at {site()}",
            )

    def overlaps(self, other: "View") -> bool:
        (a_low, a_high), (b_low, b_high) = self._span(), other._span()
        if a_high <= b_low or b_high <= a_low:
            return False
        if self.ranges is not None and other.ranges is not None:
            pairs = zip(self.ranges, other.ranges, strict=True)
            return all(a[0] < b[1] and b[0] < a[1] for a, b in pairs)
        try:
            return np.shares_memory(self.marks(), other.marks(), max_work=10000)
        except np.exceptions.TooHardError:
            return True  # too hard to decide: assume the worst

    def _span(self) -> tuple[int, int]:
        last = sum((n - 1) * s for n, s in zip(self.shape_, self.strides, strict=True))
        return self.offset, self.offset + last + dtypes.ITEMSIZE[self.dtype]

    # ------------------------------------------------------------------ accesses
    def access(
        self,
        what: str,
        *,
        write: bool,
        asynchronous: bool = False,
        agent: Hashable = None,
        epoch: float | None = None,
    ) -> Access:
        """Checks an access against all earlier ones, and notes it.

        ``agent`` and ``epoch`` are those of the asynchronous channel it uses, if any; else the
        running partition's own.
        """
        me, key = current(), self.key
        if agent is None:
            agent, epoch = me.id, me.clock[me.id]
        access = Access(self, agent, epoch, write, asynchronous, site(), what)
        kept = []
        for earlier in self.allocation.accesses:
            same, ordered = earlier.view.key == key, True
            if (write or earlier.write) and (same or self.overlaps(earlier.view)):
                ordered = earlier.epoch <= me.clock.get(earlier.agent, 0)
                self._judge(access, earlier, ordered)
            # An ordered access of the same bytes that is at least as strong takes its place.
            if not (same and ordered and (write or (earlier.agent == agent and not earlier.write))):
                kept.append(earlier)
        kept.append(access)
        self.allocation.accesses = kept
        return access

    def _judge(self, access: Access, earlier: Access, ordered: bool) -> None:
        if not ordered:
            kind, message = RaceError, "race: {} is not ordered after {}"
        elif (
            access.asynchronous
            and earlier.write
            and not earlier.asynchronous
            and earlier.epoch > current().fenced.get(earlier.agent, 0)
        ):
            kind, message = MissingFenceError, "no fence_async_shared: {} comes after {}"
        else:
            return
        now = f"{access.what} of shared memory `{self.allocation.name}` at {access.site}"
        machine().report(kind, message.format(now, f"{earlier.what} at {earlier.site}"))

    def load(self, layout: Any = None) -> Tensor:
        machine().switch()
        layout = layouts.check(unwrap(layout), self.shape_, "a load from shared memory")
        self.access("generic load", write=False)
        self.check_written("generic load")
        return Tensor(self.read(asynchronous=False), self.dtype, layout)

    def store(self, value: Any) -> None:
        machine().switch()
        value = as_tensor(value)
        if value.dtype is not self.dtype or value.shape != self.shape:
            raise LayoutError(
                f"store of {value.shape} {value.dtype} into shared memory {self.shape} {self.dtype}"
            )
        access = self.access("generic store", write=True)
        self.write_generic(dtypes.encode(value.a, self.dtype), access)


def row_major(shape: tuple[int, ...], item: int) -> tuple[int, ...]:
    strides = []
    for size in reversed(shape):
        strides.insert(0, item)
        item *= size
    return tuple(strides)


def strided(shape: tuple[int, ...], item: int, layout: Any) -> tuple[int, ...]:
    """Byte strides in the layout's order of dims; swizzling does not show."""
    if getattr(layout, "transposed", False) and len(shape) >= 2:
        *lead, rows, columns = row_major((*shape[:-2], shape[-1], shape[-2]), item)
        return (*lead, columns, rows)
    return row_major(shape, item)
