"""Several ranks by one command: ``ridgeline serve MODEL -- --tensor-parallel-size 2``."""

import json
import re
import urllib.request
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from checkpoints import tiny_checkpoint
from engines import random_prompts, reference
from transformers import LlamaConfig, LlamaForCausalLM

from ridgeline.bench.serving import client
from ridgeline.bench.serving.measure import ON_CPU
from ridgeline.bench.serving.server import free_port, running
from ridgeline.serving import cores
from ridgeline.serving.launch import ServeOptions, Start, prepare

TOKENS, BLOCK, CACHE_BYTES = 24, 32, 4 << 20
ENGINE = (
    *("--served-model-name", "m", "--dtype", "float32", "--enforce-eager"),
    *("--kv-cache-memory-bytes", str(CACHE_BYTES), "--block-size", str(BLOCK)),
    *("--max-model-len", "256"),
)
PROMPTS = random_prompts((100, 40, 7, 60), shared=5)

pytestmark = pytest.mark.skipif(len(cores.allowed_cores()) < 2, reason="two ranks take two cores")


@dataclass(frozen=True)
class Server:
    url: str
    log: Path

    def complete(self, prompt: list[int]) -> list[int]:
        """Greedy tokens."""
        body = {"model": "m", "prompt": prompt, "max_tokens": TOKENS, "temperature": 0}
        body |= {"ignore_eos": True, "return_token_ids": True}
        request = urllib.request.Request(
            f"{self.url}/v1/completions",
            json.dumps(body).encode(),
            {"Content-Type": "application/json"},
        )
        with urllib.request.urlopen(request, timeout=200) as answer:
            return json.load(answer)["choices"][0]["token_ids"]

    def together(self, prompts: list[list[int]]) -> list[list[int]]:
        with ThreadPoolExecutor(len(prompts)) as pool:
            return list(pool.map(self.complete, prompts))

    def bound(self) -> set[str]:
        """The cores of every rank, as the engine logs them."""
        return set(re.findall(r"core ids=\[(.*)\]", self.log.read_text()))


@contextmanager
def served(
    path: Path, *options: str, environment: Mapping[str, str] | None = None
) -> Iterator[Server]:
    port = free_port()
    url, log = f"http://127.0.0.1:{port}", path.with_suffix(".log")
    start = prepare(ServeOptions(path, port=port, engine=(*ENGINE, *options)))
    more = {"VLLM_LOGGING_LEVEL": "INFO", **(environment or {})}
    start = Start(start.line, {**start.environment, **more})
    with running(start, url, log, timeout=600):
        yield Server(url, log)


def test_tensor_parallel(tmp_path):
    """Our model: each rank has one of two latents, and the RoPE key."""
    path = tiny_checkpoint(tmp_path / "gla", "gla")
    with served(path, "--tensor-parallel-size", "2") as server:
        tokens = server.together(PROMPTS)
        capacity = client.metrics(server.url).capacity
        assert len(server.bound()) == 2
    assert tokens == reference(path, PROMPTS, tokens)
    assert capacity == CACHE_BYTES // (2 * (32 + 8) * 4 * BLOCK) * BLOCK  # two layers


def test_data_parallel(tmp_path):
    """The engine's own model with our attention, by its option: heads that CPU_ATTN has not."""
    torch.manual_seed(5)
    config = LlamaConfig(
        vocab_size=257,
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=16,
        max_position_embeddings=256,
        initializer_range=0.3,
    )
    path = tmp_path / "llama"
    LlamaForCausalLM(config).save_pretrained(path)
    options = ("--data-parallel-size", "2", "--attention-backend", "RIDGELINE")
    # Without workers of their own, which would double the time to start.
    alone = ("--distributed-executor-backend", "uni", "--skip-tokenizer-init")
    with served(path, *options, *alone, environment=ON_CPU) as server:
        tokens = server.together(PROMPTS)
        with urllib.request.urlopen(f"{server.url}/metrics", timeout=60) as answer:
            counted = re.findall(
                r'vllm:generation_tokens_total{engine="(\d)".*} (\S+)', answer.read().decode()
            )
    assert tokens == reference(path, PROMPTS, tokens)
    assert {engine for engine, count in counted if float(count) > 0} == {"0", "1"}
