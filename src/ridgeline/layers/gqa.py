"""Grouped-query attention and its two ends: MHA (a kv head per query head) and MQA (one)."""

from typing import Any

import torch
from torch import Tensor, nn

from ridgeline.cache import CacheSpec, CacheStep
from ridgeline.layers.base import AttentionLayer, RankHeads, input_columns, output_rows
from ridgeline.layers.prefill import causal_attention
from ridgeline.layers.rotary import apply_rotary
from ridgeline.ops.common.dispatch import Impl
from ridgeline.ops.paged_decode import paged_decode


class GroupedQueryAttention(AttentionLayer):
    """Causal self-attention with K and V cached apart (Ainslie et al., arXiv 2305.13245).

    The parameters are those of transformers' ``LlamaAttention`` without biases. The whole of a
    query and key head is rotated.

    Args:
        hidden_size: width D of the model.
        num_heads: query heads.
        num_kv_heads: a divisor of ``num_heads``.
        head_dim: default ``hidden_size / num_heads``; even.
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
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(hidden_size, num_heads, num_kv_heads, head_dim, rotate_all=True)
        self.num_kv_heads = num_kv_heads
        queries, keys = num_heads * self.head_dim, num_kv_heads * self.head_dim
        factory = {"bias": False, "device": device, "dtype": dtype}
        self.q_proj = nn.Linear(hidden_size, queries, **factory)
        self.k_proj = nn.Linear(hidden_size, keys, **factory)
        self.v_proj = nn.Linear(hidden_size, keys, **factory)
        self.o_proj = nn.Linear(queries, hidden_size, **factory)

    @property
    def softmax_scale(self) -> float:
        return self.head_dim**-0.5

    def cache_spec(self, tp: int = 1) -> CacheSpec:
        """The cache of this layer on one of ``tp`` ranks."""
        return CacheSpec.gqa(self.num_kv_heads, self.head_dim, tp)

    def on_rank(self, heads: RankHeads) -> tuple[dict[str, Any], dict[str, Tensor]]:
        states = (self.num_kv_heads, heads.state)
        return {}, {
            "q_proj.weight": output_rows(self.q_proj.weight, self.num_heads, heads.query),
            "k_proj.weight": output_rows(self.k_proj.weight, *states),
            "v_proj.weight": output_rows(self.v_proj.weight, *states),
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
        """Attention of ``x [B, L, D]`` over itself and, with ``cache``, over what came before.

        Args:
            x: ``[B, L, D]``.
            rotary: cos and sin of ``RotaryEmbedding(head_dim)``, ``[B, L, head_dim / 2]`` each.
            cache: where the new tokens are stored and the old ones read. Not differentiable
                through the cached tokens.
            layer: index of this layer in the cache.
            impl: implementation of the decode operation.
            subtree_end: ``[B, L]`` int32, without ``cache``: rows of packed sequences, which may
                share prefixes (see ``ridgeline.subtree_end``).

        Returns:
            ``[B, L, D]``. Rows of left padding hold finite values that mean nothing.

        Raises:
            TypeError, ValueError: a shape or dtype does not fit, or ``impl`` cannot run the call.
        """
        self._check_inputs(x, rotary, cache, subtree_end)
        q = apply_rotary(self.q_proj(x).unflatten(-1, (self.num_heads, self.head_dim)), *rotary)
        kv_heads = (self.num_kv_heads, self.head_dim)
        k = apply_rotary(self.k_proj(x).unflatten(-1, kv_heads), *rotary)
        v = self.v_proj(x).unflatten(-1, kv_heads)
        if cache is not None:
            cache.write(layer, k.flatten(0, 1), v.flatten(0, 1))
        if cache is None or cache.is_prefill:
            lens = None if cache is None else cache.query_lens
            out = causal_attention(q, k, v, self.softmax_scale, lens, subtree_end)
        else:
            out = paged_decode(
                q,
                *cache.views(layer),
                cache.block_table,
                cache.cache_seqlens,
                softmax_scale=self.softmax_scale,
                impl=impl,
            )
        return self._project_out(out)
