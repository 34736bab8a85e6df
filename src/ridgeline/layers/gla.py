"""Grouped Latent Attention; Multi-head Latent Attention is the case of one latent head."""

import math
from typing import Any

import torch
from torch import Tensor, nn

from ridgeline.cache import CacheSpec, CacheStep
from ridgeline.layers.base import AttentionLayer, RankHeads, input_columns, output_rows
from ridgeline.layers.norm import HeadRMSNorm
from ridgeline.layers.prefill import causal_attention
from ridgeline.layers.rotary import apply_rotary
from ridgeline.ops.common import check
from ridgeline.ops.common.dispatch import Impl
from ridgeline.ops.tied_decode import tied_decode


class GroupedLatentAttention(AttentionLayer):
    """GLA (Zadouri, Strauss, Dao, arXiv 2505.21487), and MLA (DeepSeek-V2, arXiv 2405.04434).

    A token is cached as ``num_latent_heads`` normed latents and one rotated RoPE key. Latent head
    i serves a contiguous block of query heads, whose keys and values are up-projections of it.
    Training and prefill expand them; decode folds the up-projections into query and output and
    attends over the latents themselves. Both forms compute the same function with the same scale,
    ``(head_dim + rope_dim) ** -0.5``.

    Args:
        hidden_size: width D of the model.
        num_heads: query heads.
        num_latent_heads: a divisor of ``num_heads``; 1 is MLA.
        head_dim: width of a head's value and of the unrotated part of its key; default
            ``hidden_size / num_heads``.
        latent_dim: width of a latent; default ``2 * head_dim``, with one latent head
            ``4 * head_dim``.
        rope_dim: width of the RoPE key, even; default ``head_dim / 2``.
        q_rank: width of a low-rank query (D -> q_rank, RMSNorm, -> heads); ``None`` for a plain
            projection.
        eps: of the RMSNorms.
        device, dtype: of the parameters.

    Raises:
        TypeError, ValueError: a size is impossible.
    """

    state_heads_name = "num_latent_heads"

    def __init__(
        self,
        hidden_size: int,
        num_heads: int,
        num_latent_heads: int,
        head_dim: int | None = None,
        *,
        latent_dim: int | None = None,
        rope_dim: int | None = None,
        q_rank: int | None = None,
        eps: float = 1e-6,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(hidden_size, num_heads, num_latent_heads, head_dim, rope_dim)
        if latent_dim is None:
            latent_dim = (4 if num_latent_heads == 1 else 2) * self.head_dim
        self.num_latent_heads = num_latent_heads
        self.latent_dim = check.count("latent_dim", latent_dim, minimum=1)
        self.q_rank = None if q_rank is None else check.count("q_rank", q_rank, minimum=1)
        self.eps = check.finite("eps", eps, minimum=0.0)

        place = {"device": device, "dtype": dtype}
        queries = num_heads * (self.head_dim + self.rope_dim)
        latents = num_latent_heads * latent_dim
        if q_rank is None:
            self.q_proj = nn.Linear(hidden_size, queries, bias=False, **place)
        else:
            self.q_down = nn.Linear(hidden_size, q_rank, bias=False, **place)
            self.q_norm = nn.RMSNorm(q_rank, eps, **place)
            self.q_up = nn.Linear(q_rank, queries, bias=False, **place)
        self.kv_down = nn.Linear(hidden_size, latents + self.rope_dim, bias=False, **place)
        self.kv_norm = HeadRMSNorm(num_latent_heads, latent_dim, eps, **place)
        # [h_q, d_h, d_c]: plain parameters, since the absorbed form multiplies from both sides.
        up = (num_heads, self.head_dim, latent_dim)
        self.k_up = nn.Parameter(torch.empty(up, **place))
        self.v_up = nn.Parameter(torch.empty(up, **place))
        self.o_proj = nn.Linear(num_heads * self.head_dim, hidden_size, bias=False, **place)
        for weight in (self.k_up, self.v_up):
            # The bound of nn.Linear's own initialisation.
            nn.init.uniform_(weight, -1 / math.sqrt(latent_dim), 1 / math.sqrt(latent_dim))

    @property
    def softmax_scale(self) -> float:
        return (self.head_dim + self.rope_dim) ** -0.5

    def cache_spec(self, tp: int = 1) -> CacheSpec:
        """The cache of this layer on one of ``tp`` ranks."""
        return CacheSpec.gla(self.num_latent_heads, self.latent_dim, self.rope_dim, tp)

    def on_rank(self, heads: RankHeads) -> tuple[dict[str, Any], dict[str, Tensor]]:
        sizes = {
            "latent_dim": self.latent_dim,
            "rope_dim": self.rope_dim,
            "q_rank": self.q_rank,
            "eps": self.eps,
        }
        down = self.kv_down.weight
        latents, rope = down.split((len(down) - self.rope_dim, self.rope_dim))
        weights = {
            "kv_down.weight": torch.cat(
                (output_rows(latents, self.num_latent_heads, heads.state), rope)
            ),
            "kv_norm.weight": self.kv_norm.weight[heads.state],
            "k_up": self.k_up[heads.query],
            "v_up": self.v_up[heads.query],
            "o_proj.weight": input_columns(self.o_proj.weight, self.num_heads, heads.query),
        }
        if self.q_rank is None:
            queries = output_rows(self.q_proj.weight, self.num_heads, heads.query)
            return sizes, weights | {"q_proj.weight": queries}
        return sizes, weights | {
            "q_down.weight": self.q_down.weight,
            "q_norm.weight": self.q_norm.weight,
            "q_up.weight": output_rows(self.q_up.weight, self.num_heads, heads.query),
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
        q = self.q_proj(x) if self.q_rank is None else self.q_up(self.q_norm(self.q_down(x)))
        q = q.unflatten(-1, (self.num_heads, self.head_dim + self.rope_dim))
        q_nope, q_rope = q.split((self.head_dim, self.rope_dim), dim=-1)
        q_rope = apply_rotary(q_rope, *rotary)

        latents = (self.num_latent_heads, self.latent_dim)
        state, k_rope = self.kv_down(x).split((math.prod(latents), self.rope_dim), dim=-1)
        state = self.kv_norm(state.unflatten(-1, latents))
        k_rope = apply_rotary(k_rope.unsqueeze(2), *rotary)
        if cache is not None:
            cache.write(layer, state.flatten(0, 1), k_rope.flatten(0, 2))
        if cache is None or cache.is_prefill:
            q = torch.cat((q_nope, q_rope), dim=-1)
            lens = None if cache is None else cache.query_lens
            out = self._expanded(q, state, k_rope, lens, subtree_end)
        else:
            out = self._absorbed(q_nope, q_rope, cache, layer, impl)
        return self._project_out(out)

    def _expanded(
        self,
        q: Tensor,
        state: Tensor,
        k_rope: Tensor,
        query_lens: list[int] | None,
        subtree_end: Tensor | None,
    ) -> Tensor:
        """Attention over per-head keys and values made from the latents."""
        shared = k_rope.expand(-1, -1, self.num_heads, -1)
        k = torch.cat((self._up(state, self.k_up), shared), dim=-1)
        v = self._up(state, self.v_up)
        return causal_attention(q, k, v, self.softmax_scale, query_lens, subtree_end)

    def _up(self, state: Tensor, weight: Tensor) -> Tensor:
        """``state [B, L, h_c, d_c]`` through ``weight [h_q, d_h, d_c]`` -> ``[B, L, h_q, d_h]``."""
        batch, length, latent_heads, latent_dim = state.shape
        per_latent = weight.view(latent_heads, -1, latent_dim).transpose(1, 2)
        up = torch.bmm(state.flatten(0, 1).transpose(0, 1), per_latent)
        return up.transpose(0, 1).reshape(batch, length, self.num_heads, self.head_dim)

    def _absorbed(
        self, q_nope: Tensor, q_rope: Tensor, cache: CacheStep, layer: int, impl: Impl
    ) -> Tensor:
        """Attention over the cached latents, the up-projections folded into query and output."""
        out = tied_decode(
            _per_head(q_nope, self.k_up),
            q_rope,
            *cache.views(layer),
            cache.block_table,
            cache.cache_seqlens,
            softmax_scale=self.softmax_scale,
            impl=impl,
        )
        return _per_head(out, self.v_up.transpose(1, 2))


def _per_head(x: Tensor, weight: Tensor) -> Tensor:
    """``x [B, L, h, m]`` times ``weight [h, m, n]``, head by head -> ``[B, L, h, n]``."""
    out = torch.bmm(x.flatten(0, 1).transpose(0, 1), weight)
    return out.transpose(0, 1).unflatten(0, x.shape[:2])
