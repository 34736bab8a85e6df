"""Softmax over masked scores with a true minus infinity."""

import torch
from torch import Tensor


def masked_softmax(scores: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """Probabilities and natural log-sum-exp over the last dim; a row that sees nothing: 0, -inf.

    Normalised by their own sum: ``exp(scores - lse)`` would carry the rounding of a large lse.
    """
    if scores.shape[-1] == 0:
        return scores, scores.new_full(scores.shape[:-1], -torch.inf)
    scores = scores.masked_fill(~mask, -torch.inf)
    top = scores.amax(-1, keepdim=True)
    e = torch.exp(scores - top.masked_fill(top == -torch.inf, 0.0))
    total = e.sum(-1, keepdim=True)
    return e / total.clamp(min=1.0), (top + total.log()).squeeze(-1)
