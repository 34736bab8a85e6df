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
    """``out [B, L_q, h_q, value_dim]`` in the dtype of ``q [B, L_q, h_q, d]``, and its lse."""
    lse_dtype = torch.float64 if q.dtype == torch.float64 else torch.float32
    return q.new_empty(*q.shape[:3], value_dim), q.new_empty(q.shape[:3], dtype=lse_dtype)
