"""K and V cached apart: MHA, MQA and GQA, in Ridgeline's models and in vLLM's own."""

from torch import Tensor, nn

from ridgeline.ops.attention import attention
from ridgeline.ops.paged_decode import paged_decode
from ridgeline.vllm.backend import RidgelineBackend, RidgelineImpl, cache_rows, real_slots
from ridgeline.vllm.step import Group, Prompts


class PairedBackend(RidgelineBackend):
    """A token of a head is cached as ``[K | V]``."""

    @staticmethod
    def get_impl_cls() -> type["PairedImpl"]:
        return PairedImpl

    @classmethod
    def supports_sliding_window(cls) -> bool:
        return True


class PairedImpl(RidgelineImpl):
    def do_kv_cache_update(
        self, layer: nn.Module, key: Tensor, value: Tensor, kv_cache: Tensor, slot_mapping: Tensor
    ) -> None:
        rows, slots = cache_rows(kv_cache), real_slots(slot_mapping)
        for view, new in zip(self._split(rows), (key, value), strict=True):
            view.index_copy_(0, slots, new[: len(slots)])

    def prefill(
        self, layer: nn.Module, query: Tensor, key: Tensor, value: Tensor, prompts: Prompts
    ) -> Tensor:
        return attention(
            query,
            key,
            value,
            causal=True,
            softmax_scale=self.scale,
            window=self.window,
            softcap=self.softcap,
            cu_seqlens_q=prompts.cu_seqlens,
            cu_seqlens_k=prompts.cu_seqlens,
            max_seqlen_q=prompts.max_seqlen,
            max_seqlen_k=prompts.max_seqlen,
        )

    def decode(self, layer: nn.Module, query: Tensor, kv_cache: Tensor, group: Group) -> Tensor:
        return paged_decode(
            query,
            *self._split(kv_cache.transpose(1, 2)),
            group.block_table,
            group.cache_seqlens,
            softmax_scale=self.scale,
            window=self.window,
            softcap=self.softcap,
        )

    def _split(self, cache: Tensor) -> tuple[Tensor, Tensor]:
        """K and V of ``[..., d + d_v]``."""
        return cache.split((self.head_size, cache.shape[-1] - self.head_size), dim=-1)
