"""The attention table in a terminal, its notes, and its plot."""

import textwrap
from collections.abc import Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from rich.table import Table

from ridgeline.bench import table
from ridgeline.bench.attention.measure import Row
from ridgeline.bench.attention.shapes import PASSES
from ridgeline.bench.files import write_whole
from ridgeline.bench.timing import MAX_DRIFT

PEERS = {
    "causal": "plain\ncausal",
    "unpacked": "un-\npacked",
    "sdpa": "torch\nSDPA",
    "sdpa fp32": "SDPA\nfp32",
    "flex": "Flex-\nAttention",
}
COLORS = {"ours": "#2f6f9f", "sdpa": "#9aa5b1", "sdpa fp32": "#cbd2d9", "flex": "#d9a441"}
NAMES = {
    "ours": "Ridgeline",
    "sdpa": "torch SDPA (a tree's responses unpacked)",
    "sdpa fp32": "the same in float32",
    "flex": "FlexAttention, compiled",
}


def kind(row: Row, peer: str) -> str:
    """The column of a peer: SDPA of a row's own dtype, or of float32 beside it."""
    words = peer.split()
    if words[0] != "sdpa" or words[-1] == row.shape.dtype:
        return words[0]
    return f"sdpa {words[-1]}"


def line(row: Row) -> str:
    """What is printed as soon as a row is there."""
    what = f"{row.shape.label}, {row.shape.mask}, {row.shape.dtype} {row.which}"
    return f"{what}: {row.seconds * 1e3:.2f} ms, {row.percent:.0f}% of the GEMM rate"


def attention_table(rows: Sequence[Row]) -> Table:
    """One line a row; the last columns are how many times longer each peer took."""
    found = table.empty()
    for name in ("attention", "mask", "dtype", "pass"):
        found.add_column(name, no_wrap=True)
    for name in ("ms", "GFLOP\n/s", "% of\nGEMM"):
        found.add_column(name, justify="right", no_wrap=True)
    present = {kind(row, name) for row in rows for name in (*row.peers, *row.absent)}
    peers = [name for name in PEERS if name in present]
    for name in peers:
        found.add_column(PEERS[name], justify="right", no_wrap=True)
    previous = None
    for row in rows:
        if previous not in (None, row.shape):
            found.add_section()
        cells = {kind(row, name): table.times(row.speedup(name)) for name in row.peers}
        cells |= {kind(row, name): "no" for name in row.absent}
        new = previous != row.shape
        found.add_row(
            *((row.shape.label, row.shape.mask, row.shape.dtype) if new else ("", "", "")),
            row.which,
            f"{row.seconds * 1e3:.2f}",
            f"{row.flop_rate / 1e9:.0f}",
            f"{row.percent:.0f}",
            *(cells.get(name, "") for name in peers),
        )
        previous = row.shape
    return found


def notes(rows: Sequence[Row]) -> list[str]:
    """What the table's numbers are measured against."""
    rates = {
        dtype: [row.gemm for row in rows if row.shape.dtype == dtype]
        for dtype in dict.fromkeys(row.shape.dtype for row in rows)
    }
    gemm = "; ".join(table.gemm_note(dtype, x) for dtype, x in rates.items())
    lines = [
        f"Measured between the calls: {gemm}.",
        "Medians. FLOPs of visible pairs alone. Columns with x: how many times longer it took.",
    ]
    if any(row.shape.mask == "tree" for row in rows):
        lines.append(
            "Trees: responses share their prompt. Plain causal: the same row of tokens. Unpacked: "
            "every response with a prompt of its own, in our kernel and in SDPA."
        )
    absent = {(name, row.which): why for row in rows for name, why in row.absent.items()}
    lines += [f"{name}, {which}: no. {why}" for (name, which), why in absent.items()]
    drifts = {row.shape: row.drift for row in rows if row.drift > MAX_DRIFT}
    return lines + [
        f"{shape.label}, {shape.mask}: the GEMM's rate drifted by {100 * drift:.0f}% in its run."
        for shape, drift in drifts.items()
    ]


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
