"""Dataclasses from tables of a user's file: unknown and missing fields are named."""

import csv
import tomllib
from collections.abc import Mapping
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any, TypeVar

T = TypeVar("T")


def build(kind: type[T], where: str, table: Mapping[str, Any]) -> T:
    """``kind(**table)``.

    Raises:
        ValueError, TypeError: a field is unknown, missing or has an impossible value.
    """
    known = {f.name: f for f in fields(kind)}
    for name in table:
        if name not in known:
            raise ValueError(f"{where}: unknown field {name!r}; possible are {', '.join(known)}")
    for name, field in known.items():
        no_default = field.default is MISSING and field.default_factory is MISSING
        if no_default and name not in table:
            raise ValueError(f"{where}: field {name!r} is missing")
    try:
        return kind(**table)
    except (ValueError, TypeError) as e:
        raise type(e)(f"{where}: {e}") from None


def positive(**given: float) -> None:
    """Raises for a number that is not finite and above 0."""
    for name, x in given.items():
        if isinstance(x, bool) or not isinstance(x, (int, float)):
            raise TypeError(f"{name}: expected a number, got {type(x).__name__}")
        if not 0 < x < float("inf"):
            raise ValueError(f"{name}: expected a number above 0, got {x}")


def share(**given: float) -> None:
    """Raises for a number outside (0, 1]."""
    positive(**given)
    for name, x in given.items():
        if x > 1:
            raise ValueError(f"{name}: expected a share of at most 1, got {x}")


def read_toml(path: Path) -> dict[str, Any]:
    """Raises ``ValueError`` naming the file where it is no TOML."""
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as e:
        raise ValueError(f"{path}: expected TOML, {e}") from None


def read_rows(path: Path) -> list[dict[str, str]]:
    """Rows of a CSV file whose comment lines begin with ``#``, as ``ridgeline bench`` writes them.

    Raises:
        ValueError: the file has no rows, or a row has not as many cells as the head has columns.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except UnicodeDecodeError as e:
        raise ValueError(f"{path}: expected a CSV file in UTF-8, {e}") from None
    reader = csv.DictReader(line for line in lines if line and not line.startswith("#"))
    rows = list(reader)
    if not rows:
        raise ValueError(f"{path}: expected a head and at least one row")
    for i, row in enumerate(rows, start=1):
        if None in row or None in row.values():
            columns = ", ".join(reader.fieldnames or ())
            raise ValueError(f"{path}, row {i}: expected the columns {columns}")
    return rows


def number(path: Path, i: int, row: Mapping[str, str], column: str) -> float:
    """The cell of row ``i`` (from 1) as a number above 0.

    Raises:
        ValueError: names the file, the row and the column.
    """
    if column not in row:
        raise ValueError(f"{path}: expected a column {column!r}, found {', '.join(row)}")
    try:
        x = float(row[column])
        positive(**{column: x})
    except ValueError:
        raise ValueError(
            f"{path}, row {i}: {column}: expected a number above 0, got {row[column]!r}"
        ) from None
    return x
