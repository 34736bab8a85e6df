"""``ridgeline bench e2e``: whole decode steps of a model, beside transformers on equal weights."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import torch
import torch.nn.functional as F
from rich import box
from rich.console import Console
from rich.table import Table
from torch.overrides import TorchFunctionMode

from ridgeline.bench import files, timing
from ridgeline.bench.decoders import WATCHED_STEPS, Decoder, ModelShape, decoders
from ridgeline.roofline import roofs

BALLAST = 2**28  # bytes that are read for the memory roof
ATTENTION = (
    F.scaled_dot_product_attention,
    torch.ops.ridgeline.paged_decode.default,
    torch.ops.ridgeline.tied_decode.default,
)


@dataclass(frozen=True)
class Step:
    """Medians of one decoder's step, in seconds, and where the time goes."""

    name: str
    parameters: int
    cache_bytes_per_token: int
    seconds: float
    attention: float
    linears: float
    linear_bytes: int
    read_rate: float

    @property
    def attention_share(self) -> float:
        return self.attention / self.seconds

    @property
    def linear_percent(self) -> float:
        """Of the memory roof, for the reading of weights."""
        return 100 * self.linear_bytes / self.linears / self.read_rate


def bench_end_to_end(
    shape: ModelShape, console: Console, *, csv: Path | None = None, json: Path | None = None
) -> list[Step]:
    """Measure, print, and write what was asked for."""
    files.prepare(csv, json)
    with console.status(f"models of {shape.layers} layers with {shape.length} cached tokens"):
        steps = run(shape)
    records = [record(step, steps[0], shape) for step in steps]
    console.print(table(records))
    console.print(
        f"{shape.layers} layers, {shape.length} cached tokens, batch 1, bf16. Memory read by all "
        f"threads: {steps[0].read_rate / 1e9:.1f} GB/s, the roof of the linears.",
        soft_wrap=True,
    )
    files.write_records(records, csv, json)
    return steps


def run(shape: ModelShape) -> list[Step]:
    """Steps of all decoders, taking turns; transformers first.

    Raises:
        RuntimeError: our logits are further from float32 than transformers' by more than twice.
    """
    with torch.inference_mode():
        found = list(decoders(shape))
    for decoder in found:
        decoder.step()
    ballast = torch.ones(BALLAST, dtype=torch.uint8)
    calls = {decoder.name: decoder.step for decoder in found}
    calls["memory"] = lambda: roofs.read(ballast)
    times = timing.medians(timing.interleave(calls, shape.reps))
    read_rate = ballast.nbytes / times["memory"]
    return [_finish(decoder, times[decoder.name], read_rate) for decoder in found]


class Stopwatch(TorchFunctionMode):
    """Adds up the seconds of some of torch's functions while it is entered."""

    def __init__(self, *watched: Callable) -> None:
        super().__init__()
        self.seconds = dict.fromkeys(watched, 0.0)

    def __torch_function__(self, func, types, args=(), kwargs=None):
        start = time.perf_counter()
        out = func(*args, **(kwargs or {}))
        if func in self.seconds:
            self.seconds[func] += time.perf_counter() - start
        return out


def _finish(decoder: Decoder, seconds: float, read_rate: float) -> Step:
    """Some more steps with a stopwatch: their median shares of the median step."""
    shares: list[tuple[float, float]] = []
    for _ in range(WATCHED_STEPS):
        with Stopwatch(F.linear, *ATTENTION) as watch:
            total = timing.seconds(decoder.step)
        shares.append(
            (sum(watch.seconds[f] for f in ATTENTION) / total, watch.seconds[F.linear] / total)
        )
    attention, linears = (seconds * median(x) for x in zip(*shares, strict=True))
    return Step(
        name=decoder.name,
        parameters=sum(p.numel() for p in decoder.model.parameters()),
        cache_bytes_per_token=decoder.cache_bytes_per_token,
        seconds=seconds,
        attention=attention,
        linears=linears,
        linear_bytes=decoder.linear_bytes,
        read_rate=read_rate,
    )


def record(step: Step, baseline: Step, shape: ModelShape) -> dict[str, str | int | float]:
    """One decoder as flat columns; ``baseline`` is transformers."""
    return {
        "decoder": step.name,
        "length": shape.length,
        "parameters": step.parameters,
        "cache_bytes_per_token": step.cache_bytes_per_token,
        "ms": round(step.seconds * 1e3, 3),
        "tokens/s": round(1 / step.seconds, 2),
        "times_transformers": round(baseline.seconds / step.seconds, 2),
        "attention_ms": round(step.attention * 1e3, 3),
        "attention_percent": round(100 * step.attention_share, 1),
        "linears_ms": round(step.linears * 1e3, 3),
        "linears_percent_of_memory_roof": round(step.linear_percent, 1),
        "memory_roof_GB/s": round(step.read_rate / 1e9, 2),
    }


def table(records: Sequence[dict]) -> Table:
    columns = {
        "decoder": "decoder",
        "parameters": "params\nM",
        "cache_bytes_per_token": "cache\nB/token",
        "ms": "ms/\nstep",
        "tokens/s": "tokens\n/s",
        "times_transformers": "vs trans-\nformers",
        "attention_ms": "attention\nms",
        "attention_percent": "% of\nstep",
        "linears_ms": "linears\nms",
        "linears_percent_of_memory_roof": "% of\nroof",
    }
    found = Table(box=box.SIMPLE_HEAD, padding=(0, 1), collapse_padding=True)
    for key, title in columns.items():
        found.add_column(title, justify="left" if key == "decoder" else "right", no_wrap=True)
    for r in records:
        cells = {**r, "parameters": r["parameters"] // 10**6}
        cells["times_transformers"] = f"{r['times_transformers']}x"
        found.add_row(*(str(cells[key]) for key in columns))
    return found
