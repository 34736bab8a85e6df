"""What the layers of a forward need alike is made once."""

import weakref
from collections import deque
from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import Tensor

T = TypeVar("T")
MASKS = 4  # different ones that the layers of one model may use in turn


class Memo:
    """The last few results, kept while they are asked for with the same unchanged tensors.

    Layers of one forward share their tensors, and a check that reads values makes a device wait.
    """

    def __init__(self) -> None:
        self._known: deque[tuple[list[Any], Any]] = deque(maxlen=MASKS)

    def __call__(self, make: Callable[..., T], *args: Any) -> T:
        tensors = [x for x in args if isinstance(x, Tensor)]
        if torch.compiler.is_compiling() or any(x.is_inference() for x in tensors):
            return make(*args)
        for known, result in tuple(self._known):  # other threads may add one
            if len(known) == len(args) + 1 and all(map(_same, known, (make, *args))):
                return result
        result = make(*args)
        known = [(weakref.ref(x), x._version) if isinstance(x, Tensor) else x for x in args]
        self._known.append(([make, *known], result))
        return result


def _same(known: Any, x: Any) -> bool:
    if isinstance(x, Tensor):
        return isinstance(known, tuple) and known[0]() is x and known[1] == x._version
    return known == x
