"""What attention has to do in one step of the engine, made once for all its layers.

A step mixes requests that decode, with one new token or several (speculative decoding), with
prompts, whole or a chunk of one. The decode operations take batches of an equal number of new
tokens, so requests are grouped by that number. Prompts that begin in this step attend over their
own new tokens alone. So do chunks behind cached tokens, with those gathered from the cache, where
that is quicker than a decode operation with as many queries.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import accumulate, pairwise
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

# A chunk of at least so many new tokens is gathered: with 512 that halves its time for GQA and GLA
# in float32 on AVX2, with 128 it gains nothing for GLA, whose keys and values are expanded. For the
# memory that they take, at most so many tokens are gathered in a step, others read where they are.
GATHER_FROM = 256
GATHER_UP_TO = 32768


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
    """Requests that ``attention`` computes, packed; ``cu_seqlens_* [B + 1]`` int32.

    ``slots [total_k]`` is where their keys are cached, ``None`` where they are the step's own.
    """

    tokens: slice | Tensor
    cu_seqlens_q: Tensor
    cu_seqlens_k: Tensor
    max_seqlen_q: int
    max_seqlen_k: int
    slots: Tensor | None = None


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
    kv_cache_spec: AttentionSpec

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
        self.window: int | None = getattr(kv_cache_spec, "sliding_window", None)

    def build(
        self,
        common_prefix_len: int,
        common_attn_metadata: CommonAttentionMetadata,
        fast_build: bool = False,
    ) -> Step:
        common = common_attn_metadata
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
        # Exact for prompts; of requests that decode, at least the true length.
        known = common.seq_lens_cpu_upper_bound
        known = (seqlens.cpu() if known is None else known)[: common.num_reqs].tolist()
        whole: list[int] = []
        behind: dict[int, list[int]] = {}
        room = GATHER_UP_TO
        for request, (query_len, seqlen) in enumerate(zip(lens, known, strict=True)):
            is_new = seqlen == query_len
            if query_len > self.reorder_batch_threshold and (
                is_new or (query_len >= GATHER_FROM and seqlen <= room)
            ):
                room -= 0 if is_new else seqlen
                whole.append(request)
            elif query_len:
                behind.setdefault(query_len, []).append(request)
        for query_len, requests in behind.items():
            rows = _rows(requests, range(common.num_reqs + 1), self.device)
            step.groups.append(
                Group(query_len, _rows(requests, starts, self.device), table[rows], seqlens[rows])
            )
        if whole:
            step.prompts = self._prompts(whole, starts, lens, known, table)
        return step

    def build_for_cudagraph_capture(self, common_attn_metadata: CommonAttentionMetadata) -> Step:
        step = super().build_for_cudagraph_capture(common_attn_metadata)
        if step.prompts is not None or len(step.groups) != 1:
            lens = common_attn_metadata.query_start_loc_cpu.diff().tolist()
            raise ValueError(f"expected a batch of one query length to capture, got {lens}")
        return step

    def _prompts(
        self,
        requests: list[int],
        starts: list[int],
        query_lens: list[int],
        seqlens: list[int],
        block_table: Tensor,
    ) -> Prompts:
        q_lens, ends = ([x[i] for i in requests] for x in (query_lens, seqlens))
        firsts = [0] * len(ends)
        if self.window is not None:  # the engine gives away the pages behind it
            behind = self.window - 1  # the engine counts the query itself
            firsts = [max(end - n - behind, 0) for n, end in zip(q_lens, ends, strict=True)]
        k_lens = [end - first for first, end in zip(firsts, ends, strict=True)]
        slots = None
        if q_lens != k_lens:
            size = self.kv_cache_spec.block_size
            positions = [
                torch.arange(first, end, device=self.device)
                for first, end in zip(firsts, ends, strict=True)
            ]
            slots = torch.cat(
                [
                    block_table[i, at // size].long() * size + at % size
                    for i, at in zip(requests, positions, strict=True)
                ]
            )
        return Prompts(
            tokens=_rows(requests, starts, self.device),
            cu_seqlens_q=_cumulated(q_lens, self.device),
            cu_seqlens_k=_cumulated(k_lens, self.device),
            max_seqlen_q=max(q_lens),
            max_seqlen_k=max(k_lens),
            slots=slots,
        )


def _cumulated(lens: list[int], device: torch.device) -> Tensor:
    """``[B + 1]`` int32: where each of B packed sequences starts, and the total."""
    return torch.tensor([0, *accumulate(lens)], dtype=torch.int32).to(device)


def _rows(requests: list[int], starts: Sequence[int], device: torch.device) -> slice | Tensor:
    """Rows ``starts[i]:starts[i + 1]`` of all ``requests``; a slice where they are neighbours."""
    first, last = requests[0], requests[-1]
    if last - first + 1 == len(requests):
        return slice(starts[first], starts[last + 1])
    return torch.cat([torch.arange(starts[i], starts[i + 1]) for i in requests]).to(device)
