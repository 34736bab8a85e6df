"""The CSV log of a run and its loss curve."""

import csv
import io
import math
import os
import platform
import shlex
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import torch

from ridgeline import __version__
from ridgeline.training.checkpoint import replace_file

COLUMNS = (
    "step",
    "tokens",
    "lr",
    "loss",
    "grad_norm",
    "eval_loss",
    "tokens_per_second",
    "seconds",
)

_FLOATS = ("lr", "loss", "grad_norm", "tokens_per_second", "seconds")


@dataclass(frozen=True)
class Row:
    """One optimizer step; ``eval_loss`` where the step was evaluated, else ``None``."""

    step: int
    tokens: int
    lr: float
    loss: float
    grad_norm: float
    eval_loss: float | None
    tokens_per_second: float
    seconds: float


def header() -> list[str]:
    """Command, commit, machine and versions, as comment lines."""
    return [
        f"# command: ridgeline {shlex.join(sys.argv[1:])}",
        f"# commit: {_commit()}",
        f"# machine: {_cpu()}, {os.cpu_count()} cores, {platform.system()} {platform.machine()}",
        f"# versions: ridgeline {__version__}, torch {torch.__version__}, "
        f"Python {platform.python_version()}",
    ]


def _commit() -> str:
    command = ["git", "-C", str(Path(__file__).parent), "rev-parse", "HEAD"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "not a git checkout"


def _cpu() -> str:
    info = Path("/proc/cpuinfo")
    for line in info.read_text().splitlines() if info.exists() else ():
        if line.startswith("model name"):
            return line.split(":", 1)[1].strip()
    return platform.processor() or "unknown CPU"


class Log:
    """Appends a row a step to ``path``; a resumed run first drops the rows after its checkpoint.

    Args:
        step: steps done; rows of later ones were lost with the killed process.
        resumed: note this command beside those that the log names already.

    Raises:
        ValueError: rows before ``step`` are missing.
        OSError: the file cannot be written, here or in ``append``.
    """

    def __init__(self, path: Path, step: int, *, resumed: bool = False) -> None:
        self.path = path
        self.rows = [row for row in read_rows(path) if row.step <= step] if step else []
        if [row.step for row in self.rows] != list(range(1, step + 1)):
            raise ValueError(f"log: {path}: expected a row for each of the steps 1 to {step}")
        lines = header()
        if resumed:
            lines = [*_comments(path), f"# resumed after step {step}:", *lines]
        text = "\n".join([*lines, ",".join(COLUMNS), *map(_line, self.rows)]) + "\n"
        replace_file(path, text.encode())

    def append(self, row: Row) -> None:
        try:
            with self.path.open("a", encoding="utf-8") as file:
                file.write(_line(row) + "\n")
        except OSError as error:
            message = f"log: {self.path} cannot be written: {error.strerror}"
            raise OSError(error.errno, message) from error
        self.rows.append(row)


def read_rows(path: Path) -> list[Row]:
    """Rows of a log; a last line that a kill cut short is left out."""
    if not path.exists():
        return []
    lines = [line for line in path.read_text(encoding="utf-8").splitlines() if line[:1] != "#"]
    rows = []
    for values in csv.DictReader(io.StringIO("\n".join(lines))):
        try:
            rows.append(
                Row(
                    step=int(values["step"]),
                    tokens=int(values["tokens"]),
                    eval_loss=float(values["eval_loss"]) if values["eval_loss"] else None,
                    **{name: float(values[name]) for name in _FLOATS},
                )
            )
        except (TypeError, ValueError):
            break
    return rows


def _comments(path: Path) -> list[str]:
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    return [line for line in lines if line.startswith("#")]


def _line(row: Row) -> str:
    # 9 digits tell every float32 from its neighbours, so equal logs are equal losses.
    held_out = "" if row.eval_loss is None else f"{row.eval_loss:.9g}"
    return (
        f"{row.step},{row.tokens},{row.lr:.6g},{row.loss:.9g},{row.grad_norm:.4g},{held_out},"
        f"{row.tokens_per_second:.0f},{row.seconds:.1f}"
    )


def plot(rows: list[Row], baseline: float, path: Path) -> None:
    """Writes the loss curve, training and held-out, beside the n-gram baseline, as PNG."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4.2), layout="constrained")
    axes = figure.add_subplot()
    millions = [row.tokens / 1e6 for row in rows]
    axes.plot(millions, [row.loss for row in rows], color="tab:blue", alpha=0.25, linewidth=0.6)
    axes.plot(millions, _smooth([row.loss for row in rows]), color="tab:blue", label="training")
    held_out = [(row.tokens / 1e6, row.eval_loss) for row in rows if row.eval_loss is not None]
    axes.plot(*zip(*held_out, strict=True), "o-", color="tab:red", markersize=3, label="held out")
    axes.axhline(baseline, color="gray", linestyle="--", label="4-gram, held out")
    axes.set(xlabel="tokens (millions)", ylabel="loss (nats a token)")
    axes.set_ylim(math.floor(2 * min(row.loss for row in rows)) / 2, None)
    axes.grid(alpha=0.3)
    axes.legend()
    buffer = io.BytesIO()
    FigureCanvasAgg(figure).print_png(buffer)
    replace_file(path, buffer.getvalue())


def _smooth(values: list[float]) -> list[float]:
    """Running mean with a weight of 0.02 for the newest, started at the first value."""
    out, mean = [], values[0]
    for value in values:
        mean += 0.02 * (value - mean)
        out.append(mean)
    return out
