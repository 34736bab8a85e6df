"""``gl.load``, ``gl.store`` and atomics."""

from collections.abc import Callable
from typing import Any

import numpy as np

from ridgeline.testing.gluon import dtypes
from ridgeline.testing.gluon.errors import UnsupportedError
from ridgeline.testing.gluon.memory import (
    Points,
    accessor,
    gather,
    masked_value,
    resolve,
    scatter,
)
from ridgeline.testing.gluon.scheduler import current, join, machine
from ridgeline.testing.gluon.tensor import Tensor, as_tensor, cast, layout_of, unwrap


def _layout(pointer: Any, *others: Any, what: str) -> Any:
    layout = pointer.layout
    for other in others:
        if other is not None:
            layout = layout_of(pointer, as_tensor(other), what)
    return layout


def load(pointer: Any, mask: Any = None, other: Any = None, **_: Any) -> Tensor:
    machine().switch()
    mask, other = unwrap(mask), unwrap(other)
    off, wanted = resolve(pointer, mask, "load")
    buffer = pointer.buffer
    if wanted.any():
        region = Points(buffer, off if wanted.all() else off[wanted])
        buffer.memory.read(region, "load", accessor(off))
    layout = _layout(pointer, mask, other, what="load")
    filler = masked_value(buffer.dtype) if other is None else cast(other, buffer.dtype).a
    return Tensor(gather(buffer, off, wanted, filler), buffer.dtype, layout)


def store(pointer: Any, value: Any, mask: Any = None, **_: Any) -> None:
    machine().switch()
    mask, value = unwrap(mask), cast(value, pointer.buffer.dtype)
    _layout(pointer, value, mask, what="store")
    off, wanted = resolve(pointer, mask, "store")
    if wanted.any():
        region = Points(pointer.buffer, off[wanted])
        pointer.buffer.memory.write(region, "store", accessor(off))
        scatter(pointer.buffer, off, wanted, value)


def _synchronise(buffer: Any, offset: int, sem: str, scope: str) -> None:
    """An atomic carries clocks from who released at the address to who acquires."""
    me = current()
    where = (buffer.address + offset * dtypes.ITEMSIZE[buffer.dtype],)
    if scope == "cta":
        where += (me.block.index,)
    clock, fenced = me.block.memory.released.setdefault(where, ({}, {}))
    if sem in ("acq_rel", "acquire"):
        join(me.clock, clock)
        join(me.fenced, fenced)
    if sem in ("acq_rel", "release"):
        join(clock, me.clock)
        join(fenced, me.fenced)
        me.tick()


def _atomic(name: str, combine: Callable[[Any, Any], Any]) -> Callable:
    def atomic(
        pointer: Any, val: Any, mask: Any = None, sem: Any = None, scope: Any = None
    ) -> Tensor:
        machine().switch()
        mask, sem, scope = unwrap(mask), unwrap(sem) or "acq_rel", unwrap(scope) or "gpu"
        buffer, value = pointer.buffer, cast(val, pointer.buffer.dtype)
        off, wanted = resolve(pointer, mask, f"atomic_{name}")
        layout = _layout(pointer, value, mask, what=f"atomic_{name}")
        values = np.broadcast_to(value.a, off.shape)
        old = np.zeros(off.shape, dtypes.REGISTER[buffer.dtype])
        if wanted.any():
            agent = accessor(off)
            buffer.memory.write(Points(buffer, off[wanted]), f"atomic_{name}", agent, atomic=True)
        for index in np.argwhere(wanted):  # one after the other: addresses may repeat
            at, i = int(off[tuple(index)]), tuple(index)
            before = dtypes.decode(buffer.bits[at : at + 1], buffer.dtype)
            old[i] = before[0]
            after = np.asarray(combine(before, values[i]), before.dtype)
            buffer.bits[at : at + 1] = dtypes.encode(after, buffer.dtype)
            _synchronise(buffer, at, sem, scope)
        return Tensor(old if old.ndim else old[()], buffer.dtype, layout)

    return atomic


ATOMICS = {
    f"atomic_{name}": _atomic(name, combine)
    for name, combine in {
        "add": np.add,
        "max": np.maximum,
        "min": np.minimum,
        "and": np.bitwise_and,
        "or": np.bitwise_or,
        "xor": np.bitwise_xor,
        "xchg": lambda old, new: np.broadcast_to(new, old.shape),
    }.items()
}


def atomic_cas(pointer: Any, cmp: Any, val: Any, sem: Any = None, scope: Any = None) -> Tensor:
    if pointer.shape:
        raise UnsupportedError("atomic_cas of a tensor of pointers")
    expected = as_tensor(cmp).a
    swap = _atomic("cas", lambda old, new: np.where(old == expected, new, old))
    return swap(pointer, val, None, sem, scope)
