"""Running a benchmark: rows as they are measured, then the table, the notes and the files."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from ridgeline.bench import compare, decode, files, plot, table
from ridgeline.bench.shapes import DecodeShape

Rows = Sequence[Any]


@dataclass(frozen=True)
class Report:
    """How the rows of a benchmark are shown: as they come, at the end, and in files."""

    line: Callable[[Any], str]
    table: Callable[[Rows], Table]
    notes: Callable[[Rows], list[str]]
    record: Callable[[Any], files.Record]
    plot: Callable[[Path, Rows, str], None] | None = None


def bench(
    work: Sequence[tuple[str, Callable[[], Rows]]],
    how: Report,
    console: Console,
    *,
    csv: Path | None = None,
    json: Path | None = None,
    plot_file: Path | None = None,
) -> list[Any]:
    """Measure, print, and write what was asked for.

    ``work``: what is shown while a measurement runs, and the call that returns its rows.
    """
    files.prepare(csv, json, plot_file)
    rows: list[Any] = []
    with console.status("") as status:
        for i, (name, measure) in enumerate(work):
            status.update(f"{i + 1} of {len(work)}: {name}")
            found = measure()
            rows += found
            if not console.is_terminal:
                for row in found:
                    console.print(f"{i + 1}/{len(work)} {how.line(row)}", soft_wrap=True)
    console.print(how.table(rows))
    for line in how.notes(rows):
        console.print(line, soft_wrap=True)
    head = files.write_records([how.record(row) for row in rows], csv, json)
    if plot_file is not None and how.plot is not None:
        how.plot(plot_file, rows, head["machine"])
    return rows


def bench_decode(options: decode.DecodeOptions, console: Console, **out: Path | None) -> list:
    """``ridgeline bench decode``; ``out`` as of ``bench``."""
    work = [
        (f"{s.label} {s.batch}x{s.length}", partial(_decode_row, s, options))
        for s in options.shapes()
    ]
    return bench(work, DECODE, console, **out)


def _decode_row(shape: DecodeShape, options: decode.DecodeOptions) -> list[decode.Row]:
    return [decode.measure(shape, options)]


def _decode_line(row: decode.Row) -> str:
    done = f"{row.shape.label} {row.shape.dtype} {compare.size(row)}"
    return f"{done}: {row.seconds * 1e3:.2f} ms, {row.percent:.0f}% of the roof"


DECODE = Report(
    line=_decode_line,
    table=table.decode_table,
    notes=lambda rows: table.decode_notes(rows) + compare.comparisons(rows),
    record=decode.record,
    plot=plot.decode_plot,
)
