"""Global memory: bounds of every address, and the order of accesses by different partitions.

Writes are remembered per element, reads as a list that only a write looks at. A block store is made
by many threads: what they wrote is ordered for others only after a synchronisation of the partition
(``thread_barrier``, an mbarrier arrival, the end of the partition) *and* a release.
"""

from collections.abc import Hashable
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import torch

from ridgeline.testing.gluon import dtypes
from ridgeline.testing.gluon.errors import OutOfBoundsError, RaceError
from ridgeline.testing.gluon.scheduler import Partition, current, machine
from ridgeline.testing.gluon.sites import site
from ridgeline.testing.gluon.tensor import Pointer, Tensor, as_tensor
from ridgeline.testing.gluon.versions import gl

_LARGEST_MASKED = 1 << 24  # elements; beyond, gaps between the rows of a view go unnoticed


def lanes(partition: Partition) -> Hashable:
    """The threads of a partition as an agent of their own."""
    return "lanes", partition.id


def synchronise_lanes() -> None:
    """What the threads of the running partition did is from now on known to each of them."""
    me = current()
    me.clock[lanes(me)] = me.clock[me.id]
    me.tick()


@dataclass
class Memory:
    """One storage. ``grain``: the bytes that one remembered element stands for."""

    address: int
    nbytes: int
    grain: int
    name: str
    agents: list[Hashable] = field(default_factory=lambda: [None])
    reads: list[tuple[Any, Hashable, float]] = field(default_factory=list)
    plain: "Writers | None" = None
    atomic: "Writers | None" = None

    def _ordered(self, agent: Hashable, epoch: float) -> bool:
        me = current()
        return agent in (me.id, lanes(me)) or epoch <= me.clock.get(agent, 0)

    def _judge(self, writers: "Writers | None", points: np.ndarray, what: str, kind: str) -> None:
        if writers is None:
            return
        agents, epochs = writers.agents[points], writers.epochs[points]
        for number in np.unique(agents):
            agent = self.agents[number]
            if number and not self._ordered(agent, epochs[agents == number].max()):
                self._report(what, f"{kind} by {_described(agent)}")

    def _report(self, what: str, before: str) -> None:
        message = f"race on global memory `{self.name}`: {what} at {site()} is not ordered after a "
        machine().report(RaceError, message + before)

    def read(self, region: Any, what: str, agent: Hashable) -> None:
        if self.plain is not None or self.atomic is not None:
            points = region.points(self)
            self._judge(self.plain, points, what, "write")
            self._judge(self.atomic, points, what, "atomic write")
        self.reads.append((region, agent, current().clock[current().id]))

    def write(self, region: Any, what: str, agent: Hashable, atomic: bool = False) -> None:
        points = region.points(self)
        self._judge(self.plain, points, what, "write")
        if not atomic:
            self._judge(self.atomic, points, what, "atomic write")
        for earlier, reader, epoch in self.reads:
            if not self._ordered(reader, epoch) and np.isin(points, earlier.points(self)).any():
                self._report(what, f"read by {_described(reader)}")
        writers = self.atomic if atomic else self.plain
        if writers is None:
            count = self.nbytes // self.grain
            writers = Writers(np.zeros(count, np.int32), np.zeros(count, np.int32))
            if atomic:
                self.atomic = writers
            else:
                self.plain = writers
        if agent not in self.agents:
            self.agents.append(agent)
        writers.agents[points] = self.agents.index(agent)
        writers.epochs[points] = current().clock[current().id]


@dataclass
class Writers:
    """Per element: who wrote it last, as a number, and at which epoch."""

    agents: np.ndarray
    epochs: np.ndarray


def _described(agent: Hashable) -> str:
    kind, number = agent if isinstance(agent, tuple) else ("", agent)
    name = machine().partitions[number - 1].name
    return f"{name} (TMA store)" if kind == "tma store" else name


class Points:
    """Elements at offsets from a buffer's start."""

    def __init__(self, buffer: "Buffer", offsets: np.ndarray) -> None:
        self.buffer, self.offsets = buffer, offsets

    def points(self, memory: Memory) -> np.ndarray:
        item = dtypes.ITEMSIZE[self.buffer.dtype]
        start = self.buffer.address - memory.address
        return (start + self.offsets.reshape(-1) * item) // memory.grain


class Box:
    """A strided box of a buffer: first offset, sizes and strides in elements."""

    def __init__(self, buffer: "Buffer", first: int, sizes: list, strides: list) -> None:
        self.buffer, self.first, self.sizes, self.strides = buffer, first, sizes, strides

    def points(self, memory: Memory) -> np.ndarray:
        offsets = np.array(self.first, np.int64)
        for size, stride in zip(self.sizes, self.strides, strict=True):
            offsets = offsets[..., None] + np.arange(size) * stride
        return Points(self.buffer, offsets).points(memory)


