"""Result files: the rows, and what one needs to repeat them. A file appears whole or not at all."""

import csv
import io
import json
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from ridgeline.bench import machine
from ridgeline.bench.decode import Row

Record = dict[str, str | int | float]


def record(row: Row) -> Record:
    """One row as flat columns; a unit ends the name where there is one."""
    shape, roofs = row.shape, row.roofs
    columns: Record = {
        "variant": shape.variant,
        "heads": shape.heads,
        "cache_heads": shape.kv_heads,
        "head_dim": shape.head_dim,
        "batch": shape.batch,
        "length": shape.length,
        "query_len": shape.query_len,
        "dtype": shape.dtype,
        "bytes_per_token": shape.bytes_per_token,
        "flop_per_byte": round(shape.intensity, 2),
        "ms": _ms(row.seconds),
        "GB/s": round(row.bandwidth / 1e9, 3),
        "GFLOP/s": round(row.flop_rate / 1e9, 1),
        "percent_of_roof": round(row.percent, 1),
        "binding_roof": row.binding,
        "memory_roof_GB/s": round(roofs.memory / 1e9, 3),
        "gemm_roof_GFLOP/s": round(roofs.gemm / 1e9, 1),
        "roof_drift": round(row.drift, 3),
        "relative_error": float(f"{row.error:.2e}"),
    }
    if row.no_prefetch is not None:
        columns["no_prefetch_ms"] = _ms(row.no_prefetch)
        columns["no_prefetch_ratio"] = round(row.prefetch_gain, 3)
    if row.beside_peers is not None:
        columns["beside_peers_ms"] = _ms(row.beside_peers)
    for name, seconds in row.peers.items():
        column = "torch_" + name.replace(" ", "_")
        columns[f"{column}_ms"] = _ms(seconds)
        columns[f"{column}_ratio"] = round(row.speedup(name), 2)
    return columns


def write_records(
    records: Sequence[Record], csv_file: Path | None, json_file: Path | None
) -> dict[str, str]:
    """Write the files that were asked for; returns their provenance."""
    head = machine.provenance()
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


def _ms(seconds: float) -> float:
    return round(seconds * 1e3, 4)
