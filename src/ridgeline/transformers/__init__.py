"""Ridgeline's attention in any decoder of transformers 5.

``import ridgeline.transformers`` registers ``"ridgeline"``, an attention implementation and the
masks that go with it, after which ``model.set_attn_implementation("ridgeline")`` and
``from_pretrained(..., attn_implementation="ridgeline")`` select it. Nothing else is changed.
What it takes, and what it refuses and why, is in ``docs/transformers.md``.
"""

from transformers import AttentionInterface, AttentionMaskInterface

from ridgeline.transformers.attention import attention_forward
from ridgeline.transformers.cache import GrowingCache
from ridgeline.transformers.latent import use_latent_cache
from ridgeline.transformers.masks import row_mask
from ridgeline.transformers.support import check_model

NAME = "ridgeline"

AttentionInterface.register(NAME, attention_forward)
AttentionMaskInterface.register(NAME, row_mask)

__all__ = [
    "NAME",
    "GrowingCache",
    "attention_forward",
    "check_model",
    "row_mask",
    "use_latent_cache",
]
