"""What the backends of both kinds of cache share."""

from abc import abstractmethod
from typing import ClassVar

import torch
from torch import Tensor, nn
from vllm.v1.attention.backend import AttentionBackend, AttentionImpl, AttentionType
from vllm.v1.kv_cache_interface import KVCacheLayout

from ridgeline.ops.attention import attention
from ridgeline.vllm.step import Group, Step, StepBuilder


class RidgelineBackend(AttentionBackend):
    """Attention by Ridgeline's operations over vLLM's pages, of any size."""

    forward_includes_kv_cache_update = False
    supported_dtypes: ClassVar[list[torch.dtype]] = [torch.bfloat16, torch.float16, torch.float32]
    supported_kv_cache_dtypes: ClassVar[list[str]] = ["auto", "float16", "bfloat16"]

    @staticmethod
    def get_name() -> str:
        return "RIDGELINE"

    @staticmethod
    def get_builder_cls() -> type[StepBuilder]:
        return StepBuilder

    @classmethod
    def supported_kv_cache_layouts(cls) -> tuple[KVCacheLayout, ...]:
        # Token by token, so that a slot is one row of a view of the cache.
        return (KVCacheLayout.LBNHC,)

    @classmethod
    def supports_attn_type(cls, attn_type: str) -> bool:
        return attn_type == AttentionType.DECODER


class RidgelineImpl(AttentionImpl[Step]):
    """Writes a step's new tokens to the cache, then attends group by group."""

    def __init__(
        self,
        num_heads: int,
        head_size: int,
        scale: float,
        num_kv_heads: int | None = None,
        alibi_slopes: list[float] | None = None,
        sliding_window: int | None = None,
        kv_cache_dtype: str = "auto",
        logits_soft_cap: float | None = None,
        attn_type: str = AttentionType.DECODER,
        kv_sharing_target_layer_name: str | None = None,
    ) -> None:
        for name, value, wanted in (
            ("alibi_slopes", alibi_slopes, None),
            ("attn_type", attn_type, AttentionType.DECODER),
            ("kv_sharing_target_layer_name", kv_sharing_target_layer_name, None),
        ):
            if value != wanted:
                raise ValueError(f"{name}: RIDGELINE attention expects {wanted}, got {value!r}")
        if kv_cache_dtype not in RidgelineBackend.supported_kv_cache_dtypes:
            raise ValueError(
                f"kv_cache_dtype: RIDGELINE attention expects "
                f"{', '.join(RidgelineBackend.supported_kv_cache_dtypes)}, got {kv_cache_dtype!r}"
            )
        self.num_heads, self.head_size, self.scale = num_heads, head_size, float(scale)
        self.num_kv_heads = num_heads if num_kv_heads is None else num_kv_heads
        self.kv_cache_dtype = kv_cache_dtype
        # The engine counts the query itself into its window.
        self.window = None if sliding_window is None else (sliding_window - 1, 0)
        self.softcap = logits_soft_cap or 0.0

    def forward(
        self,
        layer: nn.Module,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        kv_cache: Tensor,
        attn_metadata: Step | None,
        output: Tensor,
        output_scale: Tensor | None = None,
        output_block_scale: Tensor | None = None,
    ) -> Tensor:
        if attn_metadata is None:  # a run for its memory or compilation alone
            return output.zero_()
        prompts = attn_metadata.prompts
        if prompts is not None:
            rows = prompts.tokens
            if prompts.slots is None:
                cached = self.join(key, value)[rows]
            else:
                cached = cache_rows(kv_cache)[prompts.slots]
            k, v = self.keys_and_values(layer, cached)
            output[rows] = attention(
                query[rows],
                k,
                v,
                causal=True,
                softmax_scale=self.scale,
                window=self.window,
                softcap=self.softcap,
                cu_seqlens_q=prompts.cu_seqlens_q,
                cu_seqlens_k=prompts.cu_seqlens_k,
                max_seqlen_q=prompts.max_seqlen_q,
                max_seqlen_k=prompts.max_seqlen_k,
            )
        for group in attn_metadata.groups:
            q = query[group.tokens].unflatten(0, (-1, group.query_len))
            output[group.tokens] = self.decode(layer, q, kv_cache, group).flatten(0, 1)
        return output

    def do_kv_cache_update(
        self, layer: nn.Module, key: Tensor, value: Tensor, kv_cache: Tensor, slot_mapping: Tensor
    ) -> None:
        # Padding (-1) goes to slot 0, of the page that the engine never gives away.
        slots = slot_mapping.clamp(min=0).long()
        cache_rows(kv_cache).index_copy_(0, slots, self.join(key, value)[: len(slots)])

    @abstractmethod
    def join(self, key: Tensor, value: Tensor) -> Tensor:
        """New tokens as the cache holds them, ``[T, h, c]``."""

    @abstractmethod
    def keys_and_values(self, layer: nn.Module, cached: Tensor) -> tuple[Tensor, Tensor]:
        """Cached tokens ``[T, h, c]`` as the ``k`` and ``v`` of ``attention``."""

    @abstractmethod
    def decode(self, layer: nn.Module, query: Tensor, kv_cache: Tensor, group: Group) -> Tensor:
        """``query [B, L_q, h, d]`` over the cache -> ``[B, L_q, h, d_v]``."""


def cache_rows(kv_cache: Tensor) -> Tensor:
    """The pages ``[num_pages, h, page_size, c]`` as ``[num_pages * page_size, h, c]``, a view."""
    return kv_cache.transpose(1, 2).flatten(0, 1)
