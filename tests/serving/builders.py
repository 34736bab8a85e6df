"""Metadata of a step without an engine around it."""

from collections.abc import Sequence
from itertools import accumulate
from types import SimpleNamespace

import torch
from torch import Tensor
from vllm.v1.attention.backend import CommonAttentionMetadata
from vllm.v1.kv_cache_interface import FullAttentionSpec, SlidingWindowSpec

from ridgeline.vllm.step import StepBuilder

CPU = torch.device("cpu")


def builder(page: int, *, window: int | None = None, drafts: int | None = None) -> StepBuilder:
    """Of pages of ``page`` tokens; with ``drafts`` speculative tokens a request."""
    sizes = {"block_size": page, "num_kv_heads": 1, "head_size": 16, "dtype": torch.float32}
    spec = SlidingWindowSpec(**sizes, sliding_window=window) if window else None
    speculative = drafts and SimpleNamespace(num_speculative_tokens=drafts, parallel_drafting=False)
    config = SimpleNamespace(
        speculative_config=speculative,
        parallel_config=SimpleNamespace(decode_context_parallel_size=1),
    )
    return StepBuilder(spec or FullAttentionSpec(**sizes), ["layer"], config, CPU)


def batch(
    query_lens: Sequence[int], seq_lens: Sequence[int], table: Tensor
) -> CommonAttentionMetadata:
    """New tokens and all tokens of each request, and its pages ``[B, max_pages]``."""
    starts = torch.tensor([0, *accumulate(query_lens)], dtype=torch.int32)
    known = torch.tensor(seq_lens, dtype=torch.int32)
    return CommonAttentionMetadata(
        query_start_loc=starts,
        query_start_loc_cpu=starts,
        seq_lens=known,
        seq_lens_cpu_upper_bound=known,
        num_reqs=len(query_lens),
        num_actual_tokens=sum(query_lens),
        max_query_len=max(query_lens),
        max_seq_len=max(seq_lens),
        block_table_tensor=table,
        slot_mapping=torch.empty(0, dtype=torch.int64),
    )
