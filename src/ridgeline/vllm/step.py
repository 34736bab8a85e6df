"""What attention has to do in one step of the engine, made once for all its layers.

A step mixes requests that decode, with one new token or several (speculative decoding), with
prompts, whole or a chunk of one. The operations take batches of an equal number of new tokens, so
requests are grouped by that number; prompts that begin in this step attend over their own new
tokens alone and need no cache.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import ClassVar

import torch
from torch import Tensor
from vllm.config import VllmConfig
from vllm.v1.attention.backend import (
    AttentionCGSupport,
    AttentionMetadata,
    AttentionMetadataBuilder,
    CommonAttentionMetadata,
)
from vllm.v1.kv_cache_interface import AttentionSpec


@dataclass(frozen=True)
class Group:
    """B requests with ``query_len`` new tokens each, which see the cache.

    ``tokens`` selects their ``B * query_len`` rows of the step; ``block_table [B, max_pages]`` and
    ``cache_seqlens [B]`` (the new tokens included) are those of the decode operations.
    """

    query_len: int
    tokens: slice | Tensor
    block_table: Tensor
    cache_seqlens: Tensor


@dataclass(frozen=True)
class Prompts:
    """Requests of which nothing was cached before; ``cu_seqlens [B + 1]`` int32."""

    tokens: slice | Tensor
    cu_seqlens: Tensor
    max_seqlen: int


@dataclass
class Step(AttentionMetadata):
    num_tokens: int
    groups: list[Group] = field(default_factory=list)
    prompts: Prompts | None = None


class StepBuilder(AttentionMetadataBuilder[Step]):
    """Of CUDA graphs it supports batches of one query length: one group of the engine's own
    persistent tensors, made without reading a value from the device. A request that pads such a
    batch has length 0, which the operations answer with 0."""

    _cudagraph_support: ClassVar[AttentionCGSupport] = AttentionCGSupport.UNIFORM_BATCH

    def __init__(
        self,
        kv_cache_spec: AttentionSpec,
        layer_names: list[str],
        vllm_config: VllmConfig,
        device: torch.device,
    ) -> None:
        super().__init__(kv_cache_spec, layer_names, vllm_config, device)
        # Decodes come first in a batch, so that their rows are a slice.
        self._init_reorder_batch_threshold(1, supports_spec_as_decode=True)

    def build(
        self, common_prefix_len: int, common: CommonAttentionMetadata, fast_build: bool = False
    ) -> Step:
        if common.causal is not True:
            raise ValueError(f"causal: expected True, got {common.causal}")
        step = Step(common.num_actual_tokens)
        longest = common.max_query_len
        table, seqlens = common.block_table_tensor, common.seq_lens
        if (
            longest <= self.reorder_batch_threshold
            and common.num_actual_tokens == common.num_reqs * longest
        ):
            step.groups.append(Group(longest, slice(0, step.num_tokens), table, seqlens))
            return step
        starts = common.query_start_loc_cpu[: common.num_reqs + 1].tolist()
        lens = [b - a for a, b in pairwise(starts)]
        # At least the true length, so a request that it calls new is new.
        known = common.seq_lens_cpu_upper_bound
        known = (seqlens.cpu() if known is None else known)[: common.num_reqs].tolist()
        new: list[int] = []
        behind: dict[int, list[int]] = {}
        for request, (query_len, seqlen) in enumerate(zip(lens, known, strict=True)):
            if query_len > self.reorder_batch_threshold and seqlen == query_len:
                new.append(request)
            elif query_len:
                behind.setdefault(query_len, []).append(request)
        for query_len, requests in behind.items():
            rows = _rows(requests, range(common.num_reqs + 1), self.device)
            step.groups.append(
                Group(query_len, _rows(requests, starts, self.device), table[rows], seqlens[rows])
            )
        if new:
            cu_seqlens = torch.zeros(len(new) + 1, dtype=torch.int32)
            new_lens = torch.tensor([lens[i] for i in new], dtype=torch.int32)
            torch.cumsum(new_lens, 0, out=cu_seqlens[1:])
            step.prompts = Prompts(
                _rows(new, starts, self.device),
                cu_seqlens.to(self.device),
                max(lens[i] for i in new),
            )
        return step


def _rows(requests: list[int], starts: Sequence[int], device: torch.device) -> slice | Tensor:
    """Rows ``starts[i]:starts[i + 1]`` of all ``requests``; a slice where they are neighbours."""
    first, last = requests[0], requests[-1]
    if last - first + 1 == len(requests):
        return slice(starts[first], starts[last + 1])
    return torch.cat([torch.arange(starts[i], starts[i + 1]) for i in requests]).to(device)
