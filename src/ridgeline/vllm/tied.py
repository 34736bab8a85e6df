"""One state cached as key and value at once: GTA; MLA and GLA, absorbed.

A token is one row of the cache, ``[states of this rank | RoPE key]``, as in ``CacheSpec``; in FP8
the RoPE key stays in the model's type, and the states' scales are behind.
"""

import torch
from torch import Tensor
from vllm.config import CacheConfig, VllmConfig
from vllm.model_executor.layers.attention import Attention
from vllm.utils.torch_utils import _encode_layer_name
from vllm.v1.kv_cache_interface import FullAttentionSpec, KVQuantMode

from ridgeline.cache import CacheSpec
from ridgeline.ops.tied_decode import tied_decode
from ridgeline.vllm.backend import RidgelineBackend, RidgelineImpl
from ridgeline.vllm.fp8 import dequantize, quantize, tied_record
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
        self.record = None
        if self.is_fp8:
            self.record = tied_record(spec.heads, spec.dim, spec.rope_dim, self.dtype)

    def join(self, layer: "TiedAttention", key: Tensor, value: Tensor) -> Tensor:
        if self.record is None:
            return key
        state, rope = self._split(key)
        values, scale = quantize(state.squeeze(1))
        return self.record.join(values.flatten(1), rope.squeeze(1), scale).unsqueeze(1)

    def read(self, layer: "TiedAttention", rows: Tensor) -> tuple[Tensor, Tensor]:
        if self.record is not None:
            values, rope, scale = self.record.split(rows.squeeze(1))
            state = dequantize(self._states(values), scale, self.dtype)
            rows = torch.cat((state.flatten(1), rope), dim=-1).unsqueeze(1)
        return rows, rows

    def keys_and_values(
        self, layer: "TiedAttention", key: Tensor, value: Tensor
    ) -> tuple[Tensor, Tensor]:
        state, rope = self._split(key.squeeze(1))
        k, v = layer.expand(state)
        return torch.cat((k, rope.unsqueeze(1).expand(-1, k.shape[1], -1)), dim=-1), v

    def gathered_elements(self, layer: "TiedAttention") -> int:
        return self.num_heads * (self.head_size + layer.head_size_v)

    def decode(
        self, layer: "TiedAttention", query: Tensor, kv_cache: Tensor, group: Group
    ) -> Tensor:
        rope_dim, pages, scales = self.spec.rope_dim, kv_cache.squeeze(1), {}
        q_nope, q_rope = query.split((query.shape[-1] - rope_dim, rope_dim), dim=-1)
        if self.record is None:
            state, rope = self._split(pages)
        else:
            values, rope, scale = self.record.split(pages)
            state, scales = self._states(values), {"state_scale": scale.unsqueeze(-1)}
        out = tied_decode(
            layer.absorb_query(q_nope),
            q_rope,
            state,
            rope,
            group.block_table,
            group.cache_seqlens,
            softmax_scale=self.scale,
            **scales,
        )
        return layer.absorb_output(out)

    def _split(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """States ``[..., h_s, d_s]`` and RoPE keys of rows ``[..., h_s * d_s + d_R]``."""
        width = self.spec.heads * self.spec.dim
        state, rope = rows.split((width, self.spec.rope_dim), dim=-1)
        return self._states(state), rope

    def _states(self, rows: Tensor) -> Tensor:
        return rows.unflatten(-1, (self.spec.heads, self.spec.dim))


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
        record = self.impl.record
        return FullAttentionSpec(
            block_size=vllm_config.cache_config.block_size,
            num_kv_heads=1,
            head_size=self.spec.elements_per_token,
            head_size_v=0,
            dtype=self.kv_cache_torch_dtype,
            kv_quant_mode=KVQuantMode.FP8_PER_TOKEN_HEAD if record else KVQuantMode.NONE,
            state_content_bytes=record.nbytes if record else None,
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
