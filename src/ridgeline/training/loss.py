"""Cross-entropy of a vocabulary projection, chunk by chunk."""

from typing import Any

import torch
from torch import Tensor

# Rows of logits at once: 512 rows of a vocabulary of 4096 are 8 MB in float32, which stays in L3.
CHUNK = 512


def linear_cross_entropy(hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
    """Mean of ``-log softmax(hidden @ weight.T)[target]`` in nats, without holding all logits.

    The logits' gradient is made in the forward pass, while a chunk of them is still in the cache,
    as Liger-Kernel (arXiv 2410.10989) does; nothing is computed twice.

    Args:
        hidden: ``[N, D]``.
        weight: ``[V, D]``. Products are in bfloat16 under autocast, else in hidden's dtype;
            the softmax is in float32 at least.
        targets: ``[N]`` int64 below V.
    """
    kind = hidden.device.type
    dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else hidden.dtype
    return _LinearCrossEntropy.apply(hidden, weight, targets, dtype)


class _LinearCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, targets: Tensor, dtype: torch.dtype
    ) -> Tensor:
        wide = torch.promote_types(hidden.dtype, torch.float32)
        narrow = weight.to(dtype)
        backward = ctx.needs_input_grad[0]
        grad_hidden = torch.empty_like(hidden) if backward else None
        grad_weight = torch.zeros_like(weight, dtype=wide) if backward else None
        total = torch.zeros((), dtype=torch.float64, device=hidden.device)
        for start in range(0, len(hidden), CHUNK):
            rows = slice(start, start + CHUNK)
            h, target = hidden[rows].to(dtype), targets[rows, None]
            logits = (h @ narrow.T).to(wide)  # [CHUNK, V]
            lse = logits.logsumexp(dim=1, keepdim=True)
            total += (lse - logits.gather(1, target)).sum(dtype=torch.float64)
            if backward:
                # (softmax - one-hot) / N
                grad = logits.sub_(lse).exp_()
                grad.scatter_add_(1, target, torch.full_like(lse, -1.0))
                grad = grad.div_(len(hidden)).to(dtype)
                grad_hidden[rows] = grad @ narrow
                grad_weight += grad.T @ h
        if backward:
            ctx.save_for_backward(grad_hidden, grad_weight.to(weight.dtype))
        return (total / len(hidden)).to(wide)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None, None]:
        grad_hidden, grad_weight = ctx.saved_tensors
        return grad_hidden * grad, grad_weight * grad, None, None
