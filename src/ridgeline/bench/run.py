"""Running a benchmark: rows as they are measured, then the table, the notes and the files."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from ridgeline.bench import compare, decode, files, table
from ridgeline.bench.device import CPU, Device
from ridgeline.bench.grid import Grid, Terminal
from ridgeline.bench.shapes import DecodeShape

Rows = Sequence[Any]


@dataclass(frozen=True)
class Report:
    """How the rows of a benchmark are shown: as they come, at the end, and in files."""

    line: Callable[[Any], str]
    table: Callable[[Rows], Grid]
    notes: Callable[[Rows], list[str]]
    record: Callable[[Any], files.Record]
    plot: Callable[[Path, Rows, str], None] | None = None


def bench(
    work: Sequence[tuple[str, Callable[[], Rows]]],
    how: Report,
    console: Terminal,
    *,
    csv: Path | None = None,
    json: Path | None = None,
    plot_file: Path | None = None,
    device: Device = CPU,
    save_each: bool = False,
) -> list[Any]:
    """Measure, print, and write what was asked for.

    ``work``: what is shown while a measurement runs, and the call that returns its rows.
    ``save_each``: write the files after every measurement, not only at the end: a GPU may be lent
    for minutes, and one kernel's illegal access ends the process.
    """
    files.prepare(csv, json, plot_file)
    if plot_file is not None:
        _check_plot(how)
    rows: list[Any] = []

    def save() -> dict[str, str]:
        return files.write_records([how.record(row) for row in rows], csv, json, device)

    with console.status("") as status:
        for i, (name, measure) in enumerate(work):
            status.update(f"{i + 1} of {len(work)}: {name}")
            found = measure()
            rows += found
            if save_each:
                save()
            if not console.is_terminal:
                for row in found:
                    console.print(f"{i + 1}/{len(work)} {how.line(row)}", soft_wrap=True)
    console.print(how.table(rows))
    for line in how.notes(rows):
        console.print(line, soft_wrap=True)
    head = save()
    if plot_file is not None and how.plot is not None:
        how.plot(plot_file, rows, head["machine"])
    return rows


def bench_decode(options: decode.DecodeOptions, console: Terminal, **out: Path | None) -> list:
    """``ridgeline bench decode``; ``out`` as of ``bench``."""
    work = [
        (f"{s.label} {s.batch}x{s.length}", partial(_decode_row, s, options))
        for s in options.shapes()
    ]
    return bench(work, DECODE, console, **out)


def _check_plot(how: Report) -> None:
    if how.plot is None:
        raise ValueError("--plot: this benchmark draws none; use --csv")
    if find_spec("matplotlib") is None:
        raise ValueError("--plot: expected matplotlib to be installed; `pip install matplotlib`")


def _decode_row(shape: DecodeShape, options: decode.DecodeOptions) -> list[decode.Row]:
    return [decode.measure(shape, options)]


def _decode_line(row: decode.Row) -> str:
    done = f"{row.shape.label} {row.shape.dtype} {compare.size(row)}"
    return f"{done}: {row.seconds * 1e3:.2f} ms, {row.percent:.0f}% of the roof"


def _decode_plot(path: Path, rows: Rows, machine: str) -> None:
    from ridgeline.bench.plot import decode_plot

    decode_plot(path, rows, machine)


DECODE = Report(
    line=_decode_line,
    table=table.decode_table,
    notes=lambda rows: table.decode_notes(rows) + compare.comparisons(rows),
    record=decode.record,
    plot=_decode_plot,
)
