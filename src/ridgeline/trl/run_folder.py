"""The folder of a ``ridgeline dpo`` run: whether it is free, how far its run has come."""

import csv
import json
from pathlib import Path

from transformers.trainer_utils import get_last_checkpoint

MODEL, LOG, PLOT, CHECKPOINTS = "model", "log.csv", "curve.png", "checkpoints"


def last_checkpoint(out_dir: Path, *, resume: bool) -> Path | None:
    """The checkpoint that a run goes on from, ``None`` for one that begins.

    Raises:
        FileNotFoundError: there is none to resume.
        ValueError: ``out_dir`` is a file, or a run that begins would overwrite what it holds.
    """
    if out_dir.exists() and not out_dir.is_dir():
        raise ValueError(f"out_dir: expected a folder, or a path where none is yet, got {out_dir}")
    checkpoints = out_dir / CHECKPOINTS
    last = get_last_checkpoint(checkpoints) if checkpoints.is_dir() else None
    if resume:
        if last is None:
            raise FileNotFoundError(f"resume: {checkpoints} holds no checkpoint")
        return Path(last)
    if last is not None:
        raise ValueError(f"out_dir: {out_dir} holds {Path(last).name}; go on from it with --resume")
    for name in (MODEL, LOG, PLOT, CHECKPOINTS):
        path = out_dir / name
        if path.is_file() or (path.is_dir() and any(path.iterdir())):
            raise ValueError(f"out_dir: {out_dir} already holds {name}; take another")
    return None


def is_finished(out_dir: Path, last: Path, steps: int | None, epochs: float) -> bool:
    """Whether a checkpoint is its run's last one, and the run wrote its model, log and plot.

    Args:
        steps, epochs: what the run is to have; ``steps`` counts if both are given.
    """
    state = json.loads((last / "trainer_state.json").read_text(encoding="utf-8"))
    done = state["global_step"] >= steps if steps else state["epoch"] >= epochs
    # A run killed while it wrote them, or one that was finished when it was to be shorter, has
    # still to write them.
    written = all((out_dir / name).exists() for name in (MODEL, LOG, PLOT))
    logged = max((log["step"] for log in state["log_history"]), default=0)
    return done and written and _last_logged(out_dir / LOG) >= logged


def _last_logged(path: Path) -> int:
    lines = path.read_text(encoding="utf-8").splitlines()
    rows = list(csv.DictReader(line for line in lines if line[:1] != "#"))
    return int(rows[-1]["step"]) if rows else 0
