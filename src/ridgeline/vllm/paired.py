"""K and V cached apart: MHA, MQA and GQA, in Ridgeline's models and in vLLM's own."""

import torch
from torch import Tensor, nn

from ridgeline.ops.paged_decode import paged_decode
from ridgeline.vllm.backend import RidgelineBackend, RidgelineImpl
from ridgeline.vllm.step import Group


class PairedBackend(RidgelineBackend):
    """A token of a head is cached as ``[K | V]``."""

    @staticmethod
    def get_impl_cls() -> type["PairedImpl"]:
        return PairedImpl

    @classmethod
    def supports_sliding_window(cls) -> bool:
        return True


class PairedImpl(RidgelineImpl):
    def join(self, key: Tensor, value: Tensor) -> Tensor:
        return torch.cat((key, value), dim=-1)

    def keys_and_values(self, layer: nn.Module, cached: Tensor) -> tuple[Tensor, Tensor]:
        return cached.split((self.head_size, cached.shape[-1] - self.head_size), dim=-1)

    def decode(self, layer: nn.Module, query: Tensor, kv_cache: Tensor, group: Group) -> Tensor:
        return paged_decode(
            query,
            *self.keys_and_values(layer, kv_cache.transpose(1, 2)),
            group.block_table,
            group.cache_seqlens,
            softmax_scale=self.scale,
            window=self.window,
            softcap=self.softcap,
        )
