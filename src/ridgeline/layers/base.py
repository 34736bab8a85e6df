"""What the attention layers share: checks of sizes and inputs, and the output projection."""

import torch.distributed as dist
from torch import Tensor, nn

from ridgeline.ops.common import check


class AttentionLayer(nn.Module):
    """Sizes that all variants have, and the output projection with its sum over ranks.

    ``num_heads`` counts the query heads that this layer holds: on a tensor-parallel rank a part of
    the model's. A subclass defines ``o_proj``, ``[num_heads * d -> hidden_size]``.
    """

    o_proj: nn.Linear

    def __init__(
        self,
        hidden_size: int,
        num_heads: int,
        head_dim: int | None,
        rope_dim: int | None = None,
        *,
        rotate_all: bool = False,
    ) -> None:
        super().__init__()
        self.hidden_size = check.count("hidden_size", hidden_size, minimum=1)
        self.num_heads = check.count("num_heads", num_heads, minimum=1)
        if head_dim is None:
            check.divides("num_heads", num_heads, "hidden_size", hidden_size)
            head_dim = hidden_size // num_heads
        self.head_dim = check.count("head_dim", head_dim, minimum=2)
        if rotate_all:
            name, self.rope_dim = "head_dim", head_dim
        else:
            name, self.rope_dim = "rope_dim", head_dim // 2 if rope_dim is None else rope_dim
        if check.count(name, self.rope_dim, minimum=2) % 2:
            raise ValueError(f"{name}: expected an even number, got {self.rope_dim}")
        self.world = 1
        self.group: dist.ProcessGroup | None = None

    def _check_inputs(self, x: Tensor, rotary: tuple[Tensor, Tensor]) -> None:
        check.shape("x", x, ("B", "L", self.hidden_size))
        for name, table in zip(("rotary[0]", "rotary[1]"), rotary, strict=True):
            check.shape(name, table, (*x.shape[:2], self.rope_dim // 2))

    def _project_out(self, out: Tensor) -> Tensor:
        """``[B, L, h, d]`` of this rank's heads -> ``[B, L, D]``, summed over the ranks."""
        out = self.o_proj(out.flatten(2))
        if self.world > 1:
            dist.all_reduce(out, group=self.group)
        return out
