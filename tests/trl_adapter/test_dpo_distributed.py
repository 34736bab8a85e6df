"""Two processes train what one does: data parallelism, accumulation, sharded weights."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

TOLERANCE = 1e-12  # in float64: sums of two halves
SAME = ["grad_norm", "rewards/accuracies", "rewards/margins", "logps/chosen", "entropy"]


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    out = tmp_path_factory.mktemp("distributed")
    script = Path(__file__).with_name("distributed_runs.py")
    result = subprocess.run(
        [sys.executable, str(script), str(out)],
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert result.returncode == 0, result.stderr[-4000:]
    return {path.stem: torch.load(path) for path in out.glob("*.pt")}


@pytest.mark.parametrize("name", ["data-parallel", "accumulated", "fsdp2"])
def test_weights_and_loss_are_those_of_one_process(name, runs):
    single, found = runs["single"], runs[name]
    assert found["weights"].keys() == single["weights"].keys()
    for key, expected in single["weights"].items():
        assert (found["weights"][key] - expected).abs().max() <= TOLERANCE, key
    for mine, expected in zip(found["logs"][:2], single["logs"][:2], strict=True):
        assert mine["loss"] == pytest.approx(expected["loss"], rel=1e-6)  # logged in float32


@pytest.mark.parametrize("name", ["data-parallel", "fsdp2"])
def test_metrics_count_all_processes(name, runs):
    for mine, expected in zip(runs[name]["logs"][:2], runs["single"]["logs"][:2], strict=True):
        for key in SAME:
            assert mine[key] == pytest.approx(expected[key], rel=1e-6), key
        for key in ("tokens/logical", "tokens/physical", "packing/shared_fraction", "num_tokens"):
            assert mine[key] == expected[key]
        assert mine["packing/ratio"] == expected["packing/ratio"] / 2  # a row on each process


def test_fsdp2_shards(runs):
    assert all(runs["fsdp2"]["sharded"])
    assert not any(runs["data-parallel"]["sharded"])
