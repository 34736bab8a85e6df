"""The attention layers of ``ridgeline.layers`` from vLLM's parallel linears, a rank's part each."""

import json
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor, nn
from vllm.config import CacheConfig, get_current_vllm_config
from vllm.distributed import (
    get_tensor_model_parallel_rank,
    get_tensor_model_parallel_world_size,
)
from vllm.model_executor.layers.attention import Attention
from vllm.model_executor.layers.layernorm import RMSNorm
from vllm.model_executor.layers.linear import (
    ColumnParallelLinear,
    QKVParallelLinear,
    ReplicatedLinear,
    RowParallelLinear,
)
from vllm.model_executor.layers.quantization import QuantizationConfig
from vllm.model_executor.model_loader.weight_utils import sharded_weight_loader
from vllm.model_executor.utils import set_weight_attrs

from ridgeline.cache import CacheSpec
from ridgeline.layers import HeadRMSNorm, RotaryEmbedding, apply_rotary
from ridgeline.layers.base import output_rows
from ridgeline.models import RidgelineConfig
from ridgeline.vllm.paired import PairedBackend
from ridgeline.vllm.tied import LatentAttention, TiedAttention


class Rotary(nn.Module):
    """The model's rotary embedding, as cosines and sines ``[max_model_len, dim / 2]`` in float32.

    dynamic and longrope choose their frequencies by ``max_model_len``, once: cached keys are shared
    by sequences of every length.
    """

    def __init__(self, dim: int, config: RidgelineConfig) -> None:
        super().__init__()
        cos, sin = _rotary_tables(
            dim,
            json.dumps(config.rope_parameters, sort_keys=True),
            config.max_position_embeddings,
            get_current_vllm_config().model_config.max_model_len,
            torch.get_default_device(),
        )
        self.register_buffer("cos", cos, persistent=False)
        self.register_buffer("sin", sin, persistent=False)

    def forward(self, positions: Tensor, *heads: Tensor) -> tuple[Tensor, ...]:
        """``heads``, each ``[T, h, dim]``, rotated to ``positions [T]``."""
        cos, sin = self.cos[positions], self.sin[positions]
        return tuple(apply_rotary(x, cos, sin) for x in heads)


@lru_cache(maxsize=2)
def _rotary_tables(
    dim: int, parameters: str, max_position: int, length: int, device: torch.device
) -> tuple[Tensor, Tensor]:
    """One for all layers; ``parameters`` is JSON, so that it can be a key."""
    rotary = RotaryEmbedding(dim, scaling=json.loads(parameters), max_position=max_position)
    cos, sin = rotary(torch.arange(length, device=device)[None])
    return cos[0], sin[0]


class RowProjection(ReplicatedLinear):
    """``D -> [states of this rank | RoPE key]``: what a token's row of the cache is made from.

    The RoPE key is whole on every rank. The checkpoint has both in one weight (MLA, GLA), or each
    in its own (GTA), which then come with the ``shard_id`` "state" or "rope".
    """

    def __init__(
        self, hidden_size: int, spec: CacheSpec, part: slice, total_heads: int, **options: Any
    ) -> None:
        self.spec, self.part, self.total_heads = spec, part, total_heads
        super().__init__(hidden_size, spec.elements_per_token, bias=False, **options)

    def weight_loader(self, param: nn.Parameter, loaded_weight: Tensor) -> None:
        kind = getattr(loaded_weight, "shard_id", "both")
        width = param.shape[0] - self.spec.rope_dim
        if kind in ("both", "state"):
            states = loaded_weight[: self.total_heads * self.spec.dim]
            param.data[:width].copy_(output_rows(states, self.total_heads, self.part))
        if kind in ("both", "rope"):
            param.data[width:].copy_(loaded_weight[-self.spec.rope_dim :])


def make_attention(
    *,
    config: RidgelineConfig,
    cache_config: CacheConfig | None,
    quant_config: QuantizationConfig | None,
    prefix: str,
    **_: Any,
) -> nn.Module:
    """The attention layer that ``config.attention`` names; other options are Llama's."""
    layer = {"gta": GroupedTied, "mla": GroupedLatent, "gla": GroupedLatent}.get(
        config.attention, GroupedQuery
    )
    return layer(config, cache_config, quant_config, prefix)


