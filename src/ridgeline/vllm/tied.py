"""One state cached as key and value at once: GTA; MLA and GLA, absorbed.

A token is one row of the cache, ``[states of this rank | RoPE key]``, as in ``CacheSpec``.
"""

import torch
from torch import Tensor
from vllm.config import CacheConfig, VllmConfig
from vllm.model_executor.layers.attention import Attention
from vllm.utils.torch_utils import _encode_layer_name
from vllm.v1.kv_cache_interface import FullAttentionSpec

from ridgeline.cache import CacheSpec
from ridgeline.ops.tied_decode import tied_decode
from ridgeline.vllm.backend import RidgelineBackend, RidgelineImpl
from ridgeline.vllm.step import Group


class TiedBackend(RidgelineBackend):
    @staticmethod
    def get_impl_cls() -> type["TiedImpl"]:
        return TiedImpl


class TiedImpl(RidgelineImpl):
    """GTA: the state is the value, its first dims are the unrotated part of the key."""

    def __init__(self, *args: object, spec: CacheSpec, **kwargs: object) -> None:
        super().__init__(*args, **kwargs)
        if self.window is not None or self.softcap:
            raise ValueError("sliding_window, logits_soft_cap: expected neither with a tied cache")
        self.spec = spec

    def join(self, key: Tensor, value: Tensor) -> Tensor:
        return key

    def keys_and_values(self, layer: "TiedAttention", cached: Tensor) -> tuple[Tensor, Tensor]:
        state, rope = self._split(cached.squeeze(1))
        k, v = layer.expand(state)
        return torch.cat((k, rope.unsqueeze(1).expand(-1, k.shape[1], -1)), dim=-1), v

    def decode(
        self, layer: "TiedAttention", query: Tensor, kv_cache: Tensor, group: Group
    ) -> Tensor:
        rope_dim = self.spec.rope_dim
        q_nope, q_rope = query.split((query.shape[-1] - rope_dim, rope_dim), dim=-1)
        out = tied_decode(
            layer.absorb_query(q_nope),
            q_rope,
            *self._split(kv_cache.squeeze(1)),
            group.block_table,
            group.cache_seqlens,
            softmax_scale=self.scale,
        )
        return layer.absorb_output(out)

    def _split(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """States ``[..., h_s, d_s]`` and RoPE keys of rows ``[..., h_s * d_s + d_R]``."""
        spec = self.spec
        width = spec.heads * spec.dim
        state, rope = rows.split((width, spec.rope_dim), dim=-1)
        return state.unflatten(-1, (spec.heads, spec.dim)), rope


class TiedAttention(Attention):
    """Attention of this rank's heads over rows of the cache.

    Args:
        num_heads, head_dim: query heads of this rank, and the width of their values.
        nope_dim: width of the unrotated part of a query.
        spec: the cache of this rank.
        shards: how many parts the states split into over the ranks.
    """

    def __init__(
        self,
        num_heads: int,
        head_dim: int,
        nope_dim: int,
        spec: CacheSpec,
        *,
        shards: int,
        cache_config: CacheConfig | None,
        prefix: str,
    ) -> None:
        width = nope_dim + spec.rope_dim
        super().__init__(
            num_heads,
            width,
            width**-0.5,
            num_kv_heads=1,
            cache_config=cache_config,
            prefix=prefix,
            attn_backend=TiedBackend,
            head_size_v=head_dim,
            spec=spec,
        )
        self.nope_dim, self.spec, self.shards = nope_dim, spec, shards

    def get_kv_cache_spec(self, vllm_config: VllmConfig) -> FullAttentionSpec:
        return FullAttentionSpec(
            block_size=vllm_config.cache_config.block_size,
            num_kv_heads=1,
            head_size=self.spec.elements_per_token,
            head_size_v=0,
            dtype=self.kv_cache_torch_dtype,
            max_tp_shards=self.shards,
        )

    def forward(self, query: Tensor, rows: Tensor) -> Tensor:
        """``query [T, h, nope_dim + d_R]``, ``rows [T, h_s * d_s + d_R]`` -> ``[T, h * d_h]``."""
        out = query.new_empty(query.shape[0], self.num_heads, self.head_size_v)
        rows, name = rows.unsqueeze(1), _encode_layer_name(self.layer_name)
        written = torch.ops.vllm.unified_kv_cache_update(rows, rows, name)
        torch.ops.vllm.unified_attention_with_output(
            query, rows, rows, out, name, kv_cache_dummy_dep=written
        )
        return out.flatten(1)

    def expand(self, state: Tensor) -> tuple[Tensor, Tensor]:
        """States ``[T, h_s, d_s]`` as the keys' unrotated part and the values of heads."""
        return state[..., : self.nope_dim], state

    def absorb_query(self, q_nope: Tensor) -> Tensor:
        """The unrotated query ``[B, L_q, h, nope_dim]`` as it meets the states."""
        return q_nope

    def absorb_output(self, out: Tensor) -> Tensor:
        """Weighted states ``[B, L_q, h, d_s]`` as values ``[B, L_q, h, d_h]``."""
        return out


class LatentAttention(TiedAttention):
    """MLA and GLA: per-head keys and values are up-projections of a latent.

    Prompts are computed with the keys and values themselves, a quarter of the work for MLA's
    shapes; what reads the cache folds the up-projections into query and output.
    """

    k_up: Tensor  # [h, d_h, d_c] of this rank, parameters of the layer around
    v_up: Tensor

    def expand(self, state: Tensor) -> tuple[Tensor, Tensor]:
        k, v = (
            torch.einsum("tgc,gjdc->tgjd", state, up.unflatten(0, (state.shape[1], -1)))
            for up in (self.k_up, self.v_up)
        )
        return k.flatten(1, 2), v.flatten(1, 2)

    def absorb_query(self, q_nope: Tensor) -> Tensor:
        return torch.einsum("blhd,hdc->blhc", q_nope, self.k_up)

    def absorb_output(self, out: Tensor) -> Tensor:
        return torch.einsum("blhc,hdc->blhd", out, self.v_up)
