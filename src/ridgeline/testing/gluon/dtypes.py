"""Gluon's types as NumPy sees them.

Registers hold bfloat16, float16 and FP8 as float32 that are rounded to the type; memory holds their
bits. Casts round to nearest even; to FP8 they saturate, as ``cvt.rn.satfinite`` of SM90 does.

There is one object for each type (``canonical``), which ``is`` compares: Triton's ``==`` is slow.
"""

from functools import cache

import numpy as np
import torch

from ridgeline.testing.gluon.errors import UnsupportedError
from ridgeline.testing.gluon.versions import gl

TORCH = {
    gl.float64: torch.float64,
    gl.float32: torch.float32,
    gl.float16: torch.float16,
    gl.bfloat16: torch.bfloat16,
    gl.float8e4nv: torch.float8_e4m3fn,
    gl.float8e5: torch.float8_e5m2,
    gl.int64: torch.int64,
    gl.int32: torch.int32,
    gl.int16: torch.int16,
    gl.int8: torch.int8,
    gl.uint8: torch.uint8,
    gl.uint16: torch.uint16,
    gl.uint32: torch.uint32,
    gl.uint64: torch.uint64,
    gl.int1: torch.bool,
}
GLUON = {value: key for key, value in TORCH.items()}
_LARGEST = {gl.float8e4nv: 448.0, gl.float8e5: 57344.0}
_NARROW = (gl.float16, gl.bfloat16, gl.float8e4nv, gl.float8e5)
_F16, _BF16, _E4M3, _E5M2 = _NARROW
_BY_NAME = {dtype.name: dtype for dtype in TORCH}
_BITS = {1: np.dtype(np.uint8), 2: np.dtype(np.uint16)}
_SIGNED = {1: torch.int8, 2: torch.int16}


def canonical(dtype: gl.dtype) -> gl.dtype:
    """The one object for a type."""
    found = _BY_NAME.get(getattr(dtype, "name", None))
    if found is None:
        raise UnsupportedError(f"values of type {dtype}")
    return found


def is_narrow(dtype: gl.dtype) -> bool:
    return dtype is _BF16 or dtype is _F16 or dtype is _E4M3 or dtype is _E5M2


def _numpy_type(dtype: gl.dtype) -> np.dtype:
    if is_narrow(dtype):
        return np.dtype(np.float32)
    return torch.empty(0, dtype=TORCH[dtype]).numpy().dtype


REGISTER = {dtype: _numpy_type(dtype) for dtype in TORCH}
ITEMSIZE = {dtype: torch.empty(0, dtype=value).element_size() for dtype, value in TORCH.items()}
# How memory holds the type: its bits where NumPy has no such type.
MEMORY = {d: _BITS[ITEMSIZE[d]] if is_narrow(d) else REGISTER[d] for d in TORCH}
_CODES = torch.arange(256, dtype=torch.uint8)
_FP8 = {d: _CODES.view(TORCH[d]).float().numpy() for d in _LARGEST}


def decode(bits: np.ndarray, dtype: gl.dtype) -> np.ndarray:
    """Memory to registers; a copy."""
    if dtype is _BF16:
        wide = bits.astype(np.uint32)
        wide <<= 16
        return wide.view(np.float32)
    if dtype is _F16:
        return bits.view(np.float16).astype(np.float32)
    if is_narrow(dtype):
        return _FP8[dtype][bits]
    return bits.copy()


def encode(values: np.ndarray, dtype: gl.dtype) -> np.ndarray:
    """Registers to memory, rounding if they are not of the type yet."""
    if not is_narrow(dtype):
        return cast(values, dtype)
    values = np.asarray(values, np.float32)
    if dtype is _F16:
        return values.astype(np.float16).view(np.uint16)
    if dtype is not _BF16:
        values = np.clip(values, -_LARGEST[dtype], _LARGEST[dtype])
    if not values.flags.writeable or not values.flags.c_contiguous:
        values = values.copy()
    narrow = torch.from_numpy(values).to(TORCH[dtype])
    return narrow.view(_SIGNED[narrow.element_size()]).numpy().view(MEMORY[dtype])


def cast(values: np.ndarray, dtype: gl.dtype) -> np.ndarray:
    """Values of any type, rounded to ``dtype``, as registers hold them."""
    if is_narrow(dtype):
        values = np.asarray(values)
        bits = encode(values.reshape(1) if values.ndim == 0 else values, dtype)
        return decode(bits, dtype).reshape(values.shape)
    kind = REGISTER[dtype]
    values = np.asarray(values)
    if values.dtype == kind:
        return values
    if values.dtype.kind == "f" and kind.kind in "iu":
        return _float_to_int(values, kind)
    return values.astype(kind)


def _float_to_int(values: np.ndarray, kind: np.dtype) -> np.ndarray:
    """``cvt.rzi``: towards zero, saturating, NaN to 0."""
    limits = np.iinfo(kind)
    wide = np.trunc(np.nan_to_num(values.astype(np.float64), nan=0.0))
    result = np.clip(wide, float(limits.min), float(limits.max))
    above = result >= float(limits.max)
    return np.where(above, limits.max, np.where(above, 0, result).astype(kind)).astype(kind)


_KINDS = {"b": 0, "u": 1, "i": 2, "f": 3}


def _kind(dtype: gl.dtype) -> int:
    return _KINDS[REGISTER[dtype].kind]


def literal_type(value: bool | int | float) -> gl.dtype:
    """The type of a Python number in a kernel."""
    if type(value) is int and -(2**31) <= value < 2**31:
        return gl.int32
    if isinstance(value, bool | np.bool_):
        return gl.int1
    if isinstance(value, int | np.integer):
        for dtype, low, high in (
            (gl.int32, -(2**31), 2**31),
            (gl.uint32, 2**31, 2**32),
            (gl.int64, -(2**63), 2**63),
            (gl.uint64, 2**63, 2**64),
        ):
            if low <= value < high:
                return dtype
        raise OverflowError(f"no integer type holds {value}")
    return gl.float32


def with_literal(dtype: gl.dtype, value: bool | int | float, division: bool) -> gl.dtype:
    """The type in which a value of ``dtype`` and a Python number are combined."""
    return _with_literal(dtype, literal_type(value), division)


@cache
def _with_literal(dtype: gl.dtype, other: gl.dtype, division: bool) -> gl.dtype:
    if _kind(other) <= _kind(dtype):
        return gl.float32 if division and dtype in (gl.float16, gl.bfloat16) else dtype
    return promote(dtype, other, division)


@cache
def promote(a: gl.dtype, b: gl.dtype, division: bool = False) -> gl.dtype:
    """The type in which two values are combined (Triton's rules)."""
    if gl.float64 in (a, b):
        return gl.float64
    if gl.float32 in (a, b):
        return gl.float32
    if gl.float16 in (a, b):
        return gl.float32 if division else gl.float16
    if gl.bfloat16 in (a, b):
        return gl.bfloat16 if a == b and not division else gl.float32
    if a in _LARGEST or b in _LARGEST:
        return a if a == b else gl.float16
    if a == b:
        return a
    a_bits, b_bits = a.int_bitwidth, b.int_bitwidth
    if _kind(a) == _kind(b) or 0 in (_kind(a), _kind(b)):
        return a if a_bits > b_bits else b
    unsigned, signed = (a, b) if _kind(a) == 1 else (b, a)
    return unsigned if unsigned.int_bitwidth >= signed.int_bitwidth else signed
