"""From tokens to responses: sums, and the weights of LD-DPO and WPO."""

import torch
from torch import Tensor

from ridgeline.ops.common import check
from ridgeline.training.preference.rows import Batch


def scored(values: Tensor, batch: Batch) -> Tensor:
    """Values ``[B, L]`` of the scored tokens, ``[S]``: response after response, token by token.

    ``scored(x, batch).split(batch.response_lengths.tolist())`` has one tensor a response.
    """
    check.shape("values", values, batch.input_ids.shape)
    return values.flatten()[batch.score_index]


def per_response(values: Tensor, batch: Batch, weights: Tensor | None = None) -> Tensor:
    """Sums of ``values [B, L]`` over the tokens of each response, ``[R]``.

    In float32, float64 values in float64; each response's tokens are added in their order, so that
    no other response changes a bit.

    Args:
        values: ``[B, L]``, such as ``TokenLogps.logps``.
        batch: whose responses.
        weights: ``[S]``, of each scored token; ``None`` for 1.
    """
    found = scored(values, batch)
    found = found.to(torch.promote_types(found.dtype, torch.float32))
    if weights is not None:
        check.shape("weights", weights, found.shape)
        found = found * weights.to(found.dtype)
    total = found.new_zeros(len(batch.response_lengths))
    return total.index_add(0, batch.response_ids, found)


def pairs(responses: Tensor) -> tuple[Tensor, Tensor]:
    """``[2 N]`` of a batch of pairs as chosen ``[N]`` and rejected ``[N]``."""
    if responses.shape[0] % 2:
        raise ValueError(f"responses: expected two a pair, got {responses.shape[0]}")
    chosen, rejected = responses.unflatten(0, (-1, 2)).unbind(1)
    return chosen, rejected


def ld_weights(batch: Batch, alpha: float) -> Tensor:
    """LD-DPO (arXiv 2409.06411): tokens beyond the pair's shorter response count ``alpha``.

    Args:
        batch: of pairs.
        alpha: 0 to 1.

    Returns:
        ``[S]`` float64, the ``weights`` of ``per_response``.
    """
    if not 0 <= check.finite("alpha", alpha) <= 1:
        raise ValueError(f"alpha: expected 0 to 1, got {alpha}")
    lengths = batch.response_lengths
    shorter = torch.minimum(*pairs(lengths)).repeat_interleave(2)
    starts = lengths.cumsum(0) - lengths
    index = torch.arange(len(batch.response_ids), device=lengths.device)
    within = index - starts[batch.response_ids] < shorter[batch.response_ids]
    return torch.where(within, 1.0, alpha).double()


def wpo_weights(logps: Tensor, log_sum_sq_probs: Tensor, batch: Batch) -> Tensor:
    """WPO (arXiv 2406.11827, eq. 2 with sampled alignment): weights of pairs ``[N]``, no gradient.

    Args:
        logps, log_sum_sq_probs: ``[B, L]`` as of ``TokenLogps``.
        batch: of pairs.
    """
    with torch.no_grad():
        means = per_response(logps - log_sum_sq_probs, batch) / batch.response_lengths
        chosen, rejected = pairs(means.exp())
        return chosen * rejected
