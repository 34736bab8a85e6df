"""``ridgeline bench accuracy``: errors of FP16 and FP8 attention on inputs with outliers.

FlashAttention-3's experiment (Shah et al., arXiv 2407.08608, table 3): entries of q, k and v are
N(0, 1) + N(0, 10^2) * Bernoulli(0.001), and errors are RMSE against float64.
"""

import textwrap
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import torch
from torch import Tensor

from ridgeline.bench import files
from ridgeline.bench.grid import Grid
from ridgeline.ops.attention import attention, fp8
from ridgeline.ops.common import check
from ridgeline.ops.common.dispatch import Impl

OUTLIER_STD, OUTLIER_RATE = 10.0, 0.001
BASELINE, SAME_KERNEL = "fp8 standard, per tensor", "fp8, per tensor"
PUBLISHED = 2.6  # FlashAttention-3's gain over its FP8 baseline
MAX_SCORES = 2**26  # of float64 at once

Method = Callable[[Tensor, Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class AccuracyOptions:
    """``lengths`` tokens, ``heads`` of width ``head_dim``; seeds 0 to ``seeds - 1``.

    ``block``: rows that share a scale, a power of two.
    """

    lengths: tuple[int, ...] = (2048, 4096)
    heads: int = 2
    head_dim: int = 128
    causal: bool = False
    seeds: int = 8
    block: int = 128
    impl: Impl = "auto"

    def __post_init__(self) -> None:
        for name in ("heads", "head_dim", "seeds", "block"):
            check.count(name, getattr(self, name), minimum=1)
        check.name_of_impl(self.impl)


@dataclass(frozen=True)
class Row:
    """RMSE of one method at one length, over the seeds; ``baselines`` are those of others."""

    method: str
    length: int
    options: AccuracyOptions
    errors: tuple[float, ...]
    baselines: dict[str, tuple[float, ...]]

    @property
    def error(self) -> float:
        return median(self.errors)

    def gain(self, baseline: str) -> float:
        """How many times the error of ``baseline``, the median over seeds."""
        pairs = zip(self.baselines[baseline], self.errors, strict=True)
        return median(theirs / ours for theirs, ours in pairs)


def measure(length: int, options: AccuracyOptions, where: torch.device | str = "cpu") -> list[Row]:
    """All methods on the same inputs, on ``where``."""
    methods = _methods(options)
    errors: dict[str, list[float]] = {name: [] for name in methods}
    for seed in range(options.seeds):
        q, k, v = (x.to(where) for x in inputs(length, options, seed))
        want = exact(q, k, v, options.causal)
        for name, method in methods.items():
            errors[name].append(rmse(method(q, k, v), want))
    found = {name: tuple(x) for name, x in errors.items()}
    baselines = {name: found[name] for name in (BASELINE, SAME_KERNEL)}
    return [Row(name, length, options, x, baselines) for name, x in found.items()]


def inputs(length: int, options: AccuracyOptions, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """q, k, v ``[1, L, h, d]`` in float64."""
    g = torch.Generator().manual_seed(seed)
    shape = (1, length, options.heads, options.head_dim)

    def one() -> Tensor:
        x, outlier = (torch.randn(shape, generator=g, dtype=torch.float64) for _ in range(2))
        rare = torch.rand(shape, generator=g) < OUTLIER_RATE
        return x + OUTLIER_STD * outlier * rare

    return one(), one(), one()


def exact(q: Tensor, k: Tensor, v: Tensor, causal: bool) -> Tensor:
    """Attention in float64, some rows of one head at a time."""
    out = torch.empty_like(q)
    length = q.shape[1]
    step = max(1, MAX_SCORES // length)
    for h in range(q.shape[2]):
        for start in range(0, length, step):
            rows = slice(start, min(start + step, length))
            scores = q[0, rows, h] @ k[0, :, h].T * q.shape[-1] ** -0.5
            if causal:
                token = torch.arange(length, device=q.device)
                later = token > token[rows, None]
                scores.masked_fill_(later, -torch.inf)
            out[0, rows, h] = scores.softmax(-1) @ v[0, :, h]
    return out


def rmse(x: Tensor, want: Tensor) -> float:
    return (x.double() - want).square().mean().sqrt().item()


def _methods(options: AccuracyOptions) -> dict[str, Method]:
    ours = {"causal": options.causal, "impl": options.impl}

    def half(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return attention(q.half(), k.half(), v.half(), **ours)

    def eight(per: fp8.Per, rotate: bool = False) -> Method:
        def method(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            q, k, v = q.float(), k.float(), v.float()
            if rotate:
                q, k = fp8.incoherent(q), fp8.incoherent(k)
            (q, q_scale), (k, k_scale), (v, v_scale) = (fp8.quantize(x, per) for x in (q, k, v))
            return attention(q, k, v, q_scale=q_scale, k_scale=k_scale, v_scale=v_scale, **ours)

        return method

    return {
        "fp16 standard": lambda q, k, v: standard_fp16(q, k, v, options.causal),
        "fp16": half,
        BASELINE: lambda q, k, v: standard_fp8(q, k, v, options.causal),
        SAME_KERNEL: eight("tensor"),
        "fp8, blocks": eight(options.block),
        "fp8, per tensor, incoherent": eight("tensor", rotate=True),
        "fp8, blocks, incoherent": eight(options.block, rotate=True),
    }


def standard_fp16(q: Tensor, k: Tensor, v: Tensor, causal: bool) -> Tensor:
    """Attention with the score matrix and the probabilities kept in FP16.

    Products are accumulated in float32, as tensor cores do, and then rounded.
    """
    q, k, v = (x.half().float() for x in (q, k, v))
    return _standard(q, k, v, causal, lambda p: p.half().float()).half()


def standard_fp8(q: Tensor, k: Tensor, v: Tensor, causal: bool) -> Tensor:
    """The same of FP8 with one scale for each of q, k and v, the probabilities in FP8 as they are.

    Between the products everything is FP16. The probabilities lie in [0, 1] and need no scale to
    fit; what is below 2^-10 is lost.
    """
    q, k, v = (fp8.dequantize(*fp8.quantize(x.float())) for x in (q, k, v))
    return _standard(q, k, v, causal, lambda p: p.half().to(check.FP8).float()).half()


def _standard(
    q: Tensor, k: Tensor, v: Tensor, causal: bool, rounded: Callable[[Tensor], Tensor]
) -> Tensor:
    out = torch.empty_like(q)
    for h in range(q.shape[2]):
        scores = (q[0, :, h] @ k[0, :, h].T).half() * q.shape[-1] ** -0.5
        if causal:
            scores.masked_fill_(torch.ones_like(scores, dtype=torch.bool).triu(1), -torch.inf)
        out[0, :, h] = rounded(scores.float().softmax(-1)) @ v[0, :, h]
    return out


def line(row: Row) -> str:
    return f"{row.method}, {row.length} tokens: RMSE {row.error:.2e}"


def accuracy_table(rows: Sequence[Row]) -> Grid:
    found = Grid()
    found.add_column("attention")
    titles = ("tokens", "RMSE", "least", "most", "x standard\nfp8", "x fp8 per\ntensor")
    for title in titles:
        found.add_column(title, justify="right")
    previous = None
    for row in rows:
        if previous not in (None, row.length):
            found.add_section()
        previous = row.length
        gains = [row.gain(name) for name in (BASELINE, SAME_KERNEL)]
        found.add_row(
            row.method,
            str(row.length),
            f"{row.error:.2e}",
            f"{min(row.errors):.2e}",
            f"{max(row.errors):.2e}",
            *(f"{x:.2f}x" if row.method.startswith("fp8") else "" for x in gains),
        )
    return found


def notes(rows: Sequence[Row]) -> list[str]:
    o = rows[0].options
    best = [row for row in rows if row.method == "fp8, blocks, incoherent"]
    gains = ", ".join(f"{row.gain(BASELINE):.2f}x at {row.length} tokens" for row in best)
    return [
        f"RMSE against float64, median of {o.seeds} seeds; {o.heads} heads of {o.head_dim}, "
        f"{'causal' if o.causal else 'full'}; entries N(0, 1) + N(0, {OUTLIER_STD:g}^2) * "
        f"Bernoulli({OUTLIER_RATE:g}); blocks of {o.block} rows.",
        "Standard: attention in PyTorch with every intermediate rounded; fp8: one scale a tensor.",
        f"FP8 with blocks and incoherent processing: {gains} as accurate as standard FP8 "
        f"(FlashAttention-3: {PUBLISHED}x).",
    ]


def record(row: Row) -> files.Record:
    """One row as flat columns."""
    o = row.options
    return {
        "method": row.method,
        "length": row.length,
        "heads": o.heads,
        "head_dim": o.head_dim,
        "causal": str(o.causal).lower(),
        "block": o.block,
        "seeds": o.seeds,
        "rmse": _digits(row.error),
        "rmse_min": _digits(min(row.errors)),
        "rmse_max": _digits(max(row.errors)),
        "times_standard_fp8": round(row.gain(BASELINE), 3),
        "times_fp8_per_tensor": round(row.gain(SAME_KERNEL), 3),
    }


def plot(path: Path, rows: Sequence[Row], machine: str) -> None:
    """Medians of the FP8 methods as bars, their spread as lines, a panel for each length."""
    from matplotlib.figure import Figure

    rows = [row for row in rows if row.method.startswith("fp8")]
    lengths = list(dict.fromkeys(row.length for row in rows))
    figure = Figure(figsize=(2.6 + 3.2 * len(lengths), 3.4), dpi=150, layout="constrained")
    axes = figure.subplots(1, len(lengths), sharey=True, squeeze=False)[0]
    for ax, length in zip(axes, lengths, strict=True):
        group = [row for row in rows if row.length == length]
        at = range(len(group))
        colors = ["#2f6f9f" if "incoherent" in row.method else "#9aa5b1" for row in group]
        ax.barh(at, [row.error for row in group], 0.62, color=colors)
        ax.hlines(at, [min(r.errors) for r in group], [max(r.errors) for r in group], color="#223")
        for y, row in zip(at, group, strict=True):
            text = f" {row.error:.1e}, {row.gain(BASELINE):.1f}x"
            ax.text(max(row.errors), y, text, va="center", fontsize=7.5)
        ax.set_xlim(0, 1.5 * max(max(row.errors) for row in group))
        ax.set_yticks(at, [row.method for row in group], fontsize=8.5)
        ax.set_title(f"{length:,} tokens", fontsize=9.5)
        ax.set_xlabel("RMSE against float64", fontsize=8.5)
        ax.ticklabel_format(axis="x", style="sci", scilimits=(0, 0))
        ax.tick_params(labelsize=8)
        ax.tick_params(axis="y", length=0)
        ax.spines[["top", "right", "left"]].set_visible(False)
    axes[0].invert_yaxis()
    note = "x: the error of standard FP8 over this one; lines from the best to the worst of "
    note += f"{rows[0].options.seeds} seeds. {machine}"
    note = textwrap.fill(note, 45 + 55 * len(lengths))
    figure.supxlabel(note, fontsize=7, color="#556", x=0.01, ha="left")
    files.write_whole(path, lambda p: figure.savefig(p, dpi=150))


def _digits(x: float) -> float:
    return float(f"{x:.4e}")
