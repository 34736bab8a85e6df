"""Hardware and kernel times out of result files of ``ridgeline bench decode``."""

import json
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import numpy as np

from ridgeline.roofline import fields
from ridgeline.roofline.hardware import Hardware
from ridgeline.roofline.model import ModelShape

RATES = ("memory_roof_GB/s", "gemm_roof_GFLOP/s")


@dataclass(frozen=True)
class DecodeRow:
    """One measured decode step of one layer; ``seconds`` its median."""

    variant: str
    heads: int
    cache_heads: int
    head_dim: int
    batch: int
    length: int
    query_len: int
    dtype: str
    seconds: float


class KernelTimes:
    """Seconds of a decode kernel between and beyond measured totals of cached tokens.

    Between two totals linear, below the smallest that one's, above the largest in proportion.
    """

    def __init__(self, rows: Sequence[DecodeRow]) -> None:
        totals: dict[int, list[float]] = defaultdict(list)
        for row in rows:
            totals[row.batch * row.length].append(row.seconds)
        self._tokens = np.array(sorted(totals), dtype=float)
        self._seconds = np.array([median(totals[int(n)]) for n in self._tokens])

    def __call__(self, sequences: int, cached: float) -> float:
        """Of ``cached`` tokens in all; how many ``sequences`` share them does not matter."""
        if cached > self._tokens[-1]:
            return float(self._seconds[-1] * cached / self._tokens[-1])
        return float(np.interp(cached, self._tokens, self._seconds))


def read(path: Path, memory: float) -> tuple[Hardware, list[DecodeRow]]:
    """The machine of a CSV or JSON file, with ``memory`` bytes, and its rows.

    Raises:
        ValueError: a column is missing or a cell is no number above 0.
    """
    rows = _rows(path)
    rates = {
        column: 1e9 * median(fields.number(path, i, r, column) for i, r in enumerate(rows, 1))
        for column in RATES
    }
    found = Hardware(name=path.stem, bf16=rates[RATES[1]], memory=memory, bandwidth=rates[RATES[0]])
    return found, [_decode_row(path, i, r) for i, r in enumerate(rows, start=1)]


def kernel_times(rows: Sequence[DecodeRow], model: ModelShape, tp: int = 1) -> KernelTimes:
    """Times of those rows whose kernel, of one query token, is that of one of ``tp`` ranks.

    Raises:
        ValueError: no row has its variant, heads, head_dim and dtype.
    """
    names = ("variant", "heads", "cache_heads", "head_dim", "query_len", "dtype")
    heads = (model.heads // tp, model.spec(tp).heads)
    key = (model.variant, *heads, model.head_dim, 1, model.cache_dtype)
    matching = [r for r in rows if tuple(getattr(r, name) for name in names) == key]
    if not matching:
        found = sorted({tuple(getattr(r, name) for name in names) for r in rows})
        raise ValueError(f"kernels: expected a row with {', '.join(names)} = {key}, found {found}")
    return KernelTimes(matching)


def _rows(path: Path) -> list[dict[str, str]]:
    if path.suffix != ".json":
        return fields.read_rows(path)
    try:
        rows = json.loads(path.read_text(encoding="utf-8"))["rows"]
        return [{name: str(x) for name, x in row.items()} for row in rows]
    except (ValueError, KeyError, TypeError, AttributeError) as e:
        raise ValueError(f"{path}: expected a JSON file of `ridgeline bench decode`, {e}") from None


def _decode_row(path: Path, i: int, row: dict[str, str]) -> DecodeRow:
    for column in ("variant", "dtype"):
        if column not in row:
            raise ValueError(f"{path}: expected a column {column!r}, found {', '.join(row)}")
    counts = ("heads", "cache_heads", "head_dim", "batch", "length", "query_len")
    return DecodeRow(
        variant=row["variant"],
        dtype=row["dtype"],
        seconds=fields.number(path, i, row, "ms") / 1e3,
        **{name: int(fields.number(path, i, row, name)) for name in counts},
    )
