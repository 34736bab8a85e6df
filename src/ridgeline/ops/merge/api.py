"""Exact merge of partial attention results."""

from collections.abc import Sequence

import torch
from torch import Tensor

from ridgeline.ops.common import check
from ridgeline.ops.merge import op


def merge(
    outs: Tensor | Sequence[Tensor], lses: Tensor | Sequence[Tensor]
) -> tuple[Tensor, Tensor]:
    """Attention over a union of key sets from the attention over each set.

    ``out = sum_s exp(lse_s - lse) * out_s`` with ``lse = logsumexp_s(lse_s)`` (Flash-Decoding's
    reduction; cascade attention uses the same). Differentiable in both arguments.

    Args:
        outs: S partial results, ``[S, ..., d]`` or a sequence of ``[..., d]``.
        lses: their natural log-sum-exps, ``[S, ...]`` or a sequence of ``[...]``, float32 or
            float64. A part that saw no key has -inf, and its ``outs`` is not used.

    Returns:
        ``out [..., d]`` in the dtype of ``outs`` and ``lse [...]`` in the dtype of ``lses``; 0 and
        -inf where no part saw a key.

    Raises:
        TypeError, ValueError: wrong types, shapes, dtypes or devices, or S = 0.
    """
    outs, lses = _stack("outs", outs), _stack("lses", lses)
    op.check_shapes(outs, lses)
    return torch.ops.ridgeline.merge.default(outs, lses)


def _stack(name: str, x: Tensor | Sequence[Tensor]) -> Tensor:
    if isinstance(x, Tensor):
        return x
    if not isinstance(x, (tuple, list)):
        raise TypeError(f"{name}: expected a tensor or a sequence of them, got {type(x).__name__}")
    if not x:
        raise ValueError(f"{name}: expected at least one part, got none")
    for i, part in enumerate(x):
        check.tensor(f"{name}[{i}]", part)
        check.shape(f"{name}[{i}]", part, tuple(x[0].shape))
        check.dtype(f"{name}[{i}]", part, (x[0].dtype,))
    return torch.stack(tuple(x))
