"""Kernels as Python: the same code objects, with the names of Gluon exchanged for ours."""

import builtins
from collections.abc import Callable
from types import CellType, FunctionType, MethodType, ModuleType
from typing import Any

from ridgeline.testing.gluon import (
    access,
    arithmetic,
    async_copy,
    barrier,
    language,
    shared,
    specialize,
    tma,
    versions,
    wgmma,
)
from ridgeline.testing.gluon.asm import inline_asm_elementwise
from ridgeline.testing.gluon.errors import UnsupportedError
from ridgeline.testing.gluon.tensor import Pointer, Tensor, unwrap
from ridgeline.testing.gluon.versions import gl
from ridgeline.testing.gluon.view import View


class Namespace:
    """A module of Gluon: our functions, its own types, an error for the rest."""

    def __init__(self, module: ModuleType, members: dict[str, Any]) -> None:
        self._module, self._members = module, members

    def __getattr__(self, name: str) -> Any:
        if name in self._members:
            return self._members[name]
        real = getattr(self._module, name)
        if isinstance(real, ModuleType):
            return emulated(real)
        if isinstance(real, type | gl.dtype):
            return real
        raise UnsupportedError(f"{self._module.__name__}.{name} is not interpreted")


class _Proxy:
    """A module that a kernel takes names from."""

    def __init__(self, module: ModuleType) -> None:
        self._module = module

    def __getattr__(self, name: str) -> Any:
        return emulated(getattr(self._module, name))


_LANGUAGE = {
    **language.FUNCTIONS,
    **access.ATOMICS,
    "atomic_cas": access.atomic_cas,
    "allocate_shared_memory": shared.allocate_shared_memory,
    "inline_asm_elementwise": inline_asm_elementwise,
    "load": access.load,
    "store": access.store,
    "warp_specialize": specialize.warp_specialize,
}
_HOPPER = {
    "fence_async_shared": shared.fence_async_shared,
    "warpgroup_mma": wgmma.warpgroup_mma,
    "warpgroup_mma_init": wgmma.warpgroup_mma_init,
    "warpgroup_mma_wait": wgmma.warpgroup_mma_wait,
}
_MODULES = [
    (versions.gl, _LANGUAGE),
    (versions.standard, _LANGUAGE),
    (versions.tl, _LANGUAGE),
    (versions.tl_standard, _LANGUAGE),
    (versions.tl.math, _LANGUAGE),
    (versions.nvidia, {}),
    (versions.ampere, {}),
    (versions.hopper, _HOPPER),
    (versions.hopper.tma, tma.FUNCTIONS),
    (versions.hopper.mbarrier, barrier.FUNCTIONS),
    (versions.ampere.mbarrier, barrier.FUNCTIONS),
    (versions.hopper.async_copy, async_copy.FUNCTIONS),
]
_exchanged: dict[int, Any] = {id(versions.triton.cdiv): arithmetic.cdiv}
for _module, _members in _MODULES:
    _exchanged[id(_module)] = Namespace(_module, _members)
    for _name, _member in _members.items():
        if hasattr(_module, _name):
            _exchanged.setdefault(id(getattr(_module, _name)), _member)


def register(builtin: Any, function: Callable) -> None:
    """Interprets a kernel author's own builtin by ``function``."""
    _exchanged[id(builtin)] = function
    _registered.append(builtin)  # its id stays taken


_registered: list[Any] = []


def _either(python: Callable, ours: Callable) -> Callable:
    def choose(*args: Any, **kwargs: Any) -> Any:
        return (ours if any(isinstance(a, Tensor) for a in args) else python)(*args, **kwargs)

    return choose


_BUILTINS = vars(builtins) | {
    "range": language.run_range,
    "min": _either(min, arithmetic.minimum),
    "max": _either(max, arithmetic.maximum),
}


