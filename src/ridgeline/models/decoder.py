"""One decoder layer: RMSNorm, the attention that the configuration names, RMSNorm, SwiGLU."""

import torch.nn.functional as F
from torch import Tensor, nn
from transformers.modeling_layers import GradientCheckpointingLayer

from ridgeline.cache import CacheStep
from ridgeline.layers import (
    GroupedLatentAttention,
    GroupedQueryAttention,
    GroupedTiedAttention,
)
from ridgeline.models.config import RidgelineConfig
from ridgeline.ops.common.dispatch import Impl

AttentionModule = GroupedQueryAttention | GroupedTiedAttention | GroupedLatentAttention


def make_attention(config: RidgelineConfig) -> AttentionModule:
    """The attention layer that ``config.attention`` names."""
    sizes = (config.hidden_size, config.num_attention_heads)
    match config.attention:
        case "mha" | "mqa" | "gqa":
            return GroupedQueryAttention(*sizes, config.num_key_value_heads, config.head_dim)
        case "gta":
            return GroupedTiedAttention(
                *sizes, config.num_key_value_heads, config.head_dim, rope_dim=config.rope_dim
            )
        case "mla" | "gla":
            return GroupedLatentAttention(
                *sizes,
                config.num_latent_heads,
                config.head_dim,
                latent_dim=config.latent_dim,
                rope_dim=config.rope_dim,
                q_rank=config.q_rank,
                eps=config.rms_norm_eps,
            )
        case other:
            raise ValueError(f"attention: expected a variant's name, got {other!r}")


class SwiGLU(nn.Module):
    """``down(silu(gate(x)) * up(x))``, ``x [B, L, hidden_size]`` (Shazeer, arXiv 2002.05202)."""

    def __init__(self, hidden_size: int, intermediate_size: int) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(hidden_size, intermediate_size, bias=False)
        self.up_proj = nn.Linear(hidden_size, intermediate_size, bias=False)
        self.down_proj = nn.Linear(intermediate_size, hidden_size, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


class DecoderLayer(GradientCheckpointingLayer):
    """``x [B, L, hidden_size]`` to the same shape; its parameters are named as Llama's."""

    def __init__(self, config: RidgelineConfig, index: int) -> None:
        super().__init__()
        self.index = index
        self.input_layernorm = nn.RMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self.self_attn = make_attention(config)
        self.post_attention_layernorm = nn.RMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self.mlp = SwiGLU(config.hidden_size, config.intermediate_size)

    def forward(
        self,
        x: Tensor,
        rotary: tuple[Tensor, Tensor],
        step: CacheStep | None,
        impl: Impl,
        subtree_end: Tensor | None,
    ) -> Tensor:
        attended = self.self_attn(
            self.input_layernorm(x),
            rotary,
            cache=step,
            layer=self.index,
            impl=impl,
            subtree_end=subtree_end,
        )
        x = x + attended
        return x + self.mlp(self.post_attention_layernorm(x))
