"""Triton's interpreter as the tests need it; imports Triton."""

from dataclasses import replace
from functools import cache
from math import prod
from typing import Any

import numpy as np
import torch
import triton.language.core as core
import triton.runtime.interpreter as interpreter


@cache
def prepare() -> None:
    """Repairs of the interpreter of Triton 3.6, and what makes it 2.6 times as fast."""
    _scalars_are_indices()
    _launches_copy_nothing()
    _language_is_patched_once()
    _unread_checks_are_off()
    _types_are_made_once()
    _e4m3_is_rounded()


def _scalars_are_indices() -> None:
    """Scalars are arrays of one element, which NumPy 2.4 makes no int that ``range(n)`` needs."""
    patch_tensor = interpreter._patch_lang_tensor

    def patch_lang_tensor(tensor: Any, scope: Any) -> None:
        patch_tensor(tensor, scope)
        scope.set_attr(tensor, "__index__", lambda self: int(self.handle.data.item()))

    interpreter._patch_lang_tensor = patch_lang_tensor


def _launches_copy_nothing() -> None:
    """A launch would copy the whole storage behind every argument, and back.

    Of tensors on the CPU that is a copy onto itself, which commits the memory of caches that are
    mostly address space.
    """
    interpreter.GridExecutor._init_args_hst = lambda self, args, kwargs: (args, kwargs)
    interpreter.GridExecutor._restore_args_dev = lambda self, *_: None


def _language_is_patched_once() -> None:
    """Each call of a device function would patch ``triton.language`` again: a third of the time.

    Once a launch and module is enough.
    """
    launch, patched = interpreter.GridExecutor.__call__, set()

    def launch_once_patched(self: Any, *args: Any, **kwargs: Any) -> None:
        patched.clear()
        launch(self, *args, **kwargs)

    def call(self: Any, *args: Any, **kwargs: Any) -> Any:
        if self.fn.__module__ not in patched:
            patched.add(self.fn.__module__)
            interpreter._patch_lang(self.fn)
        return self.rewrite()(*args, **kwargs)

    interpreter.GridExecutor.__call__ = launch_once_patched
    interpreter.InterpretedFunction.__call__ = call


def _unread_checks_are_off() -> None:
    """Overflow is computed for an assert that is off without ``debug``: a third of the time."""
    builder = interpreter.interpreter_builder
    builder.options = replace(builder.options, sanitize_overflow=False)


def _types_are_made_once() -> None:
    """Every value would make its type anew: shapes, their names, a table of NumPy's dtypes.

    Half of what is left of the time.
    """
    np_dtype = interpreter._get_np_dtype
    of_scalar = cache(np_dtype)

    def get_np_dtype(dtype: Any) -> Any:
        return np_dtype(dtype) if dtype.scalar.is_ptr() else of_scalar(dtype.scalar)

    @cache
    def tensor_shape(shape: tuple[int, ...]) -> tuple[Any, Any]:
        return core.tuple([core.constexpr(n) for n in shape]), core.constexpr(prod(shape))

    @cache
    def block_shape(shape: tuple[Any, ...]) -> tuple[Any, int]:
        shape = core._unwrap_shape(shape)
        return core.tuple(shape), core.validate_block_shape(shape)

    def make_tensor(self: Any, handle: Any, type: Any) -> None:
        self.handle, self.type, self.dtype = handle, type, type.scalar
        self.shape, self.numel = tensor_shape(tuple(type.shape) if type.is_block() else ())

    def make_block(self: Any, element_ty: Any, shape: Any) -> None:
        self.element_ty = element_ty
        self.shape, self.numel = block_shape(tuple(shape))

    interpreter._get_np_dtype = get_np_dtype
    core.tensor.__init__ = make_tensor
    core.block_type.__init__ = make_block
    # Gluon's types derive from this one and set a name of their own.
    core.block_type.name = property(
        lambda self: vars(self).get("name") or f"<{self.shape}, {self.element_ty}>",
        lambda self, name: vars(self).update(name=name),
    )


def _e4m3_is_rounded() -> None:
    """Casts to e4m3 lose the carry of a mantissa that rounds up, and do not round half to even."""
    convert = interpreter._convert_float

    def convert_float(x: np.ndarray, given: Any, wanted: Any, rounding_mode: Any) -> np.ndarray:
        if (given, wanted) != (core.float32, core.float8e4nv):
            return convert(x, given, wanted, rounding_mode)
        values = torch.from_numpy(x.view(np.float32).copy()).clamp(-448.0, 448.0)  # saturated
        return values.to(torch.float8_e4m3fn).view(torch.uint8).numpy()

    interpreter._convert_float = convert_float
