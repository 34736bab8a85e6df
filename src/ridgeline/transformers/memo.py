"""What the layers of a forward need alike is made once."""

import weakref
from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import Tensor

T = TypeVar("T")


class Memo:
    """The last result, kept while it is asked for with the same unchanged tensors: once a forward.

    Layers of one forward share their tensors, and a check that reads values makes a device wait.
    """

    def __init__(self) -> None:
        self._last: tuple[list[Any], Any] | None = None

    def __call__(self, make: Callable[..., T], *args: Any) -> T:
        tensors = [x for x in args if isinstance(x, Tensor)]
        if torch.compiler.is_compiling() or any(x.is_inference() for x in tensors):
            return make(*args)
        last = self._last
        if last is not None and all(map(_same, last[0], args)):
            return last[1]
        result = make(*args)
        known = [(weakref.ref(x), x._version) if isinstance(x, Tensor) else x for x in args]
        self._last = (known, result)
        return result


def _same(known: Any, x: Any) -> bool:
    if isinstance(x, Tensor):
        return isinstance(known, tuple) and known[0]() is x and known[1] == x._version
    return known == x
