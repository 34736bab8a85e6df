"""What the attention layers share: checks of sizes and inputs, and the output projection."""

from dataclasses import dataclass
from typing import Any

import torch.distributed as dist
from torch import Tensor, nn

from ridgeline.cache import CacheStep
from ridgeline.layers import rows
from ridgeline.ops.common import check


@dataclass(frozen=True)
class RankHeads:
    """The query heads, and the key/value or latent heads, of one tensor-parallel rank."""

    query: slice
    state: slice


class AttentionLayer(nn.Module):
    """Sizes that all variants have, and the output projection with its sum over ranks.

    ``num_heads`` counts the query heads that this layer holds, ``num_state_heads`` the key/value
    or latent heads: on a tensor-parallel rank a part of the model's. A subclass defines
    ``o_proj``, ``[num_heads * d -> hidden_size]``.
    """

    o_proj: nn.Linear
    state_heads_name = "num_kv_heads"

    def __init__(
        self,
        hidden_size: int,
        num_heads: int,
        num_state_heads: int,
        head_dim: int | None,
        rope_dim: int | None = None,
        *,
        rotate_all: bool = False,
    ) -> None:
        super().__init__()
        self.hidden_size = check.count("hidden_size", hidden_size, minimum=1)
        self.num_heads = check.count("num_heads", num_heads, minimum=1)
        name = self.state_heads_name
        self.num_state_heads = check.count(name, num_state_heads, minimum=1)
        check.divides(name, num_state_heads, "num_heads", num_heads)
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

    def on_rank(self, heads: RankHeads) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """Constructor arguments beyond the head counts, and weights, of a rank's layer."""
        raise NotImplementedError

    def _check_inputs(
        self,
        x: Tensor,
        rotary: tuple[Tensor, Tensor],
        cache: CacheStep | None,
        subtree_end: Tensor | None,
    ) -> None:
        check.shape("x", x, ("B", "L", self.hidden_size))
        if subtree_end is not None:
            if cache is not None:
                raise ValueError("subtree_end: expected None with a cache, got both")
            rows.check_subtree_end(subtree_end, *x.shape[:2])
        for name, table in zip(("rotary[0]", "rotary[1]"), rotary, strict=True):
            check.shape(name, table, (*x.shape[:2], self.rope_dim // 2))

    def _project_out(self, out: Tensor) -> Tensor:
        """``[B, L, h, d]`` of this rank's heads -> ``[B, L, D]``, summed over the ranks."""
        out = self.o_proj(out.flatten(2))
        if self.world > 1:
            if out.requires_grad:
                raise ValueError(
                    "x: expected no gradient, a tensor-parallel shard is for inference"
                )
            dist.all_reduce(out, group=self.group)
        return out


def output_rows(weight: Tensor, heads: int, part: slice) -> Tensor:
    """The rows of ``weight [heads * d, D]`` that make the heads of ``part``."""
    return weight.unflatten(0, (heads, -1))[part].flatten(0, 1)


def input_columns(weight: Tensor, heads: int, part: slice) -> Tensor:
    """The columns of ``weight [D, heads * d]`` that read the heads of ``part``."""
    return weight.unflatten(1, (heads, -1))[:, part].flatten(1)
