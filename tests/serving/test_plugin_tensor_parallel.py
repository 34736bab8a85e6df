"""Two ranks over gloo: tokens are those of one, and a rank's cache is what CacheSpec says."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from checkpoints import SIZES, VARIANTS, tiny_checkpoint
from engines import BLOCK, engine, random_prompts, reference, tokens_cached

from ridgeline.models import RidgelineConfig
from ridgeline.models.decoder import make_attention
from ridgeline.vllm.layers import check_ranks

TOKENS, GIB = 24, 1 << 30


def bytes_per_token(path: Path, tp: int) -> int:
    layer = make_attention(RidgelineConfig.from_pretrained(path))
    return layer.cache_spec(tp=tp).bytes_per_token(torch.float32)


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    """Each variant's checkpoint, the prompts, and what both ranks report of all variants."""
    folder = tmp_path_factory.mktemp("ranks")
    paths = {name: tiny_checkpoint(folder / name, name) for name in VARIANTS}
    prompts = random_prompts((100, 40, 7), shared=5)
    job = folder / "job.json"
    job.write_text(
        json.dumps(
            {
                "paths": [str(path) for path in paths.values()],
                "prompts": prompts,
                "tokens": TOKENS,
                "memory": GIB,
            }
        )
    )
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    cores = sorted(os.sched_getaffinity(0))
    common = {
        "WORLD_SIZE": "2",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "VLLM_CPU_OMP_THREADS_BIND": f"{cores[0]}|{cores[-1]}",
    }
    processes = [
        subprocess.Popen(
            [sys.executable, Path(__file__).with_name("rank.py"), job, folder / f"{rank}.json"],
            env=os.environ | common | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in range(2)
    ]
    for process in processes:
        output, _ = process.communicate(timeout=600)
        assert process.returncode == 0, output[-3000:]
    reports = [json.loads((folder / f"{rank}.json").read_text()) for rank in range(2)]
    return paths, prompts, reports


@pytest.mark.parametrize("variant", VARIANTS)
def test_tokens_are_those_of_transformers(pair, variant):
    paths, prompts, reports = pair
    first, second = (report[str(paths[variant])]["tokens"] for report in reports)
    assert first == second == reference(paths[variant], prompts, first)


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_rank_holds_what_cache_spec_says(pair, variant):
    paths, _, reports = pair
    page = bytes_per_token(paths[variant], tp=2) * BLOCK * 2  # two layers
    for report in reports:
        assert report[str(paths[variant])]["cached"] == GIB // page * BLOCK


@pytest.fixture(scope="module")
def one_rank(pair):
    """Tokens that the engine fits into a GiB without tensor parallelism."""
    paths, cached = pair[0], {}
    for variant in ("gqa", "gta", "gla"):
        with engine(paths[variant], max_model_len=256) as llm:
            cached[variant] = tokens_cached(llm, GIB)
    return cached


def test_capacity_of_gla_grows_with_the_ranks(pair, one_rank):
    paths, _, reports = pair
    two_ranks = reports[0][str(paths["gla"])]["cached"]
    spec = bytes_per_token(paths["gla"], tp=1) / bytes_per_token(paths["gla"], tp=2)
    assert two_ranks / one_rank["gla"] == pytest.approx(spec, rel=1e-4)
    assert spec == (2 * 32 + 8) / (32 + 8)  # two latents and the RoPE key, of which one goes


def test_capacity_of_gta_against_gqa(pair, one_rank):
    paths = pair[0]
    spec = bytes_per_token(paths["gqa"], tp=1) / bytes_per_token(paths["gta"], tp=1)
    assert one_rank["gta"] / one_rank["gqa"] == pytest.approx(spec, rel=1e-4)
    assert spec == (2 * 2 * 16) / (2 * 16 + 8)  # K and V of two heads; two states and a RoPE key


@pytest.mark.parametrize(
    ("variant", "tp", "message"),
    [
        ("gla", 3, "4 query heads, got 3"),
        ("gta", 8, "4 query heads, got 8"),
        ("gqa", 3, "4 query heads, got 3"),
    ],
)
def test_a_degree_that_does_not_divide_is_refused(variant, tp, message):
    config = RidgelineConfig(
        attention=variant, num_attention_heads=4, hidden_size=64, **SIZES[variant]
    )
    with pytest.raises(ValueError, match=message):
        check_ranks(config, tp)


def test_latent_heads_that_no_rank_can_share_are_refused():
    config = RidgelineConfig(
        attention="gla", num_attention_heads=12, hidden_size=96, num_latent_heads=3
    )
    check_ranks(config, 6)  # two ranks hold the same latent head
    with pytest.raises(ValueError, match="3 latent heads, got 2"):
        check_ranks(config, 2)
