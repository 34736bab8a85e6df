"""Inline PTX: the few instructions that kernels write by hand, as statements of one snippet.

Known are L2 prefetches (checked for bounds and alignment), predicates around them, and moves of
constants or inputs to the outputs. Everything else is an error, unless the caller gives a function.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from ridgeline.testing.gluon import dtypes
from ridgeline.testing.gluon.errors import OutOfBoundsError, UnsupportedError
from ridgeline.testing.gluon.scheduler import current, machine
from ridgeline.testing.gluon.sites import site
from ridgeline.testing.gluon.tensor import Pointer, Tensor, as_tensor, layout_of, unwrap
from ridgeline.testing.gluon.versions import gl

_ADDRESS = r"\[\s*\$(\d+)\s*\]"
_BULK = re.compile(rf"cp\.async\.bulk\.prefetch\.L2(?:\.global)?\s+{_ADDRESS}\s*,\s*(\$\d+|\d+)")
_LINE = re.compile(rf"prefetch(?:\.global)?\.L2(?:::evict_\w+)?\s+{_ADDRESS}")
_MOVE = re.compile(r"mov\.\w+\s+\$(\d+)\s*,\s*(\$\d+|-?(?:0x)?[0-9a-fA-F]+)")
_SET = re.compile(r"setp\.(eq|ne)\.\w+\s+([%\w]+)\s*,\s*\$(\d+)\s*,\s*(-?\d+)")
_GUARD = re.compile(r"@(!?)([%\w]+)\s+(.*)", re.DOTALL)
_DECLARATION = re.compile(r"\.reg\s")


@dataclass
class _Operands:
    """Inputs by their number in the snippet, predicates by name, outputs by number."""

    inputs: dict[int, np.ndarray]
    predicates: dict[str, np.ndarray]
    outputs: dict[int, np.ndarray]

    def value(self, text: str) -> np.ndarray:
        if text.startswith("$"):
            return self.inputs[int(text[1:])]
        return np.asarray(int(text, 0))


def inline_asm_elementwise(
    asm: Any, constraints: Any, args: Any, dtype: Any, is_pure: Any, pack: Any
) -> Any:
    machine().switch()
    asm, types = unwrap(asm), unwrap(dtype)
    several = isinstance(types, list | tuple)
    types = [dtypes.canonical(unwrap(t)) for t in (types if several else [types])]
    tensors = [as_tensor(arg) for arg in unwrap(args)]
    layout, shape = None, ()
    for tensor in tensors:
        shape = np.broadcast_shapes(shape, tuple(tensor.shape))
        layout = tensor.layout if layout is None else layout_of(tensor, tensors[0], "inline PTX")
    hook: Callable | None = current().block.asm_hooks.get(asm)
    if hook is not None:
        found = hook(*(_bits(t) for t in tensors))
        results = list(found) if several else [found]
    else:
        results = _run(asm, [np.broadcast_to(_bits(t), shape) for t in tensors], types, shape)
    out = [
        Tensor(dtypes.cast(np.broadcast_to(r, shape), t), t, layout)
        for r, t in zip(results, types, strict=True)
    ]
    return tuple(out) if several else out[0]


def pack_e4m3(parts: tuple) -> Tensor:
    """Of ``ridgeline.ops.common.gluon``."""
    parts = [as_tensor(part) for part in unwrap(parts)]
    if any(part.dtype != gl.float32 for part in parts):
        raise UnsupportedError(f"pack_e4m3 of {[part.dtype for part in parts]} at {site()}")
    machine().switch()
    layout = parts[0].layout
    for part in parts[1:]:
        layout = layout_of(part, parts[0], "pack_e4m3")
    bits = [dtypes.encode(part.a, gl.float8e4nv).astype(np.uint32) for part in parts]
    packed = sum(b << np.uint32(8 * i) for i, b in enumerate(bits))
    return Tensor(packed.view(np.int32), gl.int32, layout)


def _bits(tensor: Any) -> np.ndarray:
    return tensor.to(gl.int64).a if isinstance(tensor, Pointer) else np.asarray(tensor.a)


def _run(asm: str, inputs: list, types: list, shape: tuple) -> list:
    first = len(types)
    operands = _Operands({first + i: a for i, a in enumerate(inputs)}, {}, {})
    for text in re.split(r"[;{}\n]", re.sub(r"//[^\n]*", "", asm)):
        if text.strip():
            _statement(text.strip(), operands, shape, asm)
    missing = [i for i in range(first) if i not in operands.outputs]
    if missing and first > 1:
        raise UnsupportedError(f"inline PTX that never writes ${missing[0]}: {asm!r}")
    return [operands.outputs.get(i, np.zeros(shape, np.int64)) for i in range(first)]


def _statement(text: str, operands: _Operands, shape: tuple, asm: str) -> None:
    active = np.ones(shape, bool)
    if guarded := _GUARD.fullmatch(text):
        active = operands.predicates[guarded[2]] ^ (guarded[1] == "!")
        text = guarded[3].strip()
    if _DECLARATION.match(text):
        return
    if found := _SET.fullmatch(text):
        equal = operands.inputs[int(found[3])] == int(found[4])
        operands.predicates[found[2]] = equal if found[1] == "eq" else ~equal
    elif found := _MOVE.fullmatch(text):
        operands.outputs[int(found[1])] = np.broadcast_to(operands.value(found[2]), shape)
    elif found := _BULK.fullmatch(text):
        _prefetch(operands.inputs[int(found[1])], operands.value(found[2]), active, bulk=True)
    elif found := _LINE.fullmatch(text):
        _prefetch(operands.inputs[int(found[1])], np.asarray(1), active, bulk=False)
    else:
        raise UnsupportedError(f"inline PTX `{text}` at {site()}, in {asm!r}")


def _prefetch(address: np.ndarray, size: np.ndarray, active: np.ndarray, *, bulk: bool) -> None:
    addresses, sizes, actives = np.broadcast_arrays(address, size, active)
    memory = current().block.memory
    for start, count, on in zip(addresses.flat, sizes.flat, actives.flat, strict=True):
        if not on:
            continue
        if bulk and (start % 16 or count % 16 or count <= 0):
            raise OutOfBoundsError(
                f"a bulk prefetch of {count} bytes from address {start:#x}, neither multiples of "
                f"16 bytes, at {site()}"
            )
        buffer = memory.at(int(start))
        if buffer is None or start + count > buffer.address + buffer.bits.nbytes:
            raise OutOfBoundsError(f"a prefetch of {count} bytes from {start:#x} at {site()}")
