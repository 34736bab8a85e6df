"""Reductions and scans of register tensors."""

from collections.abc import Callable
from typing import Any

import numpy as np

from ridgeline.testing.gluon import dtypes, layouts
from ridgeline.testing.gluon.errors import LayoutError
from ridgeline.testing.gluon.shapes import ravel
from ridgeline.testing.gluon.tensor import Tensor, as_constant, as_tensor, cast, unwrap
from ridgeline.testing.gluon.versions import gl


def _reduced(x: Tensor, a: Any, axis: int | None, keep_dims: bool, dtype: gl.dtype) -> Tensor:
    if axis is None:
        layout = None
    elif keep_dims:
        layout = x.layout
    else:
        layout = layouts.reduced(x.layout, axis) if np.ndim(a) else None
    return Tensor(a, dtype, layout)


def _axis(axis: Any, rank: int) -> int | None:
    axis = unwrap(axis)
    if axis is not None and not 0 <= axis < rank:
        raise LayoutError(f"reduction along axis {axis} of a tensor of rank {rank}")
    return axis


def _extremum(function: Any, index: Any) -> Callable:
    def reduction(
        input: Tensor,
        axis: Any = None,
        return_indices: Any = False,
        return_indices_tie_break_left: Any = True,
        keep_dims: Any = False,
    ) -> Any:
        x, keep, axis = as_tensor(input), bool(unwrap(keep_dims)), _axis(axis, len(input.shape))
        if x.dtype.primitive_bitwidth < 32:
            x = cast(x, gl.float32 if x.dtype.is_floating() else gl.int32)
        found = _reduced(x, function.reduce(x.a, axis=axis, keepdims=keep), axis, keep, x.dtype)
        if not unwrap(return_indices):
            return found
        at = index(x.a, axis=axis, keepdims=keep).astype(np.int32)
        return found, _reduced(x, at, axis, keep, gl.int32)

    return reduction


def sum(input: Tensor, axis: Any = None, keep_dims: Any = False, dtype: Any = None) -> Tensor:
    x, keep, axis = as_tensor(input), bool(unwrap(keep_dims)), _axis(axis, len(input.shape))
    kind = unwrap(dtype) or x.dtype
    if unwrap(dtype) is None and not kind.is_floating() and kind.primitive_bitwidth < 32:
        unsigned = kind.is_int_unsigned()
        kind = gl.uint32 if unsigned else gl.int32
    wide = dtypes.REGISTER[kind]
    a = np.sum(cast(x, kind).a, axis=axis, keepdims=keep, dtype=wide)
    narrow = dtypes.is_narrow(kind)
    return _reduced(x, dtypes.cast(a, kind) if narrow else a, axis, keep, kind)


def xor_sum(input: Tensor, axis: Any = None, keep_dims: Any = False) -> Tensor:
    x, keep, axis = as_tensor(input), bool(unwrap(keep_dims)), _axis(axis, len(input.shape))
    a = np.bitwise_xor.reduce(x.a, axis=axis, keepdims=keep)
    return _reduced(x, a, axis, keep, x.dtype)


def reduce_or(input: Tensor, axis: Any, keep_dims: Any = False) -> Tensor:
    x, keep, axis = as_tensor(input), bool(unwrap(keep_dims)), _axis(axis, len(input.shape))
    a = np.bitwise_or.reduce(x.a, axis=axis, keepdims=keep)
    return _reduced(x, a, axis, keep, x.dtype)


def _steps(x: Tensor, axis: int) -> list[Tensor]:
    layout = layouts.reduced(x.layout, axis) if x.a.ndim > 1 else None
    return [Tensor(part, x.dtype, layout) for part in np.moveaxis(x.a, axis, 0)]


def reduce(input: Any, axis: Any, combine_fn: Callable, keep_dims: Any = False) -> Any:
    several = isinstance(input, tuple | list)
    inputs = [as_tensor(x) for x in (input if several else [input])]
    axis, keep = _axis(axis, len(inputs[0].shape)), bool(unwrap(keep_dims))
    if axis is None:
        inputs, axis = [ravel(x) for x in inputs], 0
    parts = list(zip(*(_steps(x, axis) for x in inputs), strict=True))
    total = parts[0]
    for part in parts[1:]:
        found = combine_fn(*total, *part)
        total = found if isinstance(found, tuple) else (found,)
    if keep:
        total = tuple(
            Tensor(np.expand_dims(t.a, axis), t.dtype, x.layout)
            for t, x in zip(total, inputs, strict=True)
        )
    return total if several else total[0]


def associative_scan(input: Any, axis: Any, combine_fn: Callable, reverse: Any = False) -> Any:
    several = isinstance(input, tuple | list)
    inputs = [as_tensor(x) for x in (input if several else [input])]
    axis = as_constant(axis, "an axis") % len(inputs[0].shape)
    parts = list(zip(*(_steps(x, axis) for x in inputs), strict=True))
    parts = parts[::-1] if unwrap(reverse) else parts
    totals = [parts[0]]
    for part in parts[1:]:
        found = combine_fn(*totals[-1], *part)
        totals.append(found if isinstance(found, tuple) else (found,))
    totals = totals[::-1] if unwrap(reverse) else totals
    results = tuple(
        Tensor(np.stack([t[i].a for t in totals], axis), totals[0][i].dtype, x.layout)
        for i, x in enumerate(inputs)
    )
    return results if several else results[0]


FUNCTIONS = {
    "associative_scan": associative_scan,
    "max": _extremum(np.fmax, np.argmax),
    "min": _extremum(np.fmin, np.argmin),
    "reduce": reduce,
    "reduce_or": reduce_or,
    "sum": sum,
    "xor_sum": xor_sum,
}
