"""Argument checks: each names the argument, what was expected and what came."""

import math
import sys
from collections.abc import Sequence

import torch
from torch import Tensor

from ridgeline.ops.common.dispatch import IMPLS

FLOATS = (torch.bfloat16, torch.float16, torch.float32, torch.float64)
FP8 = torch.float8_e4m3fn


def tensor(name: str, x: object) -> Tensor:
    if not isinstance(x, Tensor):
        raise TypeError(f"{name}: expected a torch.Tensor, got {type(x).__name__}")
    return x


def shape(name: str, x: Tensor, expected: Sequence[int | str]) -> None:
    """Strings in ``expected`` name free dimensions, integers must match."""
    ok = x.dim() == len(expected)
    for have, want in zip(x.shape, expected, strict=False):
        ok = ok and (isinstance(want, str) or have == want)
    if not ok:
        want = ", ".join(str(n) for n in expected)
        raise ValueError(f"{name}: expected shape [{want}], got {list(x.shape)}")


def dtype(name: str, x: Tensor, allowed: Sequence[torch.dtype]) -> None:
    if x.dtype not in allowed:
        names = ", ".join(str(d).removeprefix("torch.") for d in allowed)
        got = str(x.dtype).removeprefix("torch.")
        raise TypeError(f"{name}: expected dtype {names}, got {got}")


def same_device(**tensors: Tensor | None) -> None:
    given = {name: x for name, x in tensors.items() if x is not None}
    first, ref = next(iter(given.items()))
    for name, x in given.items():
        if x.device != ref.device:
            raise ValueError(f"{name}: expected device {ref.device} as {first}, got {x.device}")


def contiguous_last_dim(name: str, x: Tensor) -> None:
    if x.shape[-1] > 1 and x.stride(-1) != 1:
        raise ValueError(
            f"{name}: expected a contiguous last dim (stride 1), got stride {x.stride(-1)}"
        )


def finite(name: str, x: float, *, minimum: float = -math.inf) -> float:
    if isinstance(x, bool) or not isinstance(x, (int, float)):
        raise TypeError(f"{name}: expected a float, got {type(x).__name__}")
    if not max(minimum, -sys.float_info.max) <= x <= sys.float_info.max:  # also of a SymFloat
        bound = "" if minimum == -math.inf else f" >= {minimum:g}"
        raise ValueError(f"{name}: expected a finite number{bound}, got {x}")
    return float(x)


def flag(name: str, x: object) -> bool:
    if not isinstance(x, bool):
        raise TypeError(f"{name}: expected a bool, got {type(x).__name__}")
    return x


def count(name: str, x: object, *, minimum: int = 0, maximum: int = 2**31 - 1) -> int:
    if isinstance(x, bool) or not isinstance(x, int):
        raise TypeError(f"{name}: expected an int, got {type(x).__name__}")
    if not minimum <= x <= maximum:
        bound = f"at least {minimum}" if x < minimum else f"at most {maximum}"
        raise ValueError(f"{name}: expected {bound}, got {x}")
    return x


def divides(small_name: str, small: int, big_name: str, big: int) -> None:
    if small == 0 or big % small:
        raise ValueError(f"{small_name}: expected a divisor of {big_name} ({big}), got {small}")


def name_of_impl(impl: object) -> str:
    if impl not in IMPLS:
        raise ValueError(f"impl: expected one of {', '.join(IMPLS)}, got {impl!r}")
    return impl


def queries(name: str, q: Tensor) -> None:
    """Queries of a decode step, ``[B, L_q, h_q, d]``."""
    shape(name, q, ("B", "L_q", "h_q", "d"))
    dtype(name, q, FLOATS)
    contiguous_last_dim(name, q)
    if min(q.shape[1:]) == 0:
        raise ValueError(f"{name}: expected L_q, h_q and d of at least 1, got {list(q.shape)}")


def window(name: str, x: tuple[int | None, int | None] | None) -> tuple[int, int]:
    """``(left, right)``, ``None`` for unbounded, as two integers where -1 means unbounded."""
    if x is None:
        return -1, -1
    if not isinstance(x, (tuple, list)) or len(x) != 2:
        raise TypeError(f"{name}: expected None or (left, right), got {x!r}")
    left, right = (-1 if side is None else count(f"{name}[{i}]", side) for i, side in enumerate(x))
    return left, right


def scale(name: str, x: Tensor | float | None, cache_name: str, cache: Tensor) -> Tensor | None:
    """A scale of an FP8 cache: a number, or float32 ``[h]`` or ``[num_pages, page_size, h, n]``."""
    if x is None:
        return None
    if cache.dtype != FP8:
        got = str(cache.dtype).removeprefix("torch.")
        raise ValueError(f"{name}: expected None unless {cache_name} is float8_e4m3fn, got {got}")
    if not isinstance(x, Tensor):
        # Filled there: a copy from the host would be waited for.
        return torch.full((), finite(name, x), dtype=torch.float32, device=cache.device)
    dtype(name, x, (torch.float32,))
    same_device(**{cache_name: cache, name: x})
    num_pages, page_size, heads, dim = cache.shape
    if x.dim() == 4:
        shape(name, x, (num_pages, page_size, heads, "n"))
        divides(f"{name}.shape[3]", x.shape[3], f"{cache_name}.shape[3]", dim)
    elif x.dim() == 1:
        shape(name, x, (heads,))
    elif x.dim() != 0:
        raise ValueError(
            f"{name}: expected a number, [{heads}] or [{num_pages}, {page_size}, {heads}, n], "
            f"got {list(x.shape)}"
        )
    return x
