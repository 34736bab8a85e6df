"""Elementwise functions of register tensors, and the product without tensor cores."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from ridgeline.testing.gluon import dtypes
from ridgeline.testing.gluon.errors import LayoutError
from ridgeline.testing.gluon.tensor import (
    Pointer,
    Tensor,
    as_tensor,
    cast,
    combined,
    elementwise,
    layout_of,
    unwrap,
)
from ridgeline.testing.gluon.versions import gl


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


_erf = np.vectorize(math.erf, otypes=[np.float32])
_UNARY = {
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


def dot_fma(a: Tensor, b: Tensor, acc: Tensor) -> Tensor:
    for operand, index in ((a, 0), (b, 1)):
        found = (operand.layout.parent, operand.layout.operand_index)
        if found != (acc.layout, index):
            raise LayoutError(f"dot_fma: operand {index} has layout {operand.layout}")
    product = np.matmul(a.a.astype(acc.a.dtype), b.a.astype(acc.a.dtype))
    return Tensor(product + acc.a, acc.dtype, acc.layout)


FUNCTIONS: dict[str, Any] = {
    **{name: _unary(function) for name, function in _UNARY.items()},
    "add": lambda x, y, sanitize_overflow=True: as_tensor(x) + y,
    "sub": lambda x, y, sanitize_overflow=True: as_tensor(x) - y,
    "mul": lambda x, y, sanitize_overflow=True: as_tensor(x) * y,
    "cast": cast,
    "cdiv": cdiv,
    "div_rn": fdiv,
    "dot_fma": dot_fma,
    "fdiv": fdiv,
    "fma": fma,
    "maximum": maximum,
    "minimum": minimum,
    "umulhi": umulhi,
    "where": where,
}
