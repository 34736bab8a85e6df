"""``attention`` by the compiled CPU core."""

from torch import Tensor


def unsupported(q: Tensor, k: Tensor, v: Tensor) -> str | None:
    """Why this implementation cannot run the call, or ``None``."""
    return "the core has no kernel for this operation; use impl='reference'"


def forward(*_, **__) -> None:
    raise NotImplementedError


def backward(*_, **__) -> None:
    raise NotImplementedError
