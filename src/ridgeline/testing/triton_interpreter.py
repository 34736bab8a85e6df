"""Triton's interpreter as the tests need it; imports Triton."""

from functools import cache
from typing import Any

import triton.runtime.interpreter as interpreter


@cache
def prepare() -> None:
    """Three repairs of the interpreter of Triton 3.6.

    - It holds scalars as arrays of one element, which NumPy 2.4 does not convert to the int that
      ``range(n)`` needs.
    - Each launch would copy the whole storage behind every argument, and back: of tensors on the
      CPU a copy onto itself, which commits the memory of caches that are mostly address space.
    - Each call of a device function would patch ``triton.language`` again: a third of the time.
      Once a launch and module is enough.
    """
    patch_tensor, launch = interpreter._patch_lang_tensor, interpreter.GridExecutor.__call__
    patched = set()

    def patch_lang_tensor(tensor: Any, scope: Any) -> None:
        patch_tensor(tensor, scope)
        scope.set_attr(tensor, "__index__", lambda self: int(self.handle.data.item()))

    def launch_once_patched(self: Any, *args: Any, **kwargs: Any) -> None:
        patched.clear()
        launch(self, *args, **kwargs)

    def call(self: Any, *args: Any, **kwargs: Any) -> Any:
        if self.fn.__module__ not in patched:
            patched.add(self.fn.__module__)
            interpreter._patch_lang(self.fn)
        return self.rewrite()(*args, **kwargs)

    interpreter._patch_lang_tensor = patch_lang_tensor
    interpreter.GridExecutor.__call__ = launch_once_patched
    interpreter.GridExecutor._init_args_hst = lambda self, args, kwargs: (args, kwargs)
    interpreter.GridExecutor._restore_args_dev = lambda self, *_: None
    interpreter.InterpretedFunction.__call__ = call
