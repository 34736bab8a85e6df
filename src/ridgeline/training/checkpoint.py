"""Checkpoints that a kill at any moment leaves loadable.

A checkpoint is a folder ``step-<n>`` of safetensors and JSON with a manifest of SHA-256 sums;
``latest.json`` beside it names the one to go on from. A save writes into a staging folder, syncs
every file and the folder, renames it into place, and only then replaces ``latest.json``. Before
that last rename the previous checkpoint is the latest one; after it, the new one is.
"""

import contextlib
import json
import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
from torch import Tensor

from ridgeline.models.manifest import MANIFEST, sync, verify_manifest, write_manifest

LATEST = "latest.json"
STAGING = ".staging"
PREFIX = "step-"
KEPT = 2  # so that a damaged latest checkpoint still has a predecessor

WEIGHTS, OPTIMIZER = "model.safetensors", "optimizer.safetensors"
STATE, TOKENIZER = "state.json", "tokenizer.json"


@dataclass(frozen=True)
class Checkpoint:
    """What a run needs to go on: see ``pretrain`` for the keys of ``state``."""

    step: int
    weights: dict[str, Tensor]
    optimizer: dict[str, Tensor]
    state: dict[str, Any]
    tokenizer: str  # tokenizer.json

    @property
    def name(self) -> str:
        return f"{PREFIX}{self.step:08d}"


def save(folder: Path, checkpoint: Checkpoint) -> None:
    """Writes a checkpoint into ``folder`` and makes it the latest; older ones go but one.

    Raises:
        OSError: the disk is full or fails; nothing half-written stays, the latest checkpoint is
            still the one before.
        ValueError: this step is the latest checkpoint already.
    """
    target = folder / checkpoint.name
    if latest_name(folder) == target.name:
        raise ValueError(f"checkpoint: {target} is the latest one already")
    staging = folder / STAGING
    files = {
        WEIGHTS: safetensors.torch.save(checkpoint.weights),
        OPTIMIZER: safetensors.torch.save(checkpoint.optimizer),
        STATE: json.dumps({"step": checkpoint.step, **checkpoint.state}, indent=1).encode(),
        TOKENIZER: checkpoint.tokenizer.encode(),
    }
    try:
        folder.mkdir(parents=True, exist_ok=True)
        _remove(staging)  # of a save that was killed
        staging.mkdir()
        for name, data in files.items():
            write_synced(staging / name, data)
        write_manifest(staging)
        sync(staging)
        _remove(target)  # of a save killed before it became the latest
        staging.rename(target)
        sync(folder)
        point_to(folder, target.name)
    except OSError as error:
        with contextlib.suppress(OSError):
            _remove(staging)
        size = sum(map(len, files.values())) / 1e6
        raise OSError(
            error.errno,
            f"checkpoint of step {checkpoint.step} ({size:.1f} MB) cannot be written to {folder}: "
            f"{error.strerror}; {_still_latest(folder)}",
        ) from error
    for name in names(folder)[:-KEPT]:
        _remove(folder / name)


def load(folder: Path, name: str | None = None) -> Checkpoint:
    """Reads the latest checkpoint of ``folder``, or the one named, after checking every byte.

    Raises:
        FileNotFoundError: there is no such checkpoint.
        ValueError: a file is missing, truncated or altered; the message names it, and the
            checkpoints that could be named instead. None of them is taken silently.
    """
    chosen = latest_name(folder) if name is None else name
    if chosen is None:
        raise FileNotFoundError(f"checkpoint: {folder} holds none")
    path = folder / chosen
    others = [other for other in names(folder) if other != chosen]
    hint = f"; there is also {', '.join(others)}" if others else ""
    if not path.is_dir():
        raise FileNotFoundError(f"checkpoint: {path} does not exist{hint}")
    try:
        if not verify_manifest(path):
            raise ValueError(f"{path / MANIFEST}: missing")
        state = json.loads((path / STATE).read_text(encoding="utf-8"))
        return Checkpoint(
            step=state.pop("step"),
            weights=safetensors.torch.load_file(path / WEIGHTS),
            optimizer=safetensors.torch.load_file(path / OPTIMIZER),
            state=state,
            tokenizer=(path / TOKENIZER).read_text(encoding="utf-8"),
        )
    except (ValueError, KeyError, FileNotFoundError) as error:
        raise ValueError(f"checkpoint: {error}{hint}") from error


def names(folder: Path) -> list[str]:
    """Complete checkpoints of ``folder``, oldest first."""
    return sorted(path.name for path in folder.glob(f"{PREFIX}*") if path.is_dir())


def latest_name(folder: Path) -> str | None:
    """The checkpoint that ``latest.json`` names; ``None`` where nothing was saved yet."""
    path = folder / LATEST
    if not path.exists():
        return None
    try:
        name = json.loads(path.read_text(encoding="utf-8"))["checkpoint"]
        if not name.startswith(PREFIX) or Path(name).name != name:
            raise ValueError(name)
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise ValueError(f"checkpoint: {path} is damaged ({error})") from error
    return name


def go_back_to(folder: Path, name: str) -> None:
    """Makes an older checkpoint the latest one and removes those after it."""
    point_to(folder, name)
    for other in names(folder):
        if other > name:
            _remove(folder / other)


def point_to(folder: Path, name: str) -> None:
    replace_file(folder / LATEST, json.dumps({"checkpoint": name}).encode())


def replace_file(path: Path, data: bytes) -> None:
    """Old content or new content, at any moment."""
    staged = path.with_name(f".{path.name}.new")
    try:
        write_synced(staged, data)
        os.replace(staged, path)
    except OSError:
        with contextlib.suppress(OSError):
            staged.unlink(missing_ok=True)
        raise
    sync(path.parent)


def write_synced(path: Path, data: bytes) -> None:
    """Writes a file and has the system bring it to the disk; an ``OSError`` names the file."""
    try:
        handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
        try:
            view = memoryview(data)
            while view:
                view = view[os.write(handle, view) :]
            os.fsync(handle)
        finally:
            os.close(handle)
    except OSError as error:
        raise OSError(error.errno, f"{error.strerror}, writing {path}") from error


def _remove(folder: Path) -> None:
    if folder.exists():
        shutil.rmtree(folder)


def _still_latest(folder: Path) -> str:
    name = latest_name(folder)
    return f"{name} is intact" if name else "there is none before it"
