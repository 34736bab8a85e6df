"""The command: what it measures, and how it is shown."""

from functools import partial
from pathlib import Path

from ridgeline.bench.dpo import report
from ridgeline.bench.dpo.measure import DpoOptions, measure, record
from ridgeline.bench.grid import Terminal
from ridgeline.bench.run import Report, bench


def bench_dpo(options: DpoOptions, console: Terminal, **out: Path | None) -> list:
    """``ridgeline bench dpo``; ``out`` as of ``bench``."""
    work = [(profile.name, partial(measure, profile, options)) for profile in options.profiles]
    return bench(work, DPO, console, **out)


DPO = Report(
    line=report.line,
    table=report.dpo_table,
    notes=report.notes,
    record=record,
    plot=report.plot,
)
