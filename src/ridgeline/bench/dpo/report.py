"""The table of training steps, its notes, and its plot."""

import textwrap
from collections.abc import Sequence
from pathlib import Path

from ridgeline.bench.dpo.measure import Row
from ridgeline.bench.dpo.ways import BEST, FLEX, MASKED, OURS, TRL
from ridgeline.bench.files import write_whole
from ridgeline.bench.grid import Grid
from ridgeline.bench.table import times
from ridgeline.bench.timing import MAX_DRIFT

TITLES = {
    TRL: "TRL",
    OURS: "our\ntrainer",
    "padded": "padded",
    "packed": "packed",
    "shared": "shared",
    BEST: "shared,\npacked",
    MASKED: "SDPA,\nmask",
    FLEX: "Flex",
}
COLORS = {
    TRL: "#cbd2d9",
    "padded": "#9aa5b1",
    "packed": "#d9a441",
    "shared": "#7fb3d5",
    BEST: "#2f6f9f",
    OURS: "#4a8f5c",
}
NAMES = {
    TRL: "TRL's trainer",
    "padded": "its padded batch, only labelled tokens through the head",
    "packed": "Ridgeline, packed",
    "shared": "Ridgeline, shared prefixes",
    BEST: "Ridgeline, shared prefixes, packed",
    OURS: "PrefixSharedDPOTrainer",
}


def line(row: Row) -> str:
    """What is printed as soon as a row is there."""
    gain = f"{row.percent_of_bound:.0f}% of the bound"
    return f"{row.profile.name}: {row.rate(BEST):.2f} samples/s shared and packed, {gain}"


def dpo_table(rows: Sequence[Row]) -> Grid:
    """One line a profile: samples a second of every way, and what is gained."""
    found = Grid()
    found.add_column("profile")
    present = [name for name in TITLES if any(name in row.seconds for row in rows)]
    titles = ("rho", *(TITLES[name] for name in present))
    gains = ("over\nTRL", "over\nSDPA", "by\nsharing", "bound", "tokens'", "% of\nbound")
    for title in (*titles, *gains):
        found.add_column(title, justify="right")
    for row in rows:
        rates = (f"{row.rate(name):.2f}" if name in row.seconds else "" for name in present)
        found.add_row(
            row.profile.name,
            f"{row.profile.rho:.2f}",
            *rates,
            _times(row.speedup(OURS, TRL)),
            _times(row.speedup(BEST, MASKED)),
            _times(row.speedup(BEST, "packed")),
            f"{row.profile.bound:.2f}",
            f"{row.token_bound:.2f}",
            f"{row.percent_of_bound:.0f}",
        )
    return found


def _times(ratio: float | None) -> str:
    return "" if ratio is None else f"{ratio:.2f}x"


def notes(rows: Sequence[Row]) -> list[str]:
    """What the table's numbers are."""
    o = rows[0].options
    rates = [row.gemm / 1e9 for row in rows]
    fills = [100 * row.logical / row.tokens["padded"] for row in rows]
    scales = [row.scale for row in rows]
    lines = [
        f"Samples/s: preference pairs, forward and backward, medians of {o.reps}; {o.pairs} pairs "
        f"a step, a Llama of {rows[0].parameters / 1e6:.0f} million parameters in float32, "
        f"reference precomputed. torch GEMM {min(rates):.0f} to {max(rates):.0f} GFLOP/s.",
        f"Lengths: log-normal of deviation {o.spread:g} around the datasets' medians, scaled by "
        f"{min(scales):.2g} to {max(scales):.2g} to about {o.tokens} tokens a step without "
        f"sharing. Padded batches are {min(fills):.0f} to {max(fills):.0f}% full. "
        "Bound: (2 rho + 2) / (rho + 2), and the drawn tokens without sharing over with.",
        "Over TRL: our trainer over TRL's, both with their metrics. Over SDPA, by sharing: shared "
        "and packed over SDPA with mask, and over packed. All ways give the same gradients.",
    ]
    absent = {name: why for row in rows for name, why in row.absent.items()}
    lines += [f"{name}: no. {why}" for name, why in absent.items()]
    if FLEX in absent:
        lines.append("SDPA with the same mask as a tensor stands in for it.")
    return lines + [
        f"{row.profile.name}: the GEMM's rate drifted by {100 * row.drift:.0f}% in its run."
        for row in rows
        if row.drift > MAX_DRIFT
    ]


def plot(path: Path, rows: Sequence[Row], machine: str) -> None:
    """Samples a second over those of the padded batch; a mark is packed times the bound."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8.2, 1.8 + 0.95 * len(rows)), dpi=150, layout="constrained")
    ax = figure.subplots()
    height = 0.8 / len(COLORS)
    for i, (name, color) in enumerate(COLORS.items()):
        bars = [
            (y - 0.4 + height * (i + 0.5), row.speedup(name, "padded"))
            for y, row in enumerate(rows)
            if name in row.seconds
        ]
        for at, gain in bars:
            ax.text(gain, at, f" {times(gain)}", va="center", fontsize=7)
        if bars:
            ax.barh(*zip(*bars, strict=True), height, color=color, label=NAMES[name])
    ax.vlines(
        [row.speedup("packed", "padded") * row.profile.bound for row in rows],
        [y - 0.45 for y in range(len(rows))],
        [y + 0.45 for y in range(len(rows))],
        color="#c2410c",
        lw=1.5,
        label="packed times (2 rho + 2) / (rho + 2)",
    )
    labels = [f"{row.profile.name}\nrho {row.profile.rho:g}" for row in rows]
    ax.set_yticks(range(len(rows)), labels, fontsize=8)
    ax.invert_yaxis()
    ax.set_xlabel("samples/s over those of the padded batch", fontsize=8.5)
    ax.tick_params(axis="y", length=0)
    ax.tick_params(axis="x", labelsize=8)
    ax.spines[["top", "right", "left"]].set_visible(False)
    figure.legend(loc="outside upper left", ncols=2, frameon=False, fontsize=8)
    note = textwrap.fill(f"{notes(rows)[0]} {machine}", 150)
    figure.supxlabel(note, fontsize=6.5, color="#556", x=0.01, ha="left")
    write_whole(path, lambda p: figure.savefig(p, dpi=150))
