"""Names of Gluon that differ between Triton versions: these are Triton 3.6's."""

from triton._C.libtriton import ir
from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import (
    async_copy,
    fence_async_shared,
    mbarrier,
    tma,
    warpgroup_mma,
)
from triton.experimental.gluon.language.nvidia.hopper import (
    warpgroup_mma_wait as wait_without_bytes,
)
from triton.experimental.gluon.nvidia.hopper import TensorDescriptor
from triton.language.core import _aggregate as aggregate
from triton.language.core import builtin, tensor


@builtin
def async_reduce_add(desc, coord, src, _semantic=None):
    """``cp.reduce.async.bulk.tensor`` with ``.add``, which Triton compiles but does not name."""
    coord = _semantic._convert_to_ir_values(coord, require_i64=False)
    kind = ir.DESCRIPTOR_REDUCE_KIND.ADD
    _semantic.builder.create_async_tma_reduce(kind, desc.handle, coord, src.handle)


@builtin
def warpgroup_mma_wait(num_outstanding=0, deps=None, _semantic=None):
    """Triton's own, which the compiler refuses operands of 8 bits among ``deps``.

    They keep their registers because something reads them behind the wait.
    """
    narrow = [isinstance(x, tensor) and x.dtype.primitive_bitwidth == 8 for x in deps]
    wide = [x for x, small in zip(deps, narrow, strict=True) if not small]
    found = wait_without_bytes(num_outstanding, wide, _semantic=_semantic)
    if len(deps) == 1:
        return found
    found = iter(found if len(wide) > 1 else [found])
    results = [x if small else next(found) for x, small in zip(deps, narrow, strict=True)]
    for x, small in zip(deps, narrow, strict=True):
        if small:
            gl.inline_asm_elementwise(
                "// $1", "=r,r", [x], gl.int8, is_pure=False, pack=4, _semantic=_semantic
            )
    return tuple(results)


@builtin
def pack_e4m3(parts, _semantic=None):
    """Four tensors of float32 as float8_e4m3fn, saturating: int32, the first in the lowest byte.

    A loop of the compiler carries each element of a tensor in a register of its own.
    """
    ptx = """{
        .reg .b16 low, high;
        cvt.rn.satfinite.e4m3x2.f32 low, $2, $1;
        cvt.rn.satfinite.e4m3x2.f32 high, $4, $3;
        mov.b32 $0, {low, high};
    }"""
    return gl.inline_asm_elementwise(
        ptx, "=r,f,f,f,f", list(parts), gl.int32, is_pure=True, pack=1, _semantic=_semantic
    )


__all__ = [
    "TensorDescriptor",
    "aggregate",
    "async_copy",
    "async_reduce_add",
    "fence_async_shared",
    "gl",
    "gluon",
    "mbarrier",
    "pack_e4m3",
    "tma",
    "warpgroup_mma",
    "warpgroup_mma_wait",
]
