"""``ridgeline bench memory``: what one call of attention needs beyond its inputs, at its peak.

Every pass runs in a process of its own (``peak``).
"""

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass

import torch

from ridgeline.bench import files
from ridgeline.bench.attention.shapes import PASSES, AttentionShape
from ridgeline.bench.grid import Grid
from ridgeline.ops.common import check
from ridgeline.ops.common.dispatch import Impl

# glibc then gives every larger block back when it is freed: none hides in the process beforehand.
MALLOC = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}


@dataclass(frozen=True)
class MemoryOptions:
    """What to run; ``with_peers``: also torch SDPA."""

    shapes: tuple[AttentionShape, ...]
    with_peers: bool = True
    impl: Impl = "auto"

    def __post_init__(self) -> None:
        check.name_of_impl(self.impl)


@dataclass(frozen=True)
class Row:
    """Peaks in bytes beyond what was there before the pass; ``results`` are part of them.

    What is there before: q, k and v; backward also out, lse and dout.
    """

    shape: AttentionShape
    which: str
    peak: int
    sdpa: int | None

    @property
    def results(self) -> int:
        """Bytes of out and lse, or of dq, dk and dv."""
        s = self.shape
        rows, size = s.batch * s.length, s.torch_dtype.itemsize
        if self.which == "forward":
            return rows * s.heads * (s.width * size + 4)
        return rows * size * ((s.heads + s.kv_heads) * s.head_dim + s.kv_heads * s.width)

    @property
    def scores(self) -> int:
        """Bytes of a matrix of all scores in the row's dtype, which nobody should need."""
        s = self.shape
        return s.batch * s.heads * s.length**2 * s.torch_dtype.itemsize


def measure(shape: AttentionShape, options: MemoryOptions) -> list[Row]:
    """Both passes of a shape."""
    return [
        Row(
            shape,
            which,
            peak=in_fresh_process(shape, which, "ours", options.impl),
            sdpa=in_fresh_process(shape, which, "sdpa") if options.with_peers else None,
        )
        for which in PASSES
    ]


def in_fresh_process(shape: AttentionShape, which: str, who: str, impl: Impl = "auto") -> int:
    """The peak of a pass in bytes.

    Raises:
        RuntimeError: the process failed; with what it printed last.
    """
    job = json.dumps([asdict(shape), which, who, impl, torch.get_num_threads()])
    command = [sys.executable, "-m", "ridgeline.bench.attention.peak", job]
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | MALLOC)
    if done.returncode != 0:
        last = (done.stderr.strip().splitlines() or [f"exit status {done.returncode}"])[-1]
        raise RuntimeError(f"{shape.label}, {which} of {who}: {last}")
    return int(done.stdout)


def line(row: Row) -> str:
    return f"{row.shape.label} {row.shape.dtype} {row.which}: {row.peak / 1e6:.1f} MB"


def memory_table(rows: Sequence[Row]) -> Grid:
    found = Grid()
    for name in ("attention", "mask", "dtype", "pass"):
        found.add_column(name)
    for name in ("peak\nMB", "of it\nresults", "torch\nSDPA", "all\nscores"):
        found.add_column(name, justify="right")
    for row in rows:
        sizes = (row.peak, row.results, row.sdpa, row.scores)
        found.add_row(
            row.shape.label,
            row.shape.mask,
            row.shape.dtype,
            row.which,
            *("" if x is None else f"{x / 1e6:.1f}" for x in sizes),
        )
    return found


def notes(rows: Sequence[Row]) -> list[str]:
    return [
        "Largest resident size of a process beyond what was there before the pass: q, k and v; "
        "backward also out, lse and dout. Results (out and lse, or the gradients) are part of it."
    ]


def record(row: Row) -> files.Record:
    """One row as flat columns."""
    s = row.shape
    columns: files.Record = {
        "mask": s.mask,
        "dtype": s.dtype,
        "batch": s.batch,
        "length": s.length,
        "heads": s.heads,
        "kv_heads": s.kv_heads,
        "head_dim": s.head_dim,
        "value_dim": s.width,
        "pass": row.which,
        "peak_MB": _mb(row.peak),
        "results_MB": _mb(row.results),
        "all_scores_MB": _mb(row.scores),
    }
    if row.sdpa is not None:
        columns["torch_sdpa_peak_MB"] = _mb(row.sdpa)
    return columns


def _mb(nbytes: int) -> float:
    return round(nbytes / 1e6, 3)
