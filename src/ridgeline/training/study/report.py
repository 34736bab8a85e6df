"""What a study found: mean losses with their spread, differences seed by seed, CSV and plot."""

import math
import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from ridgeline.bench.files import Record, write_records, write_whole
from ridgeline.bench.grid import Grid
from ridgeline.training.study.runs import Outcome

REFERENCE = "gqa"  # what the others are compared with, seed by seed


@dataclass(frozen=True)
class Summary:
    """A variant over its seeds: ``loss``, and ``against``, its loss less GQA's with that seed.

    Both are ``(mean, standard deviation)``; the deviation of one seed is nan.
    """

    of: Outcome
    seeds: int
    loss: tuple[float, float]
    against: tuple[float, float] | None

    @property
    def perplexity(self) -> float:
        return math.exp(self.loss[0])


def summaries(outcomes: Sequence[Outcome]) -> list[Summary]:
    """One a variant, in the order in which they first came."""
    loss = {(o.variant, o.seed): o.held_out_loss for o in outcomes}
    first: dict[str, Outcome] = {}
    for outcome in outcomes:
        first.setdefault(outcome.variant, outcome)
    found = []
    for variant, outcome in first.items():
        mine = {seed: x for (name, seed), x in loss.items() if name == variant}
        pairs = [x - loss[REFERENCE, seed] for seed, x in mine.items() if (REFERENCE, seed) in loss]
        against = _spread(pairs) if pairs and variant != REFERENCE else None
        found.append(Summary(outcome, len(mine), _spread(list(mine.values())), against))
    return found


def _spread(values: Sequence[float]) -> tuple[float, float]:
    deviation = statistics.stdev(values) if len(values) > 1 else math.nan
    return statistics.fmean(values), deviation


def table(outcomes: Sequence[Outcome]) -> Grid:
    """A line a variant; the spread is the standard deviation over the seeds."""
    grid = Grid()
    grid.add_column("attention")
    for name in (
        "cache bytes\na token",
        "parameters",
        "attention's",
        "MLP\nwidth",
        "seeds",
        "held-out loss,\nnats a token",
        "perplexity",
        "less GQA's,\nsame seeds",
    ):
        grid.add_column(name, justify="right")
    for row in summaries(outcomes):
        grid.add_row(*cells(row))
    return grid


def cells(row: Summary) -> list[str]:
    """A line of the table."""
    return [
        row.of.label,
        f"{row.of.cache_bytes:,}",
        f"{row.of.parameters:,}",
        f"{row.of.attention_parameters:,}",
        str(row.of.intermediate_size),
        str(row.seeds),
        _with_spread(*row.loss),
        f"{row.perplexity:.2f}",
        "" if row.against is None else _with_spread(*row.against, sign="+"),
    ]


def _with_spread(mean: float, deviation: float, sign: str = "") -> str:
    return f"{mean:{sign}.4f}" + ("" if math.isnan(deviation) else f" ± {deviation:.4f}")


def write_csv(path: Path, outcomes: Sequence[Outcome]) -> None:
    """A row a run, under a head that says how to repeat it."""
    write_records([_record(o) for o in outcomes], path, None)


def _record(outcome: Outcome) -> Record:
    row = asdict(outcome)
    for name in ("held_out_loss", "bits_per_byte", "baseline_loss"):
        row[name] = float(f"{row[name]:.9g}")
    return row


def plot(path: Path, outcomes: Sequence[Outcome]) -> None:
    """Held-out loss over the cache's bytes a token: every run, means and standard deviations."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4.4), layout="constrained")
    axes = figure.add_subplot()
    for row in summaries(outcomes):
        runs = [o.held_out_loss for o in outcomes if o.variant == row.of.variant]
        x = row.of.cache_bytes
        drawn = axes.errorbar(x, row.loss[0], yerr=row.loss[1], fmt="o", capsize=4)
        color = drawn.lines[0].get_color()
        axes.plot([x] * len(runs), runs, "_", color=color, markersize=12, alpha=0.5)
        place = {"xytext": (8, 4), "textcoords": "offset points"}
        axes.annotate(row.of.label, (x, row.loss[0]), color=color, **place)
    axes.set_xscale("log", base=2)
    ticks = sorted({o.cache_bytes for o in outcomes})
    axes.set_xticks(ticks, [f"{x:,}" for x in ticks])
    axes.minorticks_off()
    axes.margins(x=0.12)
    seeds = max(row.seeds for row in summaries(outcomes))
    size, tokens = outcomes[0].parameters / 1e6, outcomes[0].tokens / 1e6
    axes.set(
        xlabel="bytes of cache a token, all layers (BF16)",
        ylabel="held-out loss (nats a token)",
        title=f"{size:.2f}M parameters, {tokens:.2f}M tokens, {seeds} seeds: "
        "mean and standard deviation",
    )
    axes.title.set_fontsize(10)
    axes.grid(alpha=0.3)
    write_whole(path, lambda part: figure.savefig(part, dpi=150))
