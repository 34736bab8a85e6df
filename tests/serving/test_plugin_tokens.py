"""Greedy tokens in the engine are those of transformers, under everything that it does to a step.

One engine a variant: continuous batching, chunked prefill, prefix-cache hits, n-gram speculative
decoding, and a cache too small for the requests, which preempts them.
"""

import pytest
import torch
from checkpoints import VARIANTS, tiny_checkpoint
from engines import BLOCK, counter, engine, greedy, random_prompts, reference

from ridgeline.models import RidgelineConfig
from ridgeline.models.decoder import make_attention

TOKENS, PAGES = 40, 56
# The longest is computed in chunks of 300 (fresh), 300 (gathered) and the rest (over the cache).
LENGTHS = (700, 70, 90, 61, 49, 120, 64, 3)


@pytest.fixture(scope="module", params=VARIANTS)
def served(request, tmp_path_factory):
    """A variant's name, its checkpoint, an engine that has answered all prompts, its tokens."""
    variant = request.param
    path = tiny_checkpoint(tmp_path_factory.mktemp(variant), variant, max_position_embeddings=1024)
    spec = make_attention(RidgelineConfig.from_pretrained(path)).cache_spec()
    page = spec.bytes_per_token(torch.float32) * BLOCK * 2  # two layers
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
        prompts = random_prompts(LENGTHS, shared=48)
        yield variant, path, llm, prompts, greedy(llm, prompts, TOKENS)


def test_tokens_are_those_of_transformers(served):
    _, path, _, prompts, tokens = served
    assert tokens == reference(path, prompts, TOKENS)


@pytest.mark.parametrize(
    "event",
    ["num_preemptions", "prefix_cache_hits", "spec_decode_num_drafts"],
)
def test_it_really_happened(served, event):
    assert counter(served[2], event) > 0


def test_capacity_is_that_of_cache_spec(served):
    """The engine made as many pages of its memory as ``CacheSpec`` says."""
    assert served[2].llm_engine.vllm_config.cache_config.num_gpu_blocks == PAGES


def test_the_same_again_from_the_prefix_cache(served):
    _, _, llm, prompts, tokens = served
    hits = counter(llm, "prefix_cache_hits")
    assert greedy(llm, prompts[1:3], TOKENS) == tokens[1:3]
    assert counter(llm, "prefix_cache_hits") >= hits + 32
