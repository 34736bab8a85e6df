"""A run's log as CSV and as a plot."""

import csv
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ridgeline.training.checkpoint import replace_file
from ridgeline.training.log import header

# Column of the CSV, and what the trainer calls it.
COLUMNS = {
    "step": "step",
    "loss": "loss",
    "accuracy": "rewards/accuracies",
    "margin": "rewards/margins",
    "chosen": "rewards/chosen",
    "rejected": "rewards/rejected",
    "grad_norm": "grad_norm",
    "lr": "learning_rate",
    "shared_fraction": "packing/shared_fraction",
    "row_fill": "packing/row_fill",
    "logical_tokens": "tokens/logical",
    "physical_tokens": "tokens/physical",
    "eval_loss": "eval_loss",
    "eval_accuracy": "eval_rewards/accuracies",
    "eval_margin": "eval_rewards/margins",
}

Logs = Sequence[Mapping[str, Any]]


def write_csv(logs: Logs, path: Path) -> None:
    """A row a step that was logged or evaluated; the header has command, commit and machine.

    Args:
        logs: ``trainer.state.log_history``.
    """
    rows: dict[int, dict[str, Any]] = {}
    for log in logs:
        if "loss" in log or "eval_loss" in log:
            rows.setdefault(log["step"], {}).update(log)
    text = io.StringIO()
    for line in header():
        text.write(line + "\n")
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(COLUMNS)
    for row in rows.values():
        found = (row.get(name, "") for name in COLUMNS.values())
        writer.writerow([f"{x:.9g}" if isinstance(x, float) else x for x in found])
    replace_file(path, text.getvalue().encode())


def plot(logs: Logs, path: Path) -> None:
    """Loss and reward accuracy over the steps, training and held out, as PNG."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 3.6), layout="constrained")
    panels = {
        "loss": (COLUMNS["loss"], COLUMNS["eval_loss"]),
        "reward accuracy": (COLUMNS["accuracy"], COLUMNS["eval_accuracy"]),
    }
    for axes, (title, names) in zip(figure.subplots(1, 2), panels.items(), strict=True):
        for name, label, style in zip(names, ("training", "held out"), ("-", "o-"), strict=True):
            points = [(log["step"], log[name]) for log in logs if name in log]
            if points:
                axes.plot(*zip(*points, strict=True), style, label=label, markersize=3)
        axes.set(xlabel="step", ylabel=title)
        axes.grid(alpha=0.3)
        axes.legend()
    buffer = io.BytesIO()
    FigureCanvasAgg(figure).print_png(buffer)
    replace_file(path, buffer.getvalue())
