"""The attention plot: rates of every row beside PyTorch's and the GEMM's."""

import textwrap
from collections.abc import Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ridgeline.bench.attention.measure import Row
from ridgeline.bench.attention.report import kind
from ridgeline.bench.attention.shapes import PASSES
from ridgeline.bench.files import write_whole

COLORS = {"ours": "#2f6f9f", "sdpa": "#9aa5b1", "sdpa fp32": "#cbd2d9", "flex": "#d9a441"}
NAMES = {
    "ours": "Ridgeline",
    "sdpa": "torch SDPA (a tree's responses unpacked)",
    "sdpa fp32": "the same in float32",
    "flex": "FlexAttention, compiled",
}


def plot(path: Path, rows: Sequence[Row], machine: str) -> None:
    """Rates of every row beside PyTorch's, a panel for each pass; a mark is the GEMM's rate."""
    passes = [which for which in PASSES if any(row.which == which for row in rows)]
    shapes = list(dict.fromkeys(row.shape for row in rows))
    figure = Figure(figsize=(2.5 + 4.6 * len(passes), 1.6 + 0.75 * len(shapes)), dpi=150)
    figure.set_layout_engine("constrained")
    axes = figure.subplots(1, len(passes), sharey=True, squeeze=False)[0]
    for ax, which in zip(axes, passes, strict=True):
        _panel(ax, which, [row for row in rows if row.which == which])
    labels = [f"{s.label}\n{s.mask}, {s.dtype}" for s in shapes]
    axes[0].set_yticks(range(len(shapes)), labels, fontsize=8)
    axes[0].invert_yaxis()
    handles = {}
    for ax in axes:
        for handle, label in zip(*ax.get_legend_handles_labels(), strict=True):
            handles.setdefault(label, handle)
    figure.legend(
        handles.values(),
        handles.keys(),
        loc="outside upper left",
        ncols=2,
        frameon=False,
        fontsize=8.5,
    )
    note = f"FLOPs of visible pairs, over the median time. {machine}"
    note = textwrap.fill(note, 85 * len(passes))
    figure.supxlabel(note, fontsize=7, color="#556", x=0.01, ha="left")
    write_whole(path, lambda p: figure.savefig(p, dpi=150))


def _panel(ax: Axes, which: str, rows: Sequence[Row]) -> None:
    height = 0.8 / len(COLORS)
    for i, (name, color) in enumerate(COLORS.items()):
        bars = []
        for y, row in enumerate(rows):
            times = {kind(row, peer): x for peer, x in row.peers.items()} | {"ours": row.seconds}
            if name in times:
                bars.append((y - 0.4 + height * (i + 0.5), row.shape.flops(which) / times[name]))
        if bars:
            at, rates = zip(*bars, strict=True)
            ax.barh(at, [x / 1e9 for x in rates], height, color=color, label=NAMES[name])
    ax.vlines(
        [row.gemm / 1e9 for row in rows],
        [y - 0.45 for y in range(len(rows))],
        [y + 0.45 for y in range(len(rows))],
        color="#c2410c",
        lw=1.5,
        label="torch GEMM in the same run",
    )
    ax.set_title(which, fontsize=10)
    ax.set_xlabel("GFLOP/s", fontsize=8.5)
    ax.tick_params(axis="y", length=0)
    ax.tick_params(axis="x", labelsize=8)
    ax.spines[["top", "right", "left"]].set_visible(False)
