"""RMSNorm with a weight of its own for each head."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class HeadRMSNorm(nn.Module):
    """RMSNorm (Zhang, Sennrich, arXiv 1910.07467) of ``x [..., heads, dim]``, head by head."""

    def __init__(
        self,
        heads: int,
        dim: int,
        eps: float = 1e-6,
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(heads, dim, device=device, dtype=dtype))

    def forward(self, x: Tensor) -> Tensor:
        # Back to x's dtype, which a weight held in a wider one (autocast) would change.
        return (F.rms_norm(x, x.shape[-1:], eps=self.eps) * self.weight).to(x.dtype)

    def extra_repr(self) -> str:
        return f"{tuple(self.weight.shape)}, eps={self.eps}"
