"""Picking an implementation: each operation matches on the name that ``pick`` returns."""

from collections.abc import Callable, Mapping
from typing import Literal, get_args

import torch
from torch import Tensor

Impl = Literal["auto", "reference", "cpu", "triton", "hopper"]
IMPLS: tuple[str, ...] = get_args(Impl)


def pick(impl: str, reasons: Mapping[str, Callable[[], str | None]]) -> str:
    """The implementation to run: the first of ``reasons`` that supports the call, or ``impl``.

    ``reasons`` maps names, best first, to functions that say why a call is not supported (``None``
    if it is). An explicit choice that is not supported raises ``ValueError`` with the reason.
    """
    if impl == "auto":
        return next(name for name, reason in reasons.items() if reason() is None)
    if impl not in reasons:
        raise ValueError(f"impl={impl!r}: not built in this version; use {', '.join(reasons)}")
    reason = reasons[impl]()
    if reason is not None:
        raise ValueError(f"impl={impl!r}: {reason}")
    return impl


def empty_outputs(q: Tensor, value_dim: int) -> tuple[Tensor, Tensor]:
    """``out [..., h_q, value_dim]`` and its lse for ``q [..., h_q, d]``; bfloat16 for FP8."""
    dtype = torch.bfloat16 if q.dtype == torch.float8_e4m3fn else q.dtype
    lse_dtype = torch.float64 if q.dtype == torch.float64 else torch.float32
    rows = q.shape[:-1]
    return q.new_empty(*rows, value_dim, dtype=dtype), q.new_empty(rows, dtype=lse_dtype)
