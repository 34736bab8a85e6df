"""What ``merge`` computes, in eager PyTorch, and its gradient."""

import torch
from torch import Tensor

from ridgeline.ops.common.softmax import masked_softmax


def merge(outs: Tensor, lses: Tensor) -> tuple[Tensor, Tensor]:
    """``outs [S, ..., d]``, ``lses [S, ...]`` -> ``out [..., d]``, ``lse [...]``."""
    w, lse = _weights(lses)
    parts = outs.to(lses.dtype).masked_fill(_unseen(lses), 0.0)
    return (w * parts).sum(0).to(outs.dtype).contiguous(), lse.contiguous()


def merge_backward(
    outs: Tensor, lses: Tensor, grad_out: Tensor, grad_lse: Tensor
) -> tuple[Tensor, Tensor]:
    """``d outs = w dout``; ``d lses = w ((outs - out) · dout + dlse)``, w the merge weights."""
    w, _ = _weights(lses)
    parts = outs.to(lses.dtype).masked_fill(_unseen(lses), 0.0)
    out = (w * parts).sum(0)
    grad_out = grad_out.to(lses.dtype)
    grad_outs = w * grad_out
    grad_lses = w[..., 0] * (((parts - out) * grad_out).sum(-1) + grad_lse)
    return grad_outs.to(outs.dtype).contiguous(), grad_lses.contiguous()


def _weights(lses: Tensor) -> tuple[Tensor, Tensor]:
    """``w [S, ..., 1]`` and ``lse [...]``."""
    w, lse = masked_softmax(lses.movedim(0, -1), ~_unseen(lses)[..., 0].movedim(0, -1))
    return w.movedim(-1, 0)[..., None], lse


def _unseen(lses: Tensor) -> Tensor:
    return (lses == -torch.inf)[..., None]
