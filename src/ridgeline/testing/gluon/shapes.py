"""Register tensors: making them, their shapes and layouts."""

from typing import Any

import numpy as np

from ridgeline.testing.gluon import dtypes, infer, layouts
from ridgeline.testing.gluon.errors import LayoutError
from ridgeline.testing.gluon.tensor import (
    Pointer,
    Tensor,
    as_constant,
    as_shape,
    as_tensor,
    cast,
    layout_of,
    unwrap,
)
from ridgeline.testing.gluon.versions import gl


def arange(start: Any, end: Any, layout: Any = None) -> Tensor:
    start, end = as_constant(start, "arange"), as_constant(end, "arange")
    layout = layouts.check(unwrap(layout), (end - start,), "arange")
    return Tensor(np.arange(start, end, dtype=np.int32), gl.int32, layout)


def full(shape: Any, value: Any, dtype: Any, layout: Any = None) -> Tensor:
    shape, dtype = as_shape([shape]), dtypes.canonical(unwrap(dtype))
    layout = layouts.check(unwrap(layout), shape, "full")
    scalar = cast(value, dtype)
    if scalar.shape:
        raise LayoutError(f"full: the value has shape {scalar.shape}")
    return Tensor(np.full(shape, scalar.a), dtype, layout)


def zeros(shape: Any, dtype: Any, layout: Any = None) -> Tensor:
    return full(shape, 0, dtype, layout)


def full_like(
    input: Tensor, value: Any, shape: Any = None, dtype: Any = None, layout: Any = None
) -> Tensor:
    shape = input.shape if shape is None else shape
    layout = input.layout if layout is None else layout
    return full(shape, value, input.dtype if dtype is None else dtype, layout)


def zeros_like(input: Tensor, shape: Any = None, dtype: Any = None, layout: Any = None) -> Tensor:
    return full_like(input, 0, shape, dtype, layout)


def convert_layout(value: Any, layout: Any, assert_trivial: Any = False) -> Any:
    layout, shape = layouts.check(unwrap(layout), tuple(value.shape), "convert_layout"), value.shape
    known = not layouts.is_auto(value.layout)
    if unwrap(assert_trivial) and known and not infer.same(value.layout, layout, tuple(shape)):
        raise LayoutError(f"the conversion from {value.layout} to {layout} moves data")
    if isinstance(value, Pointer):
        return Pointer(value.buffer, value.off, layout)
    return Tensor(as_tensor(value).a, value.dtype, layout)


def set_auto_layout(value: Any, layout: Any) -> Any:
    if not layouts.is_auto(value.layout):
        raise LayoutError(f"set_auto_layout of a tensor of layout {value.layout}")
    return convert_layout(value, layout)


def _reshaped(x: Any, a: np.ndarray, layout: Any) -> Any:
    return Pointer(x.buffer, a, layout) if isinstance(x, Pointer) else Tensor(a, x.dtype, layout)


def _array(x: Any) -> np.ndarray:
    return np.asarray(x.off if isinstance(x, Pointer) else as_tensor(x).a)


def expand_dims(input: Any, axis: Any) -> Any:
    axis, a = as_constant(axis, "an axis"), _array(input)
    axis += (a.ndim + 1) * (axis < 0)
    layout = layouts.expanded(input.layout, axis, a.ndim)
    return _reshaped(input, np.expand_dims(a, axis), layout)


def permute(input: Any, *dims: Any) -> Any:
    order, a = as_shape(dims) or (1, 0), _array(input)
    layout = infer.register("permute", input.layout, a.shape, order)
    return _reshaped(input, a.transpose(order), layout)


def reshape(input: Any, *shape: Any, can_reorder: Any = False) -> Any:
    a, shape = _array(input), as_shape(shape)
    layout = infer.register("reshape", input.layout, a.shape, shape)
    return _reshaped(input, a.reshape(shape), layout)


def ravel(x: Any, can_reorder: Any = False) -> Any:
    return reshape(x, [_array(x).size])


def broadcast_to(input: Any, *shape: Any) -> Any:
    shape, a = as_shape(shape), _array(input)
    if a.ndim != len(shape) and a.ndim:
        raise LayoutError(f"broadcast_to: {list(a.shape)} to {list(shape)}, ranks differ")
    return _reshaped(input, np.broadcast_to(a, shape), input.layout)


def broadcast(input: Any, other: Any) -> tuple[Any, Any]:
    layout = layout_of(input, other, "broadcast")
    a, b = np.broadcast_arrays(_array(input), _array(other))
    return _reshaped(input, a, layout), _reshaped(other, b, layout)


def join(a: Tensor, b: Tensor) -> Tensor:
    a, b = broadcast(as_tensor(a), as_tensor(b))
    layout = infer.register("join", a.layout, a.a.shape)
    return Tensor(np.stack([a.a, b.a], -1), a.dtype, layout)


def split(a: Tensor) -> tuple[Tensor, Tensor]:
    if a.shape[-1] != 2:
        raise LayoutError(f"split of shape {a.shape}, expected a last dim of 2")
    layout = infer.register("split", a.layout, a.a.shape)
    return Tensor(a.a[..., 0], a.dtype, layout), Tensor(a.a[..., 1], a.dtype, layout)


def gather(src: Tensor, index: Tensor, axis: Any) -> Tensor:
    found = np.take_along_axis(src.a, index.a.astype(np.int64), as_constant(axis, "an axis"))
    return Tensor(found, src.dtype, index.layout)


FUNCTIONS = {
    "arange": arange,
    "full": full,
    "full_like": full_like,
    "zeros": zeros,
    "zeros_like": zeros_like,
    "convert_layout": convert_layout,
    "set_auto_layout": set_auto_layout,
    "expand_dims": expand_dims,
    "permute": permute,
    "reshape": reshape,
    "ravel": ravel,
    "broadcast": broadcast,
    "broadcast_to": broadcast_to,
    "join": join,
    "split": split,
    "gather": gather,
    "trans": permute,
}
