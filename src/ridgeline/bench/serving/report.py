"""The table of loads on servers, its notes, its record, and its plot."""

import textwrap
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ridgeline.bench.files import Record, write_whole
from ridgeline.bench.grid import Grid
from ridgeline.bench.serving.client import LATENCIES, PERCENTILES
from ridgeline.bench.serving.measure import ENGINE, MIB, OURS, Row

if TYPE_CHECKING:
    from matplotlib.text import Annotation
    from matplotlib.transforms import Bbox

TITLES = {"ttft": "TTFT", "itl": "ITL", "e2el": "E2E"}
COLORS = {"gqa": "#9aa5b1", "gta": "#2f6f9f", "mla": "#d9a441", "gla": "#4a8f5c"}
OTHER = "#cbd2d9"


def line(row: Row) -> str:
    """What is printed as soon as a row is there."""
    return f"{label(row)}, {_load(row)}: {row.rate:.1f} tokens/s, {row.held or 0:.1f} requests held"


def label(row: Row) -> str:
    return f"{row.name} by vLLM's attention" if row.attention == ENGINE else row.name


def serve_table(rows: Sequence[Row]) -> Grid:
    """One line a load; times in ms, the median and the 99th percentile."""
    found = Grid()
    found.add_column("model")
    found.add_column("prompts")
    for title in ("cache\nMiB", "bytes/\ntoken", "requests\nheld", "hits\n%", "pre-\nempted"):
        found.add_column(title, justify="right")
    found.add_column("output\ntokens/s", justify="right")
    for kind in LATENCIES:
        for percentile in PERCENTILES:
            found.add_column(f"{TITLES[kind]}\np{percentile}", justify="right")
    for row in rows:
        found.add_row(
            label(row),
            _load(row),
            "" if row.cache_bytes is None else str(row.cache_bytes // MIB),
            "" if row.bytes_per_token is None else f"{row.bytes_per_token:.0f}",
            "" if row.held is None else f"{row.held:.1f}",
            f"{row.hit_percent:.0f}",
            str(row.preemptions),
            f"{row.rate:.1f}",
            *(f"{row.result[key]:.0f}" for key in _keys()),
        )
    return found


def notes(rows: Sequence[Row]) -> list[str]:
    """Output tokens a second over GQA's, with at most its budget, and over vLLM's attention."""
    ours = [row for row in rows if row.attention == OURS and not row.is_narrow]
    found = []
    for base in (row for row in ours if row.name == "gqa"):
        for name in dict.fromkeys(row.name for row in ours if row.name != "gqa"):
            if best := _within(base, [row for row in ours if row.name == name]):
                found.append(f"{name}: {_ratio(best, base)} GQA's tokens/s ({_where(base)})")
    for peer in (row for row in rows if row.attention == ENGINE):
        if best := _within(peer, [row for row in ours if row.name == "gqa"]):
            found.append(f"GQA: {_ratio(best, peer)} vLLM's own attention ({_where(peer)})")
    return found


def _within(base: Row, rows: Sequence[Row]) -> Row | None:
    """The row of ``base``'s load with the largest budget that is not above its own."""
    same = [row for row in rows if (row.load, row.seen) == (base.load, base.seen)]
    fits = [row for row in same if row.cache_bytes <= base.cache_bytes]
    return max(fits, key=lambda row: row.cache_bytes, default=None)


def _ratio(row: Row, base: Row) -> str:
    return f"{row.rate / base.rate:.2f}x"


def _where(row: Row) -> str:
    return f"{row.cache_bytes // MIB} MiB, {_load(row)}"


def record(row: Row) -> Record:
    """One load as flat columns; times in ms."""
    optional = {
        "parameters": row.parameters,
        "cache_MiB": None if row.cache_bytes is None else row.cache_bytes // MIB,
        "cache_bytes_per_token": row.bytes_per_token and round(row.bytes_per_token, 1),
        "capacity_tokens": row.after.capacity,
        "requests_held": row.held and round(row.held, 2),
    }
    return {
        "model": row.name,
        "attention": row.attention,
        **{name: "" if value is None else value for name, value in optional.items()},
        "context": row.load.context,
        "output": row.load.output,
        "prompts": row.load.prompts,
        "concurrency": row.load.concurrency,
        "prompts_are": "seen" if row.seen else "new",
        "output_tokens/s": round(row.rate, 3),
        **{key: round(row.result[key], 2) for key in _keys()},
        "seconds": round(row.result["duration"], 3),
        "prefix_hit_percent": round(row.hit_percent, 1),
        "preemptions": row.preemptions,
        **{("variant" if name == "attention" else name): x for name, x in row.sizes.items()},
    }


def plot(path: Path, rows: Sequence[Row], machine: str) -> None:
    """Bytes of cache that a token takes on a device against output tokens a second."""
    from matplotlib.figure import Figure

    known = [row for row in rows if row.bytes_per_token is not None and not row.is_narrow]
    panels = list(dict.fromkeys((row.load, row.seen) for row in known))
    if not panels:
        raise ValueError("--plot: expected an endpoint whose /metrics has the size of its cache")
    figure = Figure(figsize=(1.0 + 4.4 * len(panels), 4.2), layout="constrained")
    labels = []
    for ax, panel in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels, strict=True):
        here = [row for row in known if (row.load, row.seen) == panel]
        for row in here:
            ax.scatter(
                row.bytes_per_token / 1024,
                row.rate,
                s=60,
                color=COLORS.get(row.name, OTHER),
                marker="x" if row.attention == ENGINE else "o",
            )
            labels.append(
                ax.annotate(
                    f"{label(row)}\n{row.cache_bytes // MIB} MiB, {row.held:.1f} held",
                    (row.bytes_per_token / 1024, row.rate),
                    textcoords="offset points",
                    xytext=(9, 0),
                    va="center",
                    fontsize=7.5,
                    arrowprops={
                        "arrowstyle": "-",
                        "relpos": (0, 0.5),
                        "lw": 0.5,
                        "color": "#99a",
                    },
                )
            )
        ax.set_title(_load(here[0]), fontsize=9.5)
        ax.set_xlabel("cache of a token on a device, KiB", fontsize=8.5)
        ax.set_ylabel("output tokens/s", fontsize=8.5)
        ax.set_xlim(0, 1.6 * max(row.bytes_per_token for row in known) / 1024)
        ax.set_ylim(0, 1.15 * max(row.rate for row in here))
        ax.spines[["top", "right"]].set_visible(False)
        ax.tick_params(labelsize=8)
    note = textwrap.fill(
        f"held: requests that the cache holds at a time. {machine}", 75 * len(panels)
    )
    figure.supxlabel(note, fontsize=7, color="#556", x=0.01, ha="left")
    figure.draw_without_rendering()  # places the panels
    spread(labels)
    write_whole(path, lambda p: figure.savefig(p, dpi=150))


def spread(labels: Sequence["Annotation"]) -> None:
    """Move labels down, from the highest on, until none lies on another."""
    from matplotlib.text import Text

    placed: list[Bbox] = []
    # As a text's: an annotation's own extent has the line to its point in it.
    for label in sorted(labels, key=lambda x: -Text.get_window_extent(x).y1):
        box = Text.get_window_extent(label)
        while above := [other.y0 for other in placed if box.overlaps(other)]:
            x, y = label.xyann
            label.xyann = (x, y - (box.y1 - min(above) + 2) * 72 / label.figure.dpi)
            box = Text.get_window_extent(label)
        placed.append(box)


def _load(row: Row) -> str:
    kind = "seen" if row.seen else "new"
    return f"{row.load.concurrency} x {row.load.context:,}+{row.load.output}, {kind}"


def _keys() -> Iterator[str]:
    """The client's names of the times that are shown."""
    return (f"p{percentile}_{kind}_ms" for kind in LATENCIES for percentile in PERCENTILES)
