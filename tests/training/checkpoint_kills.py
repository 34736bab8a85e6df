"""Run by test_checkpoint_kills.py: processes that die at each of their calls to the filesystem.

Every attempt is a fork of this one, so that the libraries load once. A fork replaces the calls
that change the filesystem by ones that count; at the chosen one it kills itself, a write after
half of its bytes.
"""

import hashlib
import os
import shutil
import signal
import sys
from collections.abc import Callable
from pathlib import Path

import torch
from training_cases import tiny_config

from ridgeline.training import checkpoint as checkpoints
from ridgeline.training.checkpoint import Checkpoint
from ridgeline.training.pretrain import CHECKPOINTS, MODEL, pretrain

CALLS = ("open", "write", "fsync", "close", "mkdir", "rename", "replace", "unlink", "rmdir")


def forked(work: Callable[[], None], kill_at: int | None = None) -> bool:
    """Whether the work was done; False if it was killed."""
    child = os.fork()
    if child == 0:
        status = 1
        try:
            if kill_at is not None:
                plant(kill_at)
            work()
            status = 0
        finally:
            os._exit(status)
    _, status = os.waitpid(child, 0)
    if os.WIFSIGNALED(status):
        assert os.WTERMSIG(status) == signal.SIGKILL, f"died of signal {os.WTERMSIG(status)}"
        return False
    assert os.WEXITSTATUS(status) == 0, "failed, see the traceback above"
    return True


def plant(kill_at: int) -> None:
    count = 0

    def counted(name: str, call: Callable) -> Callable:
        def stand_in(*args, **kwargs):
            nonlocal count
            count += 1
            if count < kill_at:
                return call(*args, **kwargs)
            if name == "write":
                call(args[0], args[1][: len(args[1]) // 2])
            os.kill(os.getpid(), signal.SIGKILL)
            raise AssertionError("still alive")

        return stand_in

    for name in CALLS:
        setattr(os, name, counted(name, getattr(os, name)))


def make(step: int) -> Checkpoint:
    values = torch.arange(1000, dtype=torch.float32) + step
    return Checkpoint(step, {"w": values}, {"m": -values}, {"config": {"step": step}}, f"t{step}")


def require(found: Checkpoint, step: int) -> None:
    expected = make(step)
    assert found.step == step
    assert torch.equal(found.weights["w"], expected.weights["w"])
    assert torch.equal(found.optimizer["m"], expected.optimizer["m"])
    assert (found.state, found.tokenizer) == (expected.state, expected.tokenizer)


def saves(root: Path) -> None:
    """A save killed at every one of its calls, beside two older checkpoints."""
    outcomes = set()
    before = root / "before"
    for step in (1, 2):
        checkpoints.save(before, make(step))
    for n in range(1, 1000):
        folder = root / str(n)
        shutil.copytree(before, folder)
        done = forked(lambda folder=folder: checkpoints.save(folder, make(3)), kill_at=n)
        found = checkpoints.load(folder)
        require(found, found.step)
        outcomes.add(found.step)
        if done:
            break
        # What is left of the killed save is no hindrance to the next one.
        checkpoints.save(folder, make(found.step + 1))
        require(checkpoints.load(folder), found.step + 1)
        last_two = [make(found.step + i).name for i in (0, 1)]
        assert checkpoints.names(folder) == last_two
        assert not (folder / checkpoints.STAGING).exists()
        shutil.rmtree(folder)
    assert outcomes == {2, 3}, outcomes
    assert n > 25, "too few calls were counted for a save of five files"
    print(f"killed at {n - 1} calls")


def runs(root: Path, every: int) -> None:
    """Whole runs killed at every ``every``-th call, then resumed: same weights, same losses."""
    text = root / "text.txt"
    config = tiny_config(text)

    def outcome(out: Path) -> tuple[str, list[str], str]:
        last = checkpoints.load(out / CHECKPOINTS)
        digest = hashlib.sha256()
        for tensors in (last.weights, last.optimizer):
            for name in sorted(tensors):
                digest.update(tensors[name].numpy().tobytes())
        rows = [
            line.split(",")[:6]
            for line in (out / "train.csv").read_text().splitlines()
            if line[0] != "#"
        ]
        weights = (out / MODEL / "model.safetensors").read_bytes()
        return digest.hexdigest(), rows, hashlib.sha256(weights).hexdigest()

    assert forked(lambda: pretrain(root / "whole", config) and None)
    expected = outcome(root / "whole")
    killed = 0
    for n in range(2, 10_000, every):
        out = root / f"killed-{n}"
        if forked(lambda out=out, n=n: pretrain(out, config) and None, kill_at=n):
            break
        killed += 1
        started = checkpoints.latest_name(out / CHECKPOINTS) is not None
        assert forked(lambda out=out, go=started: pretrain(out, config, resume=go) and None)
        assert outcome(out) == expected, f"killed at call {n}"
        shutil.rmtree(out)
    print(f"resumed {killed} runs")
    assert killed >= 5


if __name__ == "__main__":
    torch.set_num_threads(1)
    if sys.argv[1] == "saves":
        saves(Path(sys.argv[2]))
    else:
        runs(Path(sys.argv[2]), every=int(sys.argv[3]))
