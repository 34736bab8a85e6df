"""K and V cached apart: MHA, MQA and GQA, in Ridgeline's models and in vLLM's own."""

from dataclasses import replace

import torch
from torch import Tensor
from vllm.model_executor.layers.attention import Attention
from vllm.v1.kv_cache_interface import AttentionSpec, KVQuantMode

from ridgeline.ops.paged_decode import paged_decode
from ridgeline.vllm.backend import RidgelineBackend, RidgelineImpl
from ridgeline.vllm.fp8 import Record, dequantize, paired_record, quantize
from ridgeline.vllm.step import Group


class PairedBackend(RidgelineBackend):
    """A token of a head is cached as ``[K | V]``, in FP8 with their scales behind."""

    @staticmethod
    def get_impl_cls() -> type["PairedImpl"]:
        return PairedImpl

    @classmethod
    def supports_sliding_window(cls) -> bool:
        return True

    @classmethod
    def customize_spec(cls, spec: AttentionSpec) -> AttentionSpec:
        if spec.kv_quant_mode == KVQuantMode.NONE:
            return spec
        return replace(
            spec,
            kv_quant_mode=KVQuantMode.FP8_PER_TOKEN_HEAD,
            state_content_bytes=paired_record(spec.head_size, spec.head_size_v).nbytes,
        )


class PairedImpl(RidgelineImpl):
    def join(self, layer: Attention, key: Tensor, value: Tensor) -> Tensor:
        if not self.is_fp8:
            return torch.cat((key, value), dim=-1)
        (k, k_scale), (v, v_scale) = quantize(key), quantize(value)
        return self._record(layer).join(k, v, torch.stack((k_scale, v_scale), dim=-1))

    def read(self, layer: Attention, rows: Tensor) -> tuple[Tensor, Tensor]:
        if not self.is_fp8:
            return self._split(rows)
        k, v, scale = self._record(layer).split(rows)
        return dequantize(k, scale[..., 0], self.dtype), dequantize(v, scale[..., 1], self.dtype)

    def keys_and_values(
        self, layer: Attention, key: Tensor, value: Tensor
    ) -> tuple[Tensor, Tensor]:
        return key, value

    def gathered_elements(self, layer: Attention) -> int:
        return self.num_kv_heads * (self.head_size + layer.head_size_v)

    def decode(self, layer: Attention, query: Tensor, kv_cache: Tensor, group: Group) -> Tensor:
        pages, scales = kv_cache.transpose(1, 2), {}
        if self.is_fp8:
            k, v, scale = self._record(layer).split(pages)
            scales = {"k_scale": scale[..., :1], "v_scale": scale[..., 1:]}
        else:
            k, v = self._split(pages)
        return paged_decode(
            query,
            k,
            v,
            group.block_table,
            group.cache_seqlens,
            softmax_scale=self.scale,
            window=self.window,
            softcap=self.softcap,
            **scales,
        )

    def _split(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        return rows.split((self.head_size, rows.shape[-1] - self.head_size), dim=-1)

    def _record(self, layer: Attention) -> Record:
        return paired_record(self.head_size, layer.head_size_v)
