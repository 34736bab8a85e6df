"""Register tensors and pointers: NumPy arrays with a Gluon type and layout."""

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any, ClassVar

import numpy as np

from ridgeline.testing.gluon import dtypes, layouts
from ridgeline.testing.gluon.errors import LayoutError, UnsupportedError
from ridgeline.testing.gluon.versions import gl

_Constexpr = gl.constexpr


def unwrap(value: Any) -> Any:
    """A constexpr's value."""
    return value.value if isinstance(value, _Constexpr) else value


def as_shape(shape: Any) -> tuple[int, ...]:
    """A compile-time shape, given as numbers or as one sequence."""
    if len(shape) == 1 and isinstance(unwrap(shape[0]), list | tuple):
        shape = unwrap(shape[0])
    return tuple(as_constant(size, "a shape") for size in shape)


def as_constant(value: Any, what: str) -> int:
    value = unwrap(value)
    if isinstance(value, Tensor):
        raise LayoutError(f"{what} must be known when compiling, got a value of the run")
    return int(value)


class Tensor:
    """``a``: the values as ``dtypes`` holds them; scalars have no dims and no layout."""

    __slots__ = ("a", "dtype", "layout")
    members: ClassVar[dict[str, Callable]] = {}  # functions of the language that are also methods
    __hash__ = object.__hash__

    def __init__(self, a: Any, dtype: gl.dtype, layout: Any = None) -> None:
        self.a, self.dtype, self.layout = a, dtype, layout

    @property
    def shape(self) -> list[int]:
        return list(self.a.shape)

    @property
    def numel(self) -> int:
        return self.a.size

    @property
    def type(self) -> Any:
        return SimpleNamespace(
            shape=self.shape, layout=self.layout, element_ty=self.dtype, scalar=self.dtype
        )

    @property
    def T(self) -> "Tensor":
        return Tensor.members["permute"](self, (1, 0))

    def to(self, dtype: Any, fp_downcast_rounding: Any = None, bitcast: bool = False) -> Any:
        return cast(self, dtype, bitcast)

    def __getitem__(self, index: Any) -> "Tensor":
        return Tensor(self.a[index], self.dtype, indexed_layout(self, index))

    def __getattr__(self, name: str) -> Any:
        if name in Tensor.members:
            return lambda *args, **kwargs: Tensor.members[name](self, *args, **kwargs)
        raise UnsupportedError(f"tensor.{name}")

    def _scalar(self) -> Any:
        if self.a.ndim:
            raise LayoutError(f"a tensor of shape {self.shape} where the kernel needs one value")
        return self.a

    def __bool__(self) -> bool:
        return bool(self._scalar())

    def __index__(self) -> int:
        return int(self._scalar())

    def __int__(self) -> int:
        return int(self._scalar())

    def __float__(self) -> float:
        return float(self._scalar())

    def __neg__(self) -> "Tensor":
        return Tensor(-self.a, self.dtype, self.layout)

    def __pos__(self) -> "Tensor":
        return self

    def __abs__(self) -> "Tensor":
        return Tensor(np.abs(self.a), self.dtype, self.layout)

    def __invert__(self) -> "Tensor":
        return Tensor(~np.asarray(self.a), self.dtype, self.layout)

    def __repr__(self) -> str:
        return f"Tensor({self.a}, {self.dtype}, {self.layout})"


