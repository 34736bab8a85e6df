"""Greedy tokens in the engine are those of transformers, under everything that it does to a step.

One engine a variant: continuous batching, chunked prefill, prefix-cache hits, n-gram speculative
decoding, and a cache too small for the requests, which preempts them.
"""

import json
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from alone import EVENTS
from checkpoints import VARIANTS, tiny_checkpoint
from engines import BLOCK, random_prompts, reference

from ridgeline.models import RidgelineConfig
from ridgeline.models.decoder import make_attention

TOKENS, PAGES = 40, 56
# The longest is computed in chunks of 300 (fresh), 300 (gathered) and the rest (over the cache).
LENGTHS = (700, 70, 90, 61, 49, 120, 64, 3)


class Served(NamedTuple):
    path: Path
    prompts: list[list[int]]
    report: dict  # of alone.py


@pytest.fixture(scope="module", params=VARIANTS)
def served(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp(request.param)
    path = tiny_checkpoint(folder / "model", request.param, max_position_embeddings=1024)
    spec = make_attention(RidgelineConfig.from_pretrained(path)).cache_spec()
    page = spec.bytes_per_token(torch.float32) * BLOCK * 2  # two layers
    prompts = random_prompts(LENGTHS, shared=48)
    job, out = folder / "job.json", folder / "out.json"
    todo = {"path": str(path), "memory": PAGES * page, "prompts": prompts, "tokens": TOKENS}
    job.write_text(json.dumps(todo))
    run = subprocess.run(
        [sys.executable, Path(__file__).with_name("alone.py"), job, out],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=600,
    )
    assert run.returncode == 0, run.stdout[-3000:]
    return Served(path, prompts, json.loads(out.read_text()))


def test_tokens_are_those_of_transformers(served):
    assert served.report["tokens"] == reference(served.path, served.prompts, TOKENS)


@pytest.mark.parametrize("event", EVENTS)
def test_it_really_happened(served, event):
    assert served.report["events"][event] > 0


def test_capacity_is_that_of_cache_spec(served):
    """The engine made as many pages of its memory as ``CacheSpec`` says."""
    assert served.report["pages"] == PAGES


def test_the_same_again_from_the_prefix_cache(served):
    assert served.report["again"] == served.report["tokens"][1:3]
    assert served.report["hits"] >= 32