class _Layer(nn.Module):
    """This rank's heads, and the output projection."""

    def __init__(
        self,
        config: RidgelineConfig,
        state_heads: int,
        quant_config: QuantizationConfig | None,
        prefix: str,
    ) -> None:
        super().__init__()
        self.tp = get_tensor_model_parallel_world_size()
        check_ranks(config, self.tp)
        self.num_heads, self.head_dim = config.num_attention_heads // self.tp, config.head_dim
        first = get_tensor_model_parallel_rank() * state_heads // self.tp
        self.states = slice(first, first + max(state_heads // self.tp, 1))
        self.rope_dim = config.rope_dim or config.head_dim
        self.rotary = Rotary(self.rope_dim, config)
        self.o_proj = RowParallelLinear(
            config.num_attention_heads * config.head_dim,
            config.hidden_size,
            bias=False,
            quant_config=quant_config,
            prefix=f"{prefix}.o_proj",
        )


class GroupedQuery(_Layer):
    """MHA, MQA, GQA: ``ridgeline.layers.GroupedQueryAttention``."""

    def __init__(
        self,
        config: RidgelineConfig,
        cache_config: CacheConfig | None,
        quant_config: QuantizationConfig | None,
        prefix: str,
    ) -> None:
        super().__init__(config, config.num_key_value_heads, quant_config, prefix)
        spec = CacheSpec.gqa(config.num_key_value_heads, config.head_dim, self.tp)
        self.qkv_proj = QKVParallelLinear(
            config.hidden_size,
            config.head_dim,
            config.num_attention_heads,
            config.num_key_value_heads,
            bias=False,
            quant_config=quant_config,
            prefix=f"{prefix}.qkv_proj",
        )
        # Another backend that the user names is vLLM's to choose.
        chosen = get_current_vllm_config().attention_config.backend
        ours = chosen is None or chosen.name == "RIDGELINE"
        self.attn = Attention(
            self.num_heads,
            config.head_dim,
            config.head_dim**-0.5,
            num_kv_heads=spec.heads,
            cache_config=cache_config,
            quant_config=quant_config,
            prefix=f"{prefix}.attn",
            attn_backend=PairedBackend if ours else None,
        )
        self.sizes = (self.num_heads * self.head_dim, *2 * (spec.heads * self.head_dim,))

    def forward(self, positions: Tensor, hidden_states: Tensor) -> Tensor:
        """``positions [T]``, ``hidden_states [T, D]`` -> ``[T, D]``."""
        q, k, v = self.qkv_proj(hidden_states)[0].split(self.sizes, dim=-1)
        q, k = (x.unflatten(-1, (-1, self.head_dim)) for x in (q, k))
        q, k = self.rotary(positions, q, k)
        return self.o_proj(self.attn(q, k, v))[0]


class _Tied(_Layer):
    """What GTA, MLA and GLA share: a row of the cache a token."""

    def __init__(
        self,
        config: RidgelineConfig,
        spec: CacheSpec,
        state_heads: int,
        quant_config: QuantizationConfig | None,
        prefix: str,
    ) -> None:
        super().__init__(config, state_heads, quant_config, prefix)
        self.spec = spec
        self.kv_down = RowProjection(
            config.hidden_size,
            spec,
            self.states,
            state_heads,
            quant_config=quant_config,
            prefix=f"{prefix}.kv_down",
        )

    def _query(self, hidden_states: Tensor) -> Tensor:
        """``[T, D] -> [T, h * (nope_dim + d_R)]``, not rotated."""
        return self.q_heads(hidden_states)[0]

    def _state(self, state: Tensor) -> Tensor:
        """``[T, h_s * d_s]`` as it is cached."""
        return state

    def forward(self, positions: Tensor, hidden_states: Tensor) -> Tensor:
        """``positions [T]``, ``hidden_states [T, D]`` -> ``[T, D]``."""
        q = self._query(hidden_states).unflatten(-1, (self.num_heads, -1))
        nope_dim, row = self.attn.nope_dim, self.kv_down(hidden_states)[0]
        state, k_rope = row.split((row.shape[-1] - self.rope_dim, self.rope_dim), dim=-1)
        q_rope, k_rope = self.rotary(positions, q[..., nope_dim:], k_rope.unsqueeze(1))
        q = torch.cat((q[..., :nope_dim], q_rope), dim=-1)
        row = torch.cat((self._state(state), k_rope.squeeze(1)), dim=-1)
        return self.o_proj(self.attn(q, row))[0]


class GroupedTied(_Tied):
    """``ridgeline.layers.GroupedTiedAttention``."""

    def __init__(
        self,
        config: RidgelineConfig,
        cache_config: CacheConfig | None,
        quant_config: QuantizationConfig | None,
        prefix: str,
    ) -> None:
        heads, tp = config.num_key_value_heads, get_tensor_model_parallel_world_size()
        spec = CacheSpec.gta(heads, config.head_dim, config.rope_dim, tp)
        super().__init__(config, spec, heads, quant_config, prefix)
        self.q_heads = ColumnParallelLinear(
            config.hidden_size,
            config.num_attention_heads * config.head_dim,
            bias=False,
            quant_config=quant_config,
            prefix=f"{prefix}.q_heads",
        )
        self.attn = TiedAttention(
            self.num_heads,
            config.head_dim,
            config.head_dim - config.rope_dim,
            spec,
            shards=heads,
            cache_config=cache_config,
            prefix=f"{prefix}.attn",
        )


class GroupedLatent(_Tied):
    """``ridgeline.layers.GroupedLatentAttention``; MLA is the case of one latent head."""

    def __init__(
        self,
        config: RidgelineConfig,
        cache_config: CacheConfig | None,
        quant_config: QuantizationConfig | None,
        prefix: str,
    ) -> None:
        heads, tp = config.num_latent_heads, get_tensor_model_parallel_world_size()
        spec = CacheSpec.gla(heads, config.latent_dim, config.rope_dim, tp)
        super().__init__(config, spec, heads, quant_config, prefix)
        options = {"bias": False, "quant_config": quant_config}
        hidden, eps = config.hidden_size, config.rms_norm_eps
        queries = config.num_attention_heads * (config.head_dim + config.rope_dim)
        self.q_rank = config.q_rank
        if config.q_rank is not None:
            self.q_down = ReplicatedLinear(
                hidden, config.q_rank, prefix=f"{prefix}.q_down", **options
            )
            self.q_norm = RMSNorm(config.q_rank, eps)
        self.q_heads = ColumnParallelLinear(
            config.q_rank or hidden, queries, prefix=f"{prefix}.q_heads", **options
        )
        self.kv_norm = HeadRMSNorm(spec.heads, spec.dim, eps)
        states = self.states
        set_weight_attrs(
            self.kv_norm.weight,
            {"weight_loader": lambda param, loaded: param.data.copy_(loaded[states])},
        )
        self.attn = LatentAttention(
            self.num_heads,
            config.head_dim,
            config.head_dim,
            spec,
            shards=heads,
            cache_config=cache_config,
            prefix=f"{prefix}.attn",
        )
        # Plain parameters: the absorbed form multiplies from both sides, which a linear whose
        # weight is repacked for its GEMM cannot.
        for name in ("k_up", "v_up"):
            weight = nn.Parameter(
                torch.empty(self.num_heads, config.head_dim, spec.dim), requires_grad=False
            )
            set_weight_attrs(weight, {"weight_loader": sharded_weight_loader(0)})
            setattr(self.attn, name, weight)

    def _query(self, hidden_states: Tensor) -> Tensor:
        if self.q_rank is not None:
            hidden_states = self.q_norm(self.q_down(hidden_states)[0])
        return self.q_heads(hidden_states)[0]

    def _state(self, state: Tensor) -> Tensor:
        return self.kv_norm(state.unflatten(-1, (self.spec.heads, self.spec.dim))).flatten(1)


def check_ranks(config: RidgelineConfig, tp: int) -> None:
    """Raises ``ValueError`` unless the model's heads can be shared among ``tp`` ranks."""
    heads, name = config.num_latent_heads, "latent"
    if heads is None:
        heads, name = config.num_key_value_heads, "key/value"
    if config.num_attention_heads % tp:
        raise ValueError(
            f"tensor_parallel_size: expected a divisor of the model's "
            f"{config.num_attention_heads} query heads, got {tp}"
        )
    if heads % tp and tp % heads:
        raise ValueError(
            f"tensor_parallel_size: expected a divisor or a multiple of the model's {heads} {name} "
            f"heads, got {tp}"
        )
