"""Triton's interpreter as the tests need it; imports Triton."""

import triton.runtime.interpreter as interpreter


def prepare() -> None:
    """Two repairs of the interpreter of Triton 3.6, which holds scalars as arrays of one element.

    - NumPy 2.4 no longer converts such an array to an int, as ``range(n)`` needs.
    - Each launch would copy the whole storage behind every argument, and back: of tensors on the
      CPU a copy onto itself, which commits the memory of caches that are mostly address space.
    """
    patch = interpreter._patch_lang_tensor

    def patch_lang_tensor(tensor, scope) -> None:
        patch(tensor, scope)
        scope.set_attr(tensor, "__index__", lambda self: int(self.handle.data.item()))

    interpreter._patch_lang_tensor = patch_lang_tensor
    interpreter.GridExecutor._init_args_hst = lambda self, args, kwargs: (args, kwargs)
    interpreter.GridExecutor._restore_args_dev = lambda self, *_: None
