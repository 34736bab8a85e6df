"""Checkpoints on disks that are full, and checkpoints that something has damaged."""

import errno
import json
import os
from pathlib import Path

import pytest
import torch

from ridgeline.training import checkpoint as checkpoints
from ridgeline.training.checkpoint import Checkpoint

FILES = ["model.safetensors", "optimizer.safetensors", "state.json", "tokenizer.json"]


def make(step: int) -> Checkpoint:
    values = torch.arange(100, dtype=torch.float32) + step
    return Checkpoint(step, {"w": values}, {"m": -values}, {"config": {}}, f"tokenizer {step}")


@pytest.fixture
def folder(tmp_path):
    for step in (1, 2):
        checkpoints.save(tmp_path, make(step))
    return tmp_path


def content(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


def test_round_trip(folder):
    found = checkpoints.load(folder)
    assert (found.step, found.state, found.tokenizer) == (2, {"config": {}}, "tokenizer 2")
    assert torch.equal(found.weights["w"], make(2).weights["w"])
    assert torch.equal(found.optimizer["m"], make(2).optimizer["m"])
    assert sorted(p.name for p in (folder / "step-00000002").iterdir()) == sorted(
        [*FILES, "manifest.json"]
    )


def test_the_last_two_are_kept(folder):
    checkpoints.save(folder, make(3))
    assert checkpoints.names(folder) == ["step-00000002", "step-00000003"]


def test_an_older_one_is_loaded_by_name(folder):
    assert checkpoints.load(folder, "step-00000001").step == 1
    checkpoints.go_back_to(folder, "step-00000001")
    assert checkpoints.load(folder).step == 1
    assert checkpoints.names(folder) == ["step-00000001"]


def test_the_latest_one_is_never_overwritten(folder):
    with pytest.raises(ValueError, match="is the latest one already"):
        checkpoints.save(folder, make(2))


def test_nothing_to_load_is_an_error(tmp_path, folder):
    with pytest.raises(FileNotFoundError, match="holds none"):
        checkpoints.load(tmp_path / "nowhere")
    with pytest.raises(FileNotFoundError, match=r"step-00000009 does not exist.*step-00000001"):
        checkpoints.load(folder, "step-00000009")


@pytest.mark.parametrize("name", [*FILES, "manifest.json"])
@pytest.mark.parametrize("damage", ["truncated", "altered", "missing"])
def test_damage_is_named_and_no_other_checkpoint_is_taken(folder, name, damage):
    path = folder / "step-00000002" / name
    data = bytearray(path.read_bytes())
    if damage == "missing":
        path.unlink()
    elif damage == "truncated":
        path.write_bytes(data[:-3])
    else:
        data[len(data) // 2] ^= 1
        path.write_bytes(data)
    with pytest.raises(ValueError, match=r"^checkpoint: .*there is also step-00000001") as caught:
        checkpoints.load(folder)
    # An altered manifest is found by the file whose sum it no longer tells.
    assert name in str(caught.value) or (name, damage) == ("manifest.json", "altered")
    assert checkpoints.load(folder, "step-00000001").step == 1


@pytest.mark.parametrize("text", ["", "{", "[]", '{"checkpoint": "../elsewhere"}', '{"x": 1}'])
def test_a_damaged_pointer_is_named(folder, text):
    (folder / "latest.json").write_text(text)
    with pytest.raises(ValueError, match=r"latest\.json is damaged"):
        checkpoints.load(folder)


def fail_at(monkeypatch, n: int) -> list[str]:
    """Makes the n-th call that needs room on the disk fail; the names of all such calls."""
    calls: list[str] = []

    def failing(owner, name):
        original = getattr(owner, name)

        def stand_in(*args, **kwargs):
            calls.append(name)
            if len(calls) == n:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            return original(*args, **kwargs)

        monkeypatch.setattr(owner, name, stand_in)

    for owner, name in (
        (os, "write"),
        (os, "fsync"),
        (os, "mkdir"),
        (os, "rename"),
        (os, "replace"),
        (Path, "write_text"),
    ):
        failing(owner, name)
    return calls


def save_failing_at(n: int, folder: Path) -> tuple[list[str], OSError | None]:
    with pytest.MonkeyPatch.context() as monkeypatch:
        calls = fail_at(monkeypatch, n)
        try:
            checkpoints.save(folder, make(3))
        except OSError as error:
            return calls, error
    return calls, None


def test_a_full_disk_changes_nothing(folder):
    before = content(folder)
    # The first call makes a folder that is there already and is not needed.
    for n in range(2, 100):
        calls, error = save_failing_at(n, folder)
        if error is None:
            break
        assert error.errno == errno.ENOSPC
        for part in ("checkpoint of step 3", "No space left on device", str(folder), "is intact"):
            assert part in str(error)
        if calls.count("replace") < 2 or calls[-1] == "replace":
            # The pointer was not yet replaced: the old checkpoint is the latest one.
            assert checkpoints.load(folder).step == 2
            left = {name: data for name, data in content(folder).items() if "00003" not in name}
            assert left == before
        else:
            assert checkpoints.load(folder).step == 3
            checkpoints.go_back_to(folder, "step-00000002")
        assert not (folder / checkpoints.STAGING).exists()
    assert n > 20
    assert checkpoints.load(folder).step == 3


def test_a_write_that_takes_part_of_the_bytes_goes_on(tmp_path, monkeypatch):
    write = os.write
    monkeypatch.setattr(os, "write", lambda handle, data: write(handle, data[:7]))
    checkpoints.save(tmp_path, make(1))
    assert checkpoints.load(tmp_path).step == 1


def test_the_state_is_json(folder):
    state = json.loads((folder / "step-00000002" / "state.json").read_text())
    assert state == {"step": 2, "config": {}}
