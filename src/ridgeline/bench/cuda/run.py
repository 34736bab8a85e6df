"""The commands on a GPU: what they measure, and how it is shown."""

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from ridgeline.bench.attention import report as attention_report
from ridgeline.bench.attention.measure import AttentionOptions, Row, measure, record
from ridgeline.bench.cuda import decode, packages, report
from ridgeline.bench.device import Device
from ridgeline.bench.grid import Terminal
from ridgeline.bench.run import Report, bench
from ridgeline.bench.table import span


def bench_decode(
    options: decode.CudaDecodeOptions, device: Device, console: Terminal, **out: Path | None
) -> list[decode.Row]:
    """``ridgeline bench decode --device cuda``; ``out`` as of ``bench``.

    Raises:
        RuntimeError: an implementation failed; after everything else was measured and written.
    """
    work = [
        (f"{s.label} {s.batch}x{s.length}", partial(decode.measure, s, page, options, device))
        for s, page in options.work()
    ]
    rows = bench(work, DECODE, console, **out, device=device, save_each=True)
    _check(rows, [row.failure is not None or bool(row.broken) for row in rows])
    return rows


def bench_attention(
    options: AttentionOptions, device: Device, console: Terminal, **out: Path | None
) -> list[Row]:
    """``ridgeline bench attention --device cuda``; as ``bench_decode``."""
    work = [
        (f"{s.label}, {s.mask}, {s.dtype}", partial(measure, s, options, device))
        for s in options.shapes
    ]
    rows = bench(work, ATTENTION, console, **out, device=device, save_each=True)
    _check(rows, [row.failure is not None for row in rows])
    return rows


def _check(rows: Sequence[Any], failed: Sequence[bool]) -> None:
    if any(failed):
        raise RuntimeError(f"{sum(failed)} of {len(rows)} rows failed, see above")


def _attention_notes(rows: Sequence[Row]) -> list[str]:
    found = attention_report.notes(
        rows, lambda dtype, x: f"torch GEMM in {dtype} {span(x, 0)} GFLOP/s"
    )
    return found + packages.missing_note()


DECODE = Report(
    line=report.line, table=report.decode_table, notes=report.notes, record=decode.record
)
ATTENTION = Report(
    line=attention_report.line,
    table=attention_report.attention_table,
    notes=_attention_notes,
    record=record,
)