class Function:
    """A jitted function, interpreted. ``code_of`` may hand out another code: a mutation's."""

    called: "set[FunctionType] | None" = None  # collects what ran, when recorded
    code_of: Callable[[FunctionType], Any] = staticmethod(lambda fn: fn.__code__)

    def __init__(self, fn: FunctionType) -> None:
        self.fn, self.__name__, self._python = fn, fn.__name__, None

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if self._python is None:
            self._python = _rebuilt(self.fn)
        if Function.called is not None:
            Function.called.add(self.fn)
        return self._python(*map(unwrap, args), **{k: unwrap(v) for k, v in kwargs.items()})

    def __get__(self, obj: Any, owner: Any = None) -> Any:
        return self if obj is None else MethodType(self, obj)


_globals: dict[int, dict] = {}
_functions: dict[int, Any] = {}


def reset() -> None:
    """Modules may have changed since the last launch."""
    _globals.clear()
    _functions.clear()


def _rebuilt(fn: FunctionType) -> FunctionType:
    key = id(fn.__globals__)
    if key not in _globals:
        _globals[key] = scope = {"__builtins__": _BUILTINS}
        for name, value in fn.__globals__.items():
            if name != "__builtins__":
                scope[name] = emulated(value)
    closure = fn.__closure__ and tuple(CellType(emulated(c.cell_contents)) for c in fn.__closure__)
    defaults = fn.__defaults__ and tuple(unwrap(d) for d in fn.__defaults__)
    python = FunctionType(Function.code_of(fn), _globals[key], fn.__name__, defaults, closure)
    python.__kwdefaults__ = fn.__kwdefaults__
    return python


def emulated(value: Any) -> Any:
    """What a name of a kernel's module means to the interpreter."""
    key = id(value)
    if key in _exchanged:
        return _exchanged[key]
    if isinstance(value, gl.constexpr):
        return emulated(value.value)
    if key in _functions:
        return _functions[key][1]
    if versions.is_aggregate(value):
        _functions[key] = value, None  # a field may name its own class
        found = _aggregate(value)
    elif (fn := versions.python_function(value)) is not None:
        found = Function(fn)
    elif isinstance(value, ModuleType):
        found = _Proxy(value)
    elif isinstance(value, versions.ConstexprFunction):
        found = _Constant(value)
    else:
        return value
    _functions[key] = value, found
    return found


class _Constant:
    """A function that runs at compile time; may be a method."""

    def __init__(self, function: Any) -> None:
        self.function = function

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return unwrap(self.function.fn(*map(unwrap, args), **kwargs))

    def __get__(self, obj: Any, owner: Any = None) -> Any:
        return self if obj is None else MethodType(self, obj)


def _kind(annotation: Any) -> Any:
    """The interpreter's types of an annotated field; None for any."""
    if annotation is gl.tensor:
        return Tensor | Pointer
    if annotation is gl.shared_memory_descriptor:
        return View
    if annotation is versions.hopper.tma.tensor_descriptor:
        return tma.Descriptor
    if versions.is_aggregate(annotation):
        return emulated(annotation)
    return None


def _aggregate(real: Any) -> type:
    members, fields = versions.aggregate_parts(real)
    kinds: dict[str, Any] = {}

    def set_field(self: Any, name: str, value: Any) -> None:
        if name not in fields:
            raise AttributeError(f"{real.__name__} has no field {name!r}")
        if name not in kinds:
            kinds[name] = _kind(fields[name])
        value = unwrap(value)
        if fields[name] is gl.constexpr and isinstance(value, Tensor | Pointer | View):
            raise TypeError(f"{real.__name__}.{name}: expected a constexpr, got {value!r}")
        if kinds[name] is not None and not isinstance(value, kinds[name]):
            raise TypeError(f"{real.__name__}.{name}: expected {fields[name]}, got {value!r}")
        object.__setattr__(self, name, value)

    body: dict[str, Any] = {"__setattr__": set_field}
    for name, member in members.items():
        plain = isinstance(member, FunctionType)
        body[name] = Function(member) if plain else emulated(member)
    return type(real.__name__, (), body)
