"""Running a decode benchmark: rows appear as they are measured, then the table and the files."""

from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from ridgeline.bench import compare, decode, files, plot, table


def bench_decode(
    options: decode.DecodeOptions,
    console: Console,
    *,
    csv: Path | None = None,
    json: Path | None = None,
    plot_file: Path | None = None,
) -> list[decode.Row]:
    """Measure, print, and write what was asked for."""
    files.prepare(csv, json, plot_file)
    rows: list[decode.Row] = []
    shapes = options.shapes()
    with console.status("") as status:
        for i, shape in enumerate(shapes):
            status.update(f"{i + 1} of {len(shapes)}: {shape.label} {shape.batch}x{shape.length}")
            row = decode.measure(shape, options)
            rows.append(row)
            if not console.is_terminal:
                done = f"{i + 1}/{len(shapes)} {shape.label} {shape.dtype} {compare.size(row)}"
                console.print(f"{done}: {row.seconds * 1e3:.2f} ms, {row.percent:.0f}% of the roof")
    console.print(table.decode_table(rows))
    for line in table.notes(rows) + compare.comparisons(rows):
        console.print(line, soft_wrap=True)
    write(rows, csv, json, plot_file)
    return rows


def write(
    rows: Sequence[decode.Row], csv: Path | None, json: Path | None, plot_file: Path | None
) -> None:
    head = files.write_records([files.record(row) for row in rows], csv, json)
    if plot_file is not None:
        plot.decode_plot(plot_file, rows, head["machine"])
