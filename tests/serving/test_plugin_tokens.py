"""Greedy tokens in the engine are those of transformers, under everything that it does to a step.

One engine a variant: continuous batching, chunked prefill, prefix-cache hits, n-gram speculative
decoding, and a cache too small for the requests, which preempts them.
"""

from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from checkpoints import VARIANTS, tiny_checkpoint
from engines import BLOCK, counter, engine, greedy, random_prompts, reference

from ridgeline.models import RidgelineConfig
from ridgeline.models.decoder import make_attention

TOKENS, PAGES = 40, 56
# The longest is computed in chunks of 300 (fresh), 300 (gathered) and the rest (over the cache).
LENGTHS = (700, 70, 90, 61, 49, 120, 64, 3)
EVENTS = ("num_preemptions", "prefix_cache_hits", "spec_decode_num_drafts")


class Served(NamedTuple):
    path: Path
    prompts: list[list[int]]
    pages: int
    tokens: list[list[int]]
    events: dict[str, int]
    again: list[list[int]]  # of prompts 1 and 2, sent once more
    hits: int


@pytest.fixture(scope="module", params=VARIANTS)
def served(request, tmp_path_factory):
    path = tmp_path_factory.mktemp(request.param)
    tiny_checkpoint(path, request.param, max_position_embeddings=1024)
    spec = make_attention(RidgelineConfig.from_pretrained(path)).cache_spec()
    page = spec.bytes_per_token(torch.float32) * BLOCK * 2  # two layers
    prompts = random_prompts(LENGTHS, shared=48)
    with engine(
        path,
        kv_cache_memory_bytes=PAGES * page,
        max_model_len=768,
        max_num_seqs=6,
        max_num_batched_tokens=300,
        enable_prefix_caching=True,
        speculative_config={
            "method": "ngram",
            "num_speculative_tokens": 3,
            "prompt_lookup_min": 1,
            "prompt_lookup_max": 3,
        },
    ) as llm:
        tokens = greedy(llm, prompts, TOKENS)
        events = {event: counter(llm, event) for event in EVENTS}
        again = greedy(llm, prompts[1:3], TOKENS)
        hits = counter(llm, "prefix_cache_hits") - events["prefix_cache_hits"]
        pages = llm.llm_engine.vllm_config.cache_config.num_gpu_blocks
    return Served(path, prompts, pages, tokens, events, again, hits)


def test_tokens_are_those_of_transformers(served):
    assert served.tokens == reference(served.path, served.prompts, served.tokens)


@pytest.mark.parametrize("event", EVENTS)
def test_it_really_happened(served, event):
    assert served.events[event] > 0


def test_capacity_is_that_of_cache_spec(served):
    """The engine made as many pages of its memory as ``CacheSpec`` says."""
    assert served.pages == PAGES


def test_the_same_again_from_the_prefix_cache(served):
    assert served.again == served.tokens[1:3]
    assert served.hits >= 32
