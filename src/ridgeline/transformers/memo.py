"""What the layers of a forward need alike is made once."""

import weakref
from collections import deque
from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import Tensor

T = TypeVar("T")
MASKS = 4  # different ones that the layers of one model may use in turn
_forwards = 0  # begun so far


def new_forward() -> None:
    """Forget all results: what is asked for next may have been written to from outside.

    PyTorch counts its own writes to a tensor alone, not those through NumPy or DLPack.
    """
    global _forwards
    if not torch.compiler.is_compiling():
        _forwards += 1


class Memo:
    """The last few results of a forward, kept while asked for with the same unchanged tensors.

    Layers of one forward share their tensors, and a check that reads values makes a device wait.
    Masks that are made once serve several forwards: on the CPU, where no one waits, the values
    themselves are compared too.
    """

    def __init__(self) -> None:
        self._known: deque[tuple[list[Any], Any]] = deque(maxlen=MASKS)

    def __call__(self, make: Callable[..., T], *args: Any) -> T:
        tensors = [x for x in args if isinstance(x, Tensor)]
        if torch.compiler.is_compiling() or any(x.is_inference() for x in tensors):
            return make(*args)
        asked = (make, _forwards, *args)
        for known, result in tuple(self._known):  # other threads may add one
            if len(known) == len(args) + 2 and all(map(_same, known, asked)):
                return result
        result = make(*args)
        self._known.append(([_kept(x) for x in asked], result))
        return result


def _kept(x: Any) -> Any:
    if not isinstance(x, Tensor):
        return x
    return weakref.ref(x), x._version, x.detach().clone() if x.device.type == "cpu" else None


def _same(known: Any, x: Any) -> bool:
    if isinstance(x, Tensor):
        if not (isinstance(known, tuple) and known[0]() is x and known[1] == x._version):
            return False
        return known[2] is None or torch.equal(known[2], x)
    return known == x
