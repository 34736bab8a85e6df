"""The ``gl`` namespace: operations on register tensors."""

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from ridgeline.testing.gluon import dtypes, infer, layouts
from ridgeline.testing.gluon.errors import GluonError, LayoutError
from ridgeline.testing.gluon.memory import synchronise_lanes
from ridgeline.testing.gluon.scheduler import current, machine
from ridgeline.testing.gluon.sites import site
from ridgeline.testing.gluon.tensor import (
    Pointer,
    Tensor,
    as_constant,
    as_shape,
    as_tensor,
    cast,
    combined,
    elementwise,
    layout_of,
    unwrap,
)
from ridgeline.testing.gluon.versions import gl

# ---------------------------------------------------------------------- creation


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


# ---------------------------------------------------------------------- layouts and shapes


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


# ---------------------------------------------------------------------- arithmetic


def where(condition: Any, x: Any, y: Any) -> Any:
    condition = cast(condition, gl.int1)
    if isinstance(x, Pointer):
        layout = layout_of(condition, x, "where")
        return Pointer(x.buffer, np.where(condition.a, x.off, y.off), layout)
    a, b, dtype, layout = combined(x, y, "where")
    values = Tensor(
        np.broadcast_to(a, np.broadcast_shapes(np.shape(a), np.shape(b))), dtype, layout
    )
    layout = layout_of(condition, values, "where")
    return Tensor(np.where(condition.a, a, b), dtype, layout)


def maximum(x: Any, y: Any, propagate_nan: Any = None) -> Tensor:
    return elementwise(x, y, np.fmax, "maximum")


def minimum(x: Any, y: Any, propagate_nan: Any = None) -> Tensor:
    return elementwise(x, y, np.fmin, "minimum")


def fma(x: Any, y: Any, z: Any) -> Tensor:
    x, y, z = as_tensor(x), as_tensor(y), as_tensor(z)
    layout = layout_of(Tensor(x.a * y.a, x.dtype, layout_of(x, y, "fma")), z, "fma")
    wide = np.asarray(x.a, np.float64) * y.a + z.a
    return Tensor(dtypes.cast(wide, x.dtype), x.dtype, layout)


def cdiv(x: Any, div: Any) -> Any:
    x, div = unwrap(x), unwrap(div)
    return (x + (div - 1)) // div


def _unary(function: Callable) -> Callable:
    def apply(x: Any) -> Tensor:
        x = as_tensor(x)
        result = function(x.a)
        narrow = dtypes.is_narrow(x.dtype)
        return Tensor(dtypes.cast(result, x.dtype) if narrow else result, x.dtype, x.layout)

    return apply


_erf = np.vectorize(__import__("math").erf, otypes=[np.float32])
UNARY = {
    "exp": np.exp,
    "exp2": np.exp2,
    "log": np.log,
    "log2": np.log2,
    "sqrt": np.sqrt,
    "sqrt_rn": np.sqrt,
    "rsqrt": lambda a: np.float32(1) / np.sqrt(a),
    "sin": np.sin,
    "cos": np.cos,
    "abs": np.abs,
    "floor": np.floor,
    "ceil": np.ceil,
    "erf": _erf,
}


def fdiv(x: Any, y: Any, ieee_rounding: Any = False) -> Tensor:
    return as_tensor(x) / as_tensor(y)


def umulhi(x: Any, y: Any) -> Tensor:
    x, y = as_tensor(x), as_tensor(y)
    high = (x.a.astype(np.uint64) * y.a.astype(np.uint64)) >> np.uint64(32)
    return Tensor(high.astype(dtypes.REGISTER[x.dtype]), x.dtype, layout_of(x, y, "umulhi"))


# ---------------------------------------------------------------------- reductions


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


def dot_fma(a: Tensor, b: Tensor, acc: Tensor) -> Tensor:
    for operand, index in ((a, 0), (b, 1)):
        found = (operand.layout.parent, operand.layout.operand_index)
        if found != (acc.layout, index):
            raise LayoutError(f"dot_fma: operand {index} has layout {operand.layout}")
    product = np.matmul(a.a.astype(acc.a.dtype), b.a.astype(acc.a.dtype))
    return Tensor(product + acc.a, acc.dtype, acc.layout)


# ---------------------------------------------------------------------- the program


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


max = _extremum(np.fmax, np.argmax)
min = _extremum(np.fmin, np.argmin)

FUNCTIONS: dict[str, Any] = {
    **{name: _unary(function) for name, function in UNARY.items()},
    "add": lambda x, y, sanitize_overflow=True: as_tensor(x) + y,
    "arange": arange,
    "associative_scan": associative_scan,
    "assume": _same,
    "broadcast": broadcast,
    "broadcast_to": broadcast_to,
    "cast": cast,
    "cdiv": cdiv,
    "constexpr": constexpr,
    "convert_layout": convert_layout,
    "device_assert": device_assert,
    "device_print": _print,
    "div_rn": fdiv,
    "dot_fma": dot_fma,
    "expand_dims": expand_dims,
    "fdiv": fdiv,
    "fma": fma,
    "full": full,
    "full_like": full_like,
    "gather": gather,
    "join": join,
    "max": max,
    "max_constancy": _same,
    "max_contiguous": _same,
    "maximum": maximum,
    "min": min,
    "minimum": minimum,
    "mul": lambda x, y, sanitize_overflow=True: as_tensor(x) * y,
    "multiple_of": _same,
    "num_ctas": num_ctas,
    "num_programs": num_programs,
    "num_warps": num_warps,
    "permute": permute,
    "program_id": program_id,
    "ravel": ravel,
    "reduce": reduce,
    "reduce_or": reduce_or,
    "reshape": reshape,
    "set_auto_layout": set_auto_layout,
    "split": split,
    "static_assert": static_assert,
    "static_print": _print,
    "static_range": static_range,
    "sub": lambda x, y, sanitize_overflow=True: as_tensor(x) - y,
    "sum": sum,
    "thread_barrier": thread_barrier,
    "to_tensor": as_tensor,
    "trans": permute,
    "tuple": tuple,
    "umulhi": umulhi,
    "where": where,
    "xor_sum": xor_sum,
    "zeros": zeros,
    "zeros_like": zeros_like,
}
Tensor.members = {
    name: FUNCTIONS[name]
    for name in (
        *UNARY, "broadcast_to", "cast", "cdiv", "expand_dims", "gather", "max", "min", "permute",
        "ravel", "reduce", "reduce_or", "reshape", "split", "sum", "trans", "xor_sum",
    )
}  # fmt: skip
