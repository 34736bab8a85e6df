"""Cores that ``ridgeline serve`` gives to several ranks on a CPU."""

import os
from pathlib import Path

import pytest
import torch

from ridgeline.serving import cores
from ridgeline.serving.launch import ServeOptions, prepare

TWO = ("--tensor-parallel-size", "2")


@pytest.fixture
def machine(monkeypatch, tmp_path) -> Path:
    """One memory node, of whose six logical CPUs 0 and 4, and 1 and 5, are a core each."""
    for cpu, siblings in ((0, "0,4"), (1, "1,5"), (2, "2"), (3, "3"), (4, "0,4"), (5, "1,5")):
        folder = tmp_path / f"cpu/cpu{cpu}/topology"
        folder.mkdir(parents=True)
        (folder / "thread_siblings_list").write_text(siblings)
    (tmp_path / "node/node0").mkdir(parents=True)
    monkeypatch.setattr(cores, "SYSTEM", tmp_path)
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: {0, 1, 2, 3, 4, 5})
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    return tmp_path


@pytest.mark.parametrize(
    ("given", "ranks"),
    [
        ((), 1),
        (TWO, 2),
        (("-tp", "2", "--data_parallel_size=3"), 6),
        (("--tensor-parallel-size=4", "-tp", "2"), 2),
        (("-pp", "2", "--dtype", "float32"), 2),
        (("--tensor-parallel-size", "two"), 1),
        (("--tensor-parallel-size",), 1),
        (("--tensor-parallel-size", "0"), 1),
    ],
)
def test_ranks(given, ranks) -> None:
    assert cores.count_ranks(given) == ranks


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ((), {}),
        (TWO, {"VLLM_CPU_OMP_THREADS_BIND": "0,1|2,3"}),
        (("-dp", "3"), {"VLLM_CPU_OMP_THREADS_BIND": "0|1|2"}),
        (("-dp", "2", *TWO), {"VLLM_CPU_OMP_THREADS_BIND": "0|1|2|3"}),
        (("-dp", "5"), {}),  # more ranks than cores
    ],
)
def test_whole_cores_of_each_rank(given, expected, machine) -> None:
    assert cores.binding(given, {}) == expected


def test_what_is_not_bound(machine, monkeypatch) -> None:
    assert cores.binding(TWO, {cores.BIND: "nobind"}) == {}
    (machine / "node/node1").mkdir()
    assert cores.binding(TWO, {}) == {}  # the engine has a node for each
    (machine / "node/node1").rmdir()
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert cores.binding(TWO, {}) == {}


def test_a_server_of_two_ranks_is_bound(machine, monkeypatch) -> None:
    monkeypatch.delenv(cores.BIND, raising=False)
    monkeypatch.setattr("ridgeline.serving.launch.require_engine", lambda: None)
    monkeypatch.setattr("ridgeline.serving.launch.check_model", lambda directory: True)
    start = prepare(ServeOptions(machine, engine=TWO))
    assert start.environment[cores.BIND] == "0,1|2,3"