class Buffer:
    """A typed tensor in global memory; addresses between its rows are out of bounds as well."""

    def __init__(self, memory: Memory, tensor: torch.Tensor, name: str) -> None:
        self.memory, self.tensor, self.name = memory, tensor, name
        self.dtype, self.address = dtypes.GLUON[tensor.dtype], tensor.data_ptr()
        sizes = zip(tensor.shape, tensor.stride(), strict=True)
        self.extent = 1 + sum((n - 1) * s for n, s in sizes) if tensor.numel() else 0
        flat = torch.as_strided(tensor.detach(), (self.extent,), (1,))
        self.bits = _numpy_bits(flat, self.dtype)

    @cached_property
    def valid(self) -> np.ndarray | None:
        """Which elements of the extent are the tensor's, where not all are."""
        if not self.tensor.numel() or self.extent > _LARGEST_MASKED:
            return None
        mask = np.zeros(self.extent, bool)
        np.lib.stride_tricks.as_strided(mask, self.tensor.shape, self.tensor.stride())[...] = True
        return None if mask.all() else mask

    def retyped(self, dtype: gl.dtype) -> "Buffer":
        dtype = dtypes.canonical(dtype)
        if dtype is self.dtype:
            return self
        flat = torch.as_strided(self.tensor.detach(), (self.extent,), (1,))
        viewed = flat.view(torch.uint8)
        item = dtypes.ITEMSIZE[dtype]
        viewed = viewed[: viewed.numel() // item * item].view(dtypes.TORCH[dtype])
        return Buffer(self.memory, viewed, self.name)

    def check_bounds(self, offsets: np.ndarray, what: str) -> None:
        if not offsets.size:
            return
        low, high = int(offsets.min()), int(offsets.max())
        if low < 0 or high >= self.extent:
            raise OutOfBoundsError(
                f"{what} of `{self.name}` at offsets {low}..{high} of {self.extent} at {site()}"
            )
        if self.valid is not None and not self.valid[offsets].all():
            first = int(offsets[~self.valid[offsets]].reshape(-1)[0])
            raise OutOfBoundsError(
                f"{what} of `{self.name}` between its rows, at offset {first}, at {site()}"
            )


def _numpy_bits(flat: torch.Tensor, dtype: gl.dtype) -> np.ndarray:
    kind = dtypes.MEMORY[dtype]
    if dtypes.is_narrow(dtype):
        flat = flat.view({1: torch.uint8, 2: torch.int16}[kind.itemsize])
    return flat.numpy().view(kind)


class GlobalMemory:
    """All storages of a launch."""

    def __init__(self) -> None:
        self._memories: dict[int, Memory] = {}
        self._buffers: dict[tuple, Buffer] = {}
        self.released: dict[tuple, tuple[dict, dict]] = {}  # clocks that atomics carry

    def buffer(self, tensor: torch.Tensor, name: str) -> Buffer:
        if tensor.device.type != "cpu":
            raise ValueError(f"{name}: expected a tensor on the CPU, got one on {tensor.device}")
        storage = tensor.untyped_storage()
        item = tensor.element_size()
        memory = self._memories.get(storage.data_ptr())
        if memory is None:
            memory = Memory(storage.data_ptr(), storage.nbytes(), item, name)
            self._memories[storage.data_ptr()] = memory
        memory.grain = min(memory.grain, item)
        key = (tensor.data_ptr(), tensor.dtype, tuple(tensor.shape), tensor.stride())
        if key not in self._buffers:
            self._buffers[key] = Buffer(memory, tensor, name)
        return self._buffers[key]

    def at(self, address: int) -> Buffer | None:
        """The buffer that an address lies in."""
        for buffer in self._buffers.values():
            if 0 <= address - buffer.address < buffer.bits.nbytes:
                return buffer
        return None


def resolve(pointer: Any, mask: Any, what: str) -> tuple[np.ndarray, np.ndarray]:
    """Offsets and which of them count, of one shape, all that count within bounds."""
    if not isinstance(pointer, Pointer):
        raise TypeError(f"{what}: expected a pointer, got {pointer!r}")
    off = np.asarray(pointer.off, np.int64)
    if mask is None:
        pointer.buffer.check_bounds(off, what)
        return off, np.ones(off.shape, bool)
    wanted = np.asarray(as_tensor(mask).a, bool)
    off, wanted = np.broadcast_arrays(off, wanted)
    pointer.buffer.check_bounds(off[wanted], what)
    return off, wanted


def accessor(off: np.ndarray) -> Hashable:
    """Who makes a plain access: one thread for a scalar, all threads for a tensor."""
    me = current()
    return me.id if off.ndim == 0 else lanes(me)


def gather(buffer: Buffer, off: np.ndarray, wanted: np.ndarray, other: Any) -> np.ndarray:
    """Register values at ``off``; ``other`` where not ``wanted``."""
    if wanted.all():
        return dtypes.decode(buffer.bits[off], buffer.dtype)
    if not buffer.extent:
        return np.broadcast_to(np.asarray(other, dtypes.REGISTER[buffer.dtype]), off.shape).copy()
    values = dtypes.decode(np.asarray(buffer.bits[np.where(wanted, off, 0)]), buffer.dtype)
    return np.where(wanted, values, np.asarray(other, values.dtype))


def masked_value(dtype: gl.dtype) -> Any:
    """What a masked load without ``other`` gives: anything."""
    return np.nan if dtype.is_floating() else dtypes.REGISTER[dtype].type(0x5A)


def scatter(buffer: Buffer, off: np.ndarray, wanted: np.ndarray, value: Tensor) -> None:
    bits = np.broadcast_to(np.asarray(dtypes.encode(value.a, buffer.dtype)), off.shape)
    buffer.bits[off[wanted]] = bits[wanted]
