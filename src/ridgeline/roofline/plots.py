"""Plots of plans: rooflines, cache a device against TP, latency against throughput."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ridgeline.bench.files import write_whole
from ridgeline.roofline.hardware import Hardware
from ridgeline.roofline.plan import Phase


def _save(path: Path, figure: Figure) -> None:
    write_whole(path, lambda p: figure.savefig(p, dpi=150))


def _axes() -> tuple[Figure, Axes]:
    figure = Figure(figsize=(6.4, 4.2), layout="constrained")
    ax = figure.subplots()
    ax.spines[["top", "right"]].set_visible(False)
    return figure, ax


def roofline(path: Path, device: Hardware, points: Mapping[str, Sequence[Phase]]) -> None:
    """The device's roof, and of each engine in ``points`` what its attention could reach."""
    figure, ax = _axes()
    roofs = device.roofs()
    found = [phase.intensity for phases in points.values() for phase in phases]
    x = np.geomspace(min(0.5, *found) / 2, max(roofs.gemm / roofs.memory * 8, *found) * 2, 200)
    ax.loglog(x, np.minimum(x * roofs.memory, roofs.gemm) / 1e12, color="#c2410c", lw=2)
    for label, phases in points.items():
        reach = [min(p.intensity * roofs.memory, roofs.gemm) / 1e12 for p in phases]
        ax.loglog([p.intensity for p in phases], reach, "o", label=label)
        for phase, y in zip(phases, reach, strict=True):
            ax.annotate(phase.name, (phase.intensity, y), fontsize=7, va="top", ha="left")
    ax.set_xlabel("FLOP per byte of cache")
    ax.set_ylabel("TFLOP/s of attention, at most")
    ax.set_title(f"{device.name}: {roofs.memory / 1e12:.3g} TB/s, {roofs.gemm / 1e12:.4g} TFLOP/s")
    ax.legend(frameon=False, fontsize=8)
    _save(path, figure)


def cache_against_tp(path: Path, lines: Mapping[str, Mapping[int, int]]) -> None:
    """``lines``: for each label bytes a token and device by tensor-parallel degree."""
    figure, ax = _axes()
    for label, points in lines.items():
        ax.plot(list(points), [x / 1024 for x in points.values()], "o-", label=label)
    ticks = sorted({tp for points in lines.values() for tp in points})
    ax.set_xscale("log", base=2)
    ax.set_yscale("log", base=2)
    ax.set_xticks(ticks, [str(tp) for tp in ticks])
    ax.set_xlabel("tensor-parallel ranks")
    ax.set_ylabel("KiB of cache a token and device")
    ax.legend(frameon=False, fontsize=8)
    _save(path, figure)


def latency_against_throughput(
    path: Path, lines: Mapping[str, Sequence[tuple[float, float, int]]]
) -> None:
    """``lines``: for each label (tokens/s, mean ms between tokens, concurrency)."""
    figure, ax = _axes()
    for label, points in lines.items():
        ax.plot([p[0] for p in points], [p[1] for p in points], "o-", label=label)
        for throughput, itl, concurrency in points:
            ax.annotate(str(concurrency), (throughput, itl), fontsize=7, va="bottom")
    ax.set_xlabel("output tokens a second")
    ax.set_ylabel("mean ms between tokens")
    ax.legend(frameon=False, fontsize=8, title="concurrency beside the points", title_fontsize=8)
    _save(path, figure)
