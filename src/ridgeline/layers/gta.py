"""Grouped-Tied Attention: one cached state per group that is key and value at once."""

from typing import Any

import torch
from torch import Tensor, nn

from ridgeline.cache import CacheSpec, CacheStep
from ridgeline.layers.base import AttentionLayer, RankHeads, input_columns, output_rows
from ridgeline.layers.prefill import causal_attention
from ridgeline.layers.rotary import apply_rotary
from ridgeline.ops.common.dispatch import Impl
from ridgeline.ops.tied_decode import tied_decode


class GroupedTiedAttention(AttentionLayer):
    """GTA (Zadouri, Strauss, Dao, arXiv 2505.21487), GTA-n with n = ``num_kv_heads``.

    The value of a token is its whole tied state. Its key is the first ``head_dim - rope_dim`` dims
    of that state, never rotated, and one rotated RoPE key that all heads share. Of a query, the
    last ``rope_dim`` dims are rotated.

    Args:
        hidden_size: width D of the model.
        num_heads: query heads.
        num_kv_heads: tied heads, a divisor of ``num_heads``.
        head_dim: default ``hidden_size / num_heads``.
        rope_dim: width of the RoPE key, even and below ``head_dim``; default ``head_dim / 2``.
        device, dtype: of the parameters.

    Raises:
        TypeError, ValueError: a size is impossible.
    """

    def __init__(
        self,
        hidden_size: int,
        num_heads: int,
        num_kv_heads: int,
        head_dim: int | None = None,
        *,
        rope_dim: int | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(hidden_size, num_heads, num_kv_heads, head_dim, rope_dim)
        if self.rope_dim >= self.head_dim:
            raise ValueError(
                f"rope_dim: expected less than head_dim ({self.head_dim}), got {self.rope_dim}"
            )
        self.num_kv_heads = num_kv_heads
        self.nope_dim = self.head_dim - self.rope_dim
        queries = num_heads * self.head_dim
        factory = {"bias": False, "device": device, "dtype": dtype}
        self.q_proj = nn.Linear(hidden_size, queries, **factory)
        self.kv_proj = nn.Linear(hidden_size, num_kv_heads * self.head_dim, **factory)
        self.k_rope_proj = nn.Linear(hidden_size, self.rope_dim, **factory)
        self.o_proj = nn.Linear(queries, hidden_size, **factory)

    @property
    def softmax_scale(self) -> float:
        return self.head_dim**-0.5

    def cache_spec(self, tp: int = 1) -> CacheSpec:
        """The cache of this layer on one of ``tp`` ranks."""
        return CacheSpec.gta(self.num_kv_heads, self.head_dim, self.rope_dim, tp)

    def on_rank(self, heads: RankHeads) -> tuple[dict[str, Any], dict[str, Tensor]]:
        return {"rope_dim": self.rope_dim}, {
            "q_proj.weight": output_rows(self.q_proj.weight, self.num_heads, heads.query),
            "kv_proj.weight": output_rows(self.kv_proj.weight, self.num_kv_heads, heads.state),
            "k_rope_proj.weight": self.k_rope_proj.weight,
            "o_proj.weight": input_columns(self.o_proj.weight, self.num_heads, heads.query),
        }

    def forward(
        self,
        x: Tensor,
        rotary: tuple[Tensor, Tensor],
        *,
        cache: CacheStep | None = None,
        layer: int = 0,
        impl: Impl = "auto",
        subtree_end: Tensor | None = None,
    ) -> Tensor:
        """As ``GroupedQueryAttention.forward``; ``rotary`` is of ``RotaryEmbedding(rope_dim)``."""
        self._check_inputs(x, rotary, cache, subtree_end)
        q = self.q_proj(x).unflatten(-1, (self.num_heads, self.head_dim))
        q_nope, q_rope = q.split((self.nope_dim, self.rope_dim), dim=-1)
        q_rope = apply_rotary(q_rope, *rotary)
        state = self.kv_proj(x).unflatten(-1, (self.num_kv_heads, self.head_dim))
        k_rope = apply_rotary(self.k_rope_proj(x).unsqueeze(2), *rotary)
        if cache is not None:
            cache.write(layer, state.flatten(0, 1), k_rope.flatten(0, 2))
        if cache is None or cache.is_prefill:
            lens = None if cache is None else cache.query_lens
            shared = k_rope.expand(-1, -1, self.num_kv_heads, -1)
            q = torch.cat((q_nope, q_rope), dim=-1)
            k = torch.cat((state[..., : self.nope_dim], shared), dim=-1)
            out = causal_attention(q, k, state, self.softmax_scale, lens, subtree_end)
        else:
            out = tied_decode(
                q_nope,
                q_rope,
                *cache.views(layer),
                cache.block_table,
                cache.cache_seqlens,
                softmax_scale=self.softmax_scale,
                impl=impl,
            )
        return self._project_out(out)
