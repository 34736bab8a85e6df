"""AdamW (Loshchilov and Hutter, arXiv 1711.05101) and its state as named tensors."""

import torch
from torch import Tensor, nn

BETAS = (0.9, 0.95)
STATE = ("exp_avg", "exp_avg_sq", "step")


def make_optimizer(model: nn.Module, weight_decay: float) -> torch.optim.AdamW:
    """Matrices are decayed; norms and embeddings are not."""
    decayed, free = [], []
    for name, parameter in model.named_parameters():
        (free if _is_free(name) else decayed).append(parameter)
    groups = [
        {"params": decayed, "weight_decay": weight_decay},
        {"params": free, "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=0.0, betas=BETAS, fused=True)


def _is_free(name: str) -> bool:
    return "norm" in name or "embed_tokens" in name or "lm_head" in name


def state_tensors(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """The optimizer's state as ``{"exp_avg.<parameter>": ..., ...}``; empty before a step."""
    return {
        f"{key}.{name}": optimizer.state[parameter][key]
        for name, parameter in model.named_parameters()
        for key in STATE
        if parameter in optimizer.state
    }


def load_state(
    model: nn.Module, optimizer: torch.optim.Optimizer, tensors: dict[str, Tensor]
) -> None:
    """The reverse of ``state_tensors``."""
    if not tensors:
        return
    for name, parameter in model.named_parameters():
        optimizer.state[parameter] = {
            key: tensors[f"{key}.{name}"].to(parameter.device, copy=True) for key in STATE
        }