class Pointer:
    """A pointer or a tensor of pointers: ``buffer`` and offsets in elements."""

    __slots__ = ("buffer", "layout", "off")
    __hash__ = object.__hash__

    def __init__(self, buffer: Any, off: Any, layout: Any = None) -> None:
        self.buffer, self.off, self.layout = buffer, off, layout

    @property
    def shape(self) -> list[int]:
        return list(np.shape(self.off))

    @property
    def dtype(self) -> Any:
        return gl.pointer_type(self.buffer.dtype)

    @property
    def type(self) -> Any:
        return SimpleNamespace(shape=self.shape, layout=self.layout, scalar=self.dtype)

    def __add__(self, other: Any) -> "Pointer":
        other = unwrap(other)
        if isinstance(other, Pointer):
            raise TypeError("pointers cannot be added")
        if not isinstance(other, Tensor):
            return Pointer(self.buffer, self.off + int(other), self.layout)
        layout = layout_of(self, other, "pointer arithmetic")
        return Pointer(self.buffer, self.off + np.asarray(other.a, np.int64), layout)

    __radd__ = __add__

    def __sub__(self, other: Any) -> "Pointer":
        return self + -unwrap(other)

    def __getitem__(self, index: Any) -> "Pointer":
        return Pointer(self.buffer, np.asarray(self.off)[index], indexed_layout(self, index))

    def to(self, dtype: Any, bitcast: bool = False) -> Any:
        dtype = unwrap(dtype)
        item = dtypes.ITEMSIZE[self.buffer.dtype]
        if dtype in (gl.int64, gl.uint64):
            address = self.buffer.address + np.asarray(self.off, np.int64) * item
            return Tensor(address.astype(dtypes.REGISTER[dtype]), dtype, self.layout)
        buffer = self.buffer.retyped(dtype.element_ty)
        off = np.asarray(self.off, np.int64) * item
        return Pointer(buffer, off // dtypes.ITEMSIZE[buffer.dtype], self.layout)

    cast = to

    def __bool__(self) -> bool:
        return True


def cast(x: Any, dtype: Any, bitcast: bool = False) -> Any:
    x, dtype = as_tensor(x), unwrap(dtype)
    if isinstance(x, Pointer):
        return x.to(dtype)
    if x.dtype is dtype:
        return x
    dtype = dtypes.canonical(dtype)
    if bitcast:
        bits = np.ascontiguousarray(dtypes.encode(np.atleast_1d(x.a), x.dtype))
        if dtypes.ITEMSIZE[dtype] != bits.itemsize:
            raise LayoutError(f"bitcast of {x.dtype} to {dtype}")
        values = dtypes.decode(bits.view(dtypes.MEMORY[dtype]), dtype)
        return Tensor(values.reshape(np.shape(x.a)), dtype, x.layout)
    if dtype is gl.int1:
        return Tensor(x.a != 0, dtype, x.layout)
    return Tensor(dtypes.cast(x.a, dtype), dtype, x.layout)


def as_tensor(x: Any, dtype: gl.dtype | None = None) -> Any:
    """Anything a kernel may hand to an operation, as a tensor (or pointer)."""
    if isinstance(x, Tensor | Pointer):
        return x
    x = unwrap(x)
    if isinstance(x, bool | int | float | np.generic):
        dtype = dtype or dtypes.literal_type(x)
        value = dtypes.REGISTER[dtype].type(x)
        return Tensor(dtypes.cast(value, dtype) if dtypes.is_narrow(dtype) else value, dtype)
    used = getattr(x, "use_in_flight", None)
    if used is not None:
        used()
    raise TypeError(f"expected a tensor or a number, got {x!r}")


def indexed_layout(x: Any, index: Any) -> Any:
    """The layout of ``x[:, None]``; only new axes and ``:`` may be written."""
    index = index if isinstance(index, tuple) else (index,)
    layout, rank = x.layout, len(x.shape)
    for axis, part in enumerate(index):
        part = unwrap(part)
        if part is None:
            layout = layouts.expanded(layout, axis, rank)
            rank += 1
        elif part != slice(None):
            raise LayoutError(f"a tensor can be indexed with None and `:` only, got {part}")
    return layout


def layout_of(x: Any, y: Any, what: str) -> Any:
    """The layout of an elementwise result; a scalar goes with any."""
    x_shape, y_shape = _shape(x), _shape(y)
    if not x_shape:
        return y.layout
    if not y_shape:
        return x.layout
    if x_shape != y_shape:
        if len(x_shape) != len(y_shape):
            raise LayoutError(f"{what}: ranks of {x_shape} and {y_shape} differ")
        if any(1 not in (p, q) and p != q for p, q in zip(x_shape, y_shape, strict=True)):
            raise LayoutError(f"{what}: shapes {x_shape} and {y_shape} do not broadcast")
    return layouts.common(x.layout, y.layout, what)


def _shape(x: Any) -> tuple[int, ...]:
    return x.a.shape if type(x) is Tensor else np.shape(x.off)


def combined(x: Any, y: Any, what: str, division: bool = False) -> tuple[Any, Any, gl.dtype, Any]:
    """Operands in their common type, that type, and the layout of an elementwise result.

    An operand may stay the Python number it was, where NumPy treats it as Triton does.
    """
    x, y = unwrap(x), unwrap(y)
    if type(x) is Tensor and type(y) is Tensor:
        dtype = x.dtype
        if y.dtype is not dtype or division:
            dtype = dtypes.promote(x.dtype, y.dtype, division)
        return _values(x, dtype), _values(y, dtype), dtype, layout_of(x, y, what)
    if type(x) is Tensor:
        dtype = dtypes.with_literal(x.dtype, _number(y), division)
        return _values(x, dtype), _literal(y, dtype), dtype, x.layout
    if type(y) is Tensor:
        dtype = dtypes.with_literal(y.dtype, _number(x), division)
        return _literal(x, dtype), _values(y, dtype), dtype, y.layout
    return combined(as_tensor(x), as_tensor(y), what, division)


def _values(x: Tensor, dtype: gl.dtype) -> Any:
    return x.a if x.dtype is dtype else cast(x, dtype).a


def _literal(x: Any, dtype: gl.dtype) -> Any:
    weak = type(x) in (int, float) and not dtypes.is_narrow(dtype)
    return x if weak else as_tensor(x, dtype).a


def _number(x: Any) -> Any:
    if isinstance(x, int | float | np.generic):
        return x
    return as_tensor(x)  # raises


def elementwise(
    x: Any, y: Any, function: Callable, what: str, *, compare: bool = False, division: bool = False
) -> Tensor:
    a, b, dtype, layout = combined(x, y, what, division)
    result = function(a, b)
    if compare:
        return Tensor(result, gl.int1, layout)
    if dtypes.is_narrow(dtype):
        result = dtypes.cast(result, dtype)
    return Tensor(result, dtype, layout)


def _divide(x: Any, y: Any, what: str) -> Tensor:
    a, b, dtype, layout = combined(x, y, what, division=True)
    if not dtype.is_floating():
        dtype = gl.float32
        a, b = dtypes.cast(a, dtype), dtypes.cast(b, dtype)
    return Tensor(np.divide(a, b), dtype, layout)


def _floor_divide(a: Any, b: Any) -> Any:
    """Integer division as in C: towards zero."""
    return (a - np.fmod(a, b)) // b


_ARITHMETIC = {
    "add": np.add,
    "sub": np.subtract,
    "mul": np.multiply,
    "and": np.bitwise_and,
    "or": np.bitwise_or,
    "xor": np.bitwise_xor,
    "lshift": np.left_shift,
    "rshift": np.right_shift,
}
_DIVISION = {"floordiv": _floor_divide, "mod": np.fmod}
_COMPARISON = {
    "lt": np.less,
    "le": np.less_equal,
    "gt": np.greater,
    "ge": np.greater_equal,
    "eq": np.equal,
    "ne": np.not_equal,
}


def _install(name: str, function: Callable, reflected: bool, **options: bool) -> None:
    def operator(self: Tensor, other: Any) -> Any:
        if isinstance(other, Pointer):
            return NotImplemented
        return elementwise(self, other, function, name, **options)

    def swapped(self: Tensor, other: Any) -> Any:
        return elementwise(other, self, function, name, **options)

    setattr(Tensor, f"__{name}__", operator)
    if reflected:
        setattr(Tensor, f"__r{name}__", swapped)


for _name, _function in _ARITHMETIC.items():
    _install(_name, _function, True)
for _name, _function in _DIVISION.items():
    _install(_name, _function, True, division=True)
for _name, _function in _COMPARISON.items():
    _install(_name, _function, False, compare=True)
Tensor.__truediv__ = lambda self, other: _divide(self, other, "truediv")
Tensor.__rtruediv__ = lambda self, other: _divide(other, self, "truediv")
