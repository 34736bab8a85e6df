"""The decode plot: the time of a step per attention variant, and the roof it runs against."""

import textwrap
from collections.abc import Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ridgeline.bench.decode import Row
from ridgeline.bench.files import write_whole

COLORS = {"paired": "#9aa5b1", "tied": "#2f6f9f"}
NAMES = {"paired": "K and V cached apart", "tied": "one cached state is key and value"}
ROOF = "measured roof: memory read, or GEMM where marked"


def decode_plot(path: Path, rows: Sequence[Row], machine: str) -> None:
    """Write one panel per batch, length, L_q and dtype; the format follows ``path``'s ending."""
    panels: dict[tuple, list[Row]] = {}
    for row in rows:
        s = row.shape
        panels.setdefault((s.dtype, s.query_len, s.batch, s.length), []).append(row)
    columns = min(3, len(panels))
    lines = -(-len(panels) // columns)
    tallest = max(len(group) for group in panels.values())
    figure = Figure(
        figsize=(1.2 + 4.4 * columns, 1.0 + lines * (0.9 + 0.32 * tallest)), layout="constrained"
    )
    axes = figure.subplots(lines, columns, squeeze=False).flatten()
    for ax, group in zip(axes, panels.values(), strict=False):
        _panel(ax, group)
    for ax in axes[len(panels) :]:
        ax.set_visible(False)
    handles, labels = axes[0].get_legend_handles_labels()
    order = sorted(range(len(labels)), key=lambda i: labels[i] == ROOF)
    figure.legend(
        [handles[i] for i in order],
        [labels[i] for i in order],
        loc="outside upper left",
        ncols=len(labels) if columns == 3 else 1,
        frameon=False,
        fontsize=9,
    )
    note = "Percent: of the roof. PyTorch: its fastest call on the same cache, over this time."
    note = textwrap.fill(f"{note} {machine}", 90 * columns)
    figure.supxlabel(note, fontsize=7, color="#556", x=0.01, ha="left")
    write_whole(path, lambda p: figure.savefig(p, dpi=150))


def _panel(ax: Axes, rows: Sequence[Row]) -> None:
    shape = rows[0].shape
    longest = max(row.seconds for row in rows) * 1e3
    for kind, color in COLORS.items():
        found = [(y, row) for y, row in enumerate(rows) if row.shape.spec.kind == kind]
        if found:
            times = [row.seconds * 1e3 for _, row in found]
            ax.barh([y for y, _ in found], times, height=0.62, color=color, label=NAMES[kind])
    roof = [row.roofs.seconds(row.shape.cache_bytes, row.shape.flops) * 1e3 for row in rows]
    ax.vlines(
        roof,
        [y - 0.42 for y in range(len(rows))],
        [y + 0.42 for y in range(len(rows))],
        color="#c2410c",
        lw=2,
        label=ROOF,
    )
    for y, row in enumerate(rows):
        ms = row.seconds * 1e3
        text = f"{ms:.3g} ms, {row.percent:.0f}%{' (GEMM)' if row.binding == 'gemm' else ''}"
        if row.fastest_peer is not None:
            text += f", PyTorch {row.speedup(row.fastest_peer):.1f}x"
        ax.text(max(ms, roof[y]) + longest * 0.02, y, text, va="center", fontsize=7.5)
    ax.set_yticks(range(len(rows)), [row.shape.label for row in rows], fontsize=8.5)
    ax.invert_yaxis()
    ax.set_xlim(0, longest * 1.9)
    ax.spines[["top", "right", "left"]].set_visible(False)
    ax.tick_params(axis="y", length=0)
    ax.tick_params(axis="x", labelsize=8)
    title = f"{shape.batch} x {shape.length:,} tokens, {shape.dtype}"
    ax.set_title(title + (f", L_q {shape.query_len}" if shape.query_len > 1 else ""), fontsize=9.5)
    ax.set_xlabel("ms per decode step of one layer", fontsize=8.5)
