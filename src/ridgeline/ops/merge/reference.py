"""What ``merge`` computes, in eager PyTorch, and its gradient."""

import torch
from torch import Tensor


def merge(outs: Tensor, lses: Tensor) -> tuple[Tensor, Tensor]:
    """``outs [S, ..., d]``, ``lses [S, ...]`` -> ``out [..., d]``, ``lse [...]``."""
    w, lse = _weights(lses)
    parts = outs.to(lses.dtype).masked_fill(_unseen(lses), 0.0)
    return (w * parts).sum(0).to(outs.dtype), lse


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
    return grad_outs.to(outs.dtype), grad_lses


def _weights(lses: Tensor) -> tuple[Tensor, Tensor]:
    """``w [S, ..., 1]`` and ``lse [...]``."""
    lse = torch.logsumexp(lses, dim=0)
    return torch.exp(lses - lse.masked_fill(lse == -torch.inf, 0.0))[..., None], lse


def _unseen(lses: Tensor) -> Tensor:
    return (lses == -torch.inf)[..., None]
