"""The compiled CPU core: loading it, and handing it tensors as pointer, shape and strides."""

from functools import cache
from types import ModuleType

import torch
from torch import Tensor

PREFETCH_TILES = 1
_DTYPES = {torch.bfloat16: "bfloat16", torch.float16: "float16", torch.float32: "float32"}


@cache
def _import() -> tuple[ModuleType | None, str | None]:
    try:
        from ridgeline import _core
    except ImportError as e:
        return None, f"the compiled core is missing ({e}); build it with `pip install .`"
    return _core, None


def load() -> ModuleType:
    core, reason = _import()
    if core is None:
        raise ImportError(reason)
    return core


def unsupported(q: Tensor, cache: Tensor) -> str | None:
    """Why the core cannot run a decode of ``q`` over ``cache``, or ``None``."""
    if q.device.type != "cpu":
        return f"tensors are on {q.device}, this implementation runs on the CPU"
    if cache.dtype not in _DTYPES:
        have = str(cache.dtype).removeprefix("torch.")
        return f"caches are bfloat16, float16 or float32, got {have}; use impl='reference'"
    return missing()


def missing() -> str | None:
    """Why the core cannot be loaded, or ``None``."""
    return _import()[1]


def isas() -> list[str]:
    """The instruction sets of the core that this machine has, best first."""
    return load().isas()


def num_threads() -> int:
    return torch.get_num_threads()


def dtype_name(x: Tensor) -> str:
    return _DTYPES[x.dtype]


def view(x: Tensor) -> tuple[int, tuple[int, ...], tuple[int, ...], int]:
    """Pointer, shape, strides in elements, bytes an element."""
    return x.data_ptr(), tuple(x.shape), x.stride(), x.element_size()
