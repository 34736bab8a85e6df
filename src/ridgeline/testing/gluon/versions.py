"""Every name of Triton that differs between its versions, as of 3.6."""

from functools import cache
from types import FunctionType
from typing import Any

import triton
from triton.experimental.gluon import language as gl
from triton.experimental.gluon._runtime import GluonASTSource, GluonJITFunction
from triton.experimental.gluon.language import _standard as standard
from triton.experimental.gluon.language import nvidia
from triton.experimental.gluon.language._layouts import DistributedLayout, SharedLayout
from triton.experimental.gluon.language._semantic import GluonSemantic
from triton.experimental.gluon.language.nvidia import ampere, hopper
from triton.experimental.gluon.nvidia.hopper import TensorDescriptor
from triton.language import standard as tl_standard
from triton.runtime.jit import ConstexprFunction, JITCallable

__all__ = [
    "ConstexprFunction",
    "DistributedLayout",
    "GluonASTSource",
    "GluonJITFunction",
    "GluonSemantic",
    "JITCallable",
    "SharedLayout",
    "TensorDescriptor",
    "aggregate_parts",
    "ampere",
    "gl",
    "hopper",
    "is_aggregate",
    "nvidia",
    "python_function",
    "semantic",
    "standard",
    "tl",
    "tl_standard",
    "triton",
]

tl = triton.language


def python_function(value: Any) -> FunctionType | None:
    """The Python function behind a jitted or interpreted one."""
    if isinstance(value, FunctionType | ConstexprFunction):
        return None
    fn = getattr(value, "fn", None)
    return fn if isinstance(fn, FunctionType) and callable(value) else None


def is_aggregate(value: Any) -> bool:
    return isinstance(value, type) and getattr(value, "__triton_aggregate__", False)


def aggregate_parts(aggregate: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    """Members (methods, ``__init__`` among them) and annotated fields of an aggregate."""
    closure = aggregate.__setattr__.__closure__
    names = aggregate.__setattr__.__code__.co_freevars
    cls = dict(zip(names, (cell.cell_contents for cell in closure), strict=True))["cls"]
    own = {id(member) for member in aggregate.hash_attrs}
    members = {name: getattr(cls, name) for name in dir(cls) if id(getattr(cls, name)) in own}
    return members | {"__init__": cls.__init__}, dict(cls.__annotations__)


@cache
def semantic() -> GluonSemantic:
    """Triton's own operations on its IR, in an empty kernel for SM90."""
    from triton._C.libtriton import gluon_ir, ir
    from triton.backends.compiler import GPUTarget
    from triton.compiler.compiler import make_backend

    context = ir.context()
    ir.load_dialects(context)
    make_backend(GPUTarget("cuda", 90, 32)).load_dialects(context)
    builder = gluon_ir.GluonOpBuilder(context)
    module = builder.create_module()
    module.set_attr("ttg.target", builder.get_string_attr("cuda:90"))
    for name, value in (("num-warps", 4), ("num-ctas", 1), ("threads-per-warp", 32)):
        module.set_attr(f"ttg.{name}", builder.get_int32_attr(value))
    function = builder.get_or_insert_function(
        module, "layouts", builder.get_function_ty([], []), "public", False
    )
    module.push_back(function)
    builder.set_insertion_point_to_start(function.add_entry_block())
    found = GluonSemantic(builder)
    found.kept_alive = context, module
    return found
