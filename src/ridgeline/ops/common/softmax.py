"""Softmax over masked scores with a true minus infinity."""

import torch
from torch import Tensor


def masked_softmax(scores: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """Probabilities and natural log-sum-exp over the last dim; a row that sees nothing: 0, -inf."""
    scores = scores.masked_fill(~mask, -torch.inf)
    lse = (
        torch.logsumexp(scores, dim=-1)
        if scores.shape[-1]
        else scores.new_full(scores.shape[:-1], -torch.inf)
    )
    safe = lse.masked_fill(lse == -torch.inf, 0.0)
    return torch.exp(scores - safe[..., None]), lse
