"""Result files: the rows, and what one needs to repeat them. A file appears whole or not at all."""

import csv
import io
import json
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from ridgeline.bench import machine
from ridgeline.bench.device import CPU, Device

Record = dict[str, str | int | float]


def write_records(
    records: Sequence[Record],
    csv_file: Path | None,
    json_file: Path | None,
    device: Device = CPU,
) -> dict[str, str]:
    """Write the files that were asked for; returns their provenance."""
    head = machine.provenance(device)
    if csv_file is not None:
        write_csv(csv_file, records, head)
    if json_file is not None:
        write_json(json_file, records, head)
    return head


def write_csv(path: Path, records: Sequence[Record], head: Mapping[str, str]) -> None:
    """Comment lines ``# name: value``, then the union of all columns."""
    text = io.StringIO()
    for name, value in head.items():
        text.write(f"# {name}: {value}\n")
    columns = list(dict.fromkeys(column for r in records for column in r))
    table = csv.DictWriter(text, columns, lineterminator="\n")
    table.writeheader()
    table.writerows(records)
    write_whole(path, lambda p: p.write_text(text.getvalue(), encoding="utf-8"))


def write_json(path: Path, records: Sequence[Record], head: Mapping[str, str]) -> None:
    text = json.dumps({**head, "rows": list(records)}, indent=1) + "\n"
    write_whole(path, lambda p: p.write_text(text, encoding="utf-8"))


def write_whole(path: Path, write: Callable[[Path], object]) -> None:
    """``write`` to a file beside ``path``, then rename: a full disk leaves the old file."""
    part = path.with_name(f".{path.stem}.part{path.suffix}")
    try:
        write(part)
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


def prepare(*paths: Path | None) -> None:
    """Make the folders of result files, so that a bad path fails before the minutes of a run."""
    for path in paths:
        if path is None:
            continue
        if path.is_dir():
            raise IsADirectoryError(f"{path}: expected the name of a file, got a folder")
        path.parent.mkdir(parents=True, exist_ok=True)


def ms(seconds: float) -> float:
    """Milliseconds as a column."""
    return round(seconds * 1e3, 4)
