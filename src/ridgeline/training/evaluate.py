"""Loss on held-out text."""

from contextlib import AbstractContextManager, nullcontext

import numpy as np
import torch

from ridgeline.models import RidgelineForCausalLM
from ridgeline.training.loss import linear_cross_entropy


def precision(dtype: str, device: torch.device) -> AbstractContextManager:
    """What a forward pass on ``device`` runs under for ``TrainConfig.dtype``."""
    return torch.autocast(device.type, torch.bfloat16) if dtype == "bf16" else nullcontext()


def window_loss(model: RidgelineForCausalLM, rows: torch.Tensor) -> torch.Tensor:
    """Mean loss of ``rows [B, context + 1]``: each token but the first is predicted."""
    rows = rows.to(model.device)
    hidden = model.model(input_ids=rows[:, :-1], use_cache=False).last_hidden_state
    return linear_cross_entropy(hidden.flatten(0, 1), model.lm_head.weight, rows[:, 1:].flatten())


@torch.no_grad()
def held_out_loss(
    model: RidgelineForCausalLM, tokens: np.ndarray, *, context: int, batch: int, dtype: str
) -> float:
    """Mean loss in nats of every token but the first, read in windows that do not overlap.

    The first token of a window is predicted from one token alone, so this is an upper bound of
    what the model reaches with a full context everywhere.
    """
    model.eval()
    predicted = len(tokens) - 1
    whole = predicted // context
    starts = torch.arange(whole)[:, None] * context + torch.arange(context + 1)
    ids = torch.from_numpy(tokens.astype(np.int64))
    groups = list(ids[starts].split(batch)) if whole else []
    if predicted % context:
        groups.append(ids[None, whole * context :])
    total = 0.0
    with precision(dtype, model.device):
        for rows in groups:
            total += window_loss(model, rows).item() * (rows.numel() - len(rows))
    model.train()
    return total / predicted
