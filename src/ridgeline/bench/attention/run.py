"""The commands of this folder: what they measure, and how it is shown."""

from functools import partial
from pathlib import Path

from ridgeline.bench.attention import accuracy, memory, report
from ridgeline.bench.attention.measure import AttentionOptions, measure, record
from ridgeline.bench.attention.shapes import AttentionShape
from ridgeline.bench.grid import Terminal
from ridgeline.bench.run import Report, Rows, bench


def bench_attention(options: AttentionOptions, console: Terminal, **out: Path | None) -> list:
    """``ridgeline bench attention``."""
    work = [(_name(s), partial(measure, s, options)) for s in options.shapes]
    return bench(work, ATTENTION, console, **out)


def bench_memory(options: memory.MemoryOptions, console: Terminal, **out: Path | None) -> list:
    """``ridgeline bench memory``."""
    work = [(_name(s), partial(memory.measure, s, options)) for s in options.shapes]
    return bench(work, MEMORY, console, **out)


def bench_accuracy(
    options: accuracy.AccuracyOptions, console: Terminal, **out: Path | None
) -> list:
    """``ridgeline bench accuracy``."""
    work = [(f"{n} tokens", partial(accuracy.measure, n, options)) for n in options.lengths]
    return bench(work, ACCURACY, console, **out)


def _name(shape: AttentionShape) -> str:
    return f"{shape.label}, {shape.mask}, {shape.dtype}"


def _attention_plot(path: Path, rows: Rows, machine: str) -> None:
    from ridgeline.bench.attention.plot import plot

    plot(path, rows, machine)


ATTENTION = Report(
    line=report.line,
    table=report.attention_table,
    notes=report.notes,
    record=record,
    plot=_attention_plot,
)
MEMORY = Report(
    line=memory.line, table=memory.memory_table, notes=memory.notes, record=memory.record
)
ACCURACY = Report(
    line=accuracy.line,
    table=accuracy.accuracy_table,
    notes=accuracy.notes,
    record=accuracy.record,
    plot=accuracy.plot,
)
