"""What the backends of both kinds of cache share."""

from abc import abstractmethod
from typing import ClassVar

import torch
from torch import Tensor, nn
from vllm.platforms import current_platform
from vllm.v1.attention.backend import AttentionBackend, AttentionImpl, AttentionType
from vllm.v1.kv_cache_interface import KVCacheLayout

from ridgeline.ops.attention import attention
from ridgeline.vllm import fp8
from ridgeline.vllm.step import GATHER_UP_TO, Group, Step, StepBuilder


class RidgelineBackend(AttentionBackend):
    """Attention by Ridgeline's operations over vLLM's pages, of any size."""

    forward_includes_kv_cache_update = False
    supported_dtypes: ClassVar[list[torch.dtype]] = [torch.bfloat16, torch.float16, torch.float32]
    supported_kv_cache_dtypes: ClassVar[list[str]] = ["auto", "float16", "bfloat16", *fp8.NAMES]

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

    @classmethod
    def supports_device_cpu_query_lens_mismatch(cls) -> bool:
        return False  # requests are grouped by the lengths that the CPU knows


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
        self.dtype = torch.get_default_dtype()  # the model's, while it is made
        check_cache_dtype(kv_cache_dtype, self.dtype)
        self.num_heads, self.head_size, self.scale = num_heads, head_size, float(scale)
        self.num_kv_heads = num_heads if num_kv_heads is None else num_kv_heads
        self.kv_cache_dtype, self.is_fp8 = kv_cache_dtype, kv_cache_dtype in fp8.NAMES
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
            query.new_empty(GATHER_UP_TO * self.gathered_elements(layer))
            return output.zero_()
        prompts = attn_metadata.prompts
        if prompts is not None:
            rows = prompts.tokens
            if prompts.slots is None:
                new = key[rows], value[rows]
            else:
                new = self.read(layer, cache_rows(kv_cache)[prompts.slots])
            k, v = self.keys_and_values(layer, *new)
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
        rows = self.join(layer, key[: len(slots)], value[: len(slots)])
        cache_rows(kv_cache).index_copy_(0, slots, rows)

    @abstractmethod
    def join(self, layer: nn.Module, key: Tensor, value: Tensor) -> Tensor:
        """New tokens ``[T, h, d]`` as the cache holds them, ``[T, h, c]``."""

    @abstractmethod
    def read(self, layer: nn.Module, rows: Tensor) -> tuple[Tensor, Tensor]:
        """The inverse of ``join``."""

    @abstractmethod
    def keys_and_values(
        self, layer: nn.Module, key: Tensor, value: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Tokens ``[T, h, d]`` as the ``k`` and ``v`` of ``attention``."""

    @abstractmethod
    def gathered_elements(self, layer: nn.Module) -> int:
        """Of a token in ``keys_and_values``: memory that the engine has to know of."""

    @abstractmethod
    def decode(self, layer: nn.Module, query: Tensor, kv_cache: Tensor, group: Group) -> Tensor:
        """``query [B, L_q, h, d]`` over the cache -> ``[B, L_q, h, d_v]``."""


def check_cache_dtype(name: str, dtype: torch.dtype) -> None:
    """Raises ``ValueError`` unless the operations read such a cache for queries in ``dtype``."""
    expected = ["auto", str(dtype).removeprefix("torch.")]
    note = ""
    if current_platform.is_cpu():
        note = " (an FP8 cache takes a GPU)"
    else:
        expected += fp8.NAMES
    if name not in expected:
        raise ValueError(
            f"kv_cache_dtype: RIDGELINE attention expects {', '.join(expected)}{note}, got {name!r}"
        )


def cache_rows(kv_cache: Tensor) -> Tensor:
    """The pages ``[num_pages, h, page_size, c]`` as ``[num_pages * page_size, h, c]``, a view.

    Raises:
        RuntimeError: something lies between two pages, so that there is no such view.
    """
    num_pages, heads, page_size, width = kv_cache.shape
    return kv_cache.transpose(1, 2).view(num_pages * page_size, heads, width)
