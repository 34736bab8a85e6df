"""Attention layers: MHA, MQA, GQA; GTA; GLA, MLA. Expanded in training, absorbed in decode."""

from ridgeline.layers.gla import GroupedLatentAttention
from ridgeline.layers.gqa import GroupedQueryAttention
from ridgeline.layers.gta import GroupedTiedAttention
from ridgeline.layers.norm import HeadRMSNorm
from ridgeline.layers.parallel import shard
from ridgeline.layers.rotary import RotaryEmbedding, apply_rotary

__all__ = [
    "GroupedLatentAttention",
    "GroupedQueryAttention",
    "GroupedTiedAttention",
    "HeadRMSNorm",
    "RotaryEmbedding",
    "apply_rotary",
    "shard",
]
