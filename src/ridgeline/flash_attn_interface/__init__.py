"""The functions of FlashAttention-3's interface, over Ridgeline's operations.

========= ======================================================================================
dense     ``flash_attn_func``, ``flash_attn_qkvpacked_func``, ``flash_attn_varlen_func``
kvcache   ``flash_attn_with_kvcache``: check everything, append, attend
combine   ``flash_attn_combine``, ``get_scheduler_metadata``
pages     a cache, contiguous or paged, and the sequences of a call in it
attend    which operation attends to the cache: ``paged_decode``, ``tied_decode``, ``attention``
latent    ``tied_decode`` with a RoPE key for each state head; FlashMLA's interface has it too
queries   queries of equal and of different lengths
rotary    rotary embedding of new tokens
arguments the arguments that the functions share
========= ======================================================================================

Names, order, defaults and meaning of the arguments are those of
``hopper/flash_attn_interface.py``; what differs is in ``docs/interfaces.md``.
"""

from ridgeline.flash_attn_interface.combine import flash_attn_combine, get_scheduler_metadata
from ridgeline.flash_attn_interface.dense import (
    flash_attn_func,
    flash_attn_qkvpacked_func,
    flash_attn_varlen_func,
)
from ridgeline.flash_attn_interface.kvcache import flash_attn_with_kvcache

__all__ = [
    "flash_attn_combine",
    "flash_attn_func",
    "flash_attn_qkvpacked_func",
    "flash_attn_varlen_func",
    "flash_attn_with_kvcache",
    "get_scheduler_metadata",
]
