"""What ``ridgeline info`` prints: which implementation runs here, and why another does not."""

from collections.abc import Callable, Iterator
from importlib import metadata
from pathlib import Path

import torch

from ridgeline.bench import machine
from ridgeline.bench.cuda import packages
from ridgeline.ops.attention import attention
from ridgeline.ops.common import core
from ridgeline.ops.common.dispatch import IMPLS
from ridgeline.ops.paged_decode import paged_decode
from ridgeline.ops.tied_decode import tied_decode

PACKAGES = ("transformers", "tokenizers", "safetensors", "triton", "vllm", "trl", "matplotlib")


def implementations() -> Iterator[tuple[str, str, str | None]]:
    """``(operation, implementation, why it is not usable here)``, found out by calling each."""
    calls = {"attention": _attention, "paged_decode": _paged, "tied_decode": _tied}
    for operation, call in calls.items():
        for impl in IMPLS:
            if impl != "auto":
                yield operation, impl, _reason(call, impl)
    yield "merge", "reference", None


def lines() -> Iterator[str]:
    """The whole report."""
    yield "operations"
    for operation, impl, reason in implementations():
        yield f"  {operation:<13} {impl:<10} {'ok' if reason is None else f'no: {reason}'}"
    yield "core"
    if core.missing() is None:
        yield f"  instruction sets   {', '.join(core.isas())}"
        yield f"  compiler           {core.load().compiler}"
    else:
        yield f"  {core.missing()}"
    yield "machine"
    yield f"  processor          {machine.cpu_model()}, {machine.cores()} cores"
    yield f"  threads            {torch.get_num_threads()}"
    yield f"  OpenMP runtimes    {', '.join(openmp_runtimes()) or 'unknown'}"
    yield f"  last-level cache   {machine.l3_bytes() / 2**20:.0f} MiB"
    yield f"  memory             {machine.memory_bytes() / 2**30:.1f} GiB"
    gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    yield f"  GPUs               {', '.join(gpus) or 'none'}"
    yield "versions"
    yield f"  {machine.versions()}"
    yield f"  commit {machine.commit()}"
    for package in PACKAGES:
        yield f"  {package:<18} {_version(package)}"
    yield "peers of the benchmarks on a GPU"
    for line in packages.lines():
        yield f"  {line}"


def openmp_runtimes() -> list[str]:
    """OpenMP libraries in this process. More than one means thread pools that fight for cores."""
    core.missing()
    try:
        maps = Path("/proc/self/maps").read_text().splitlines()
    except OSError:
        return []
    files = {Path(line[line.index("/") :]) for line in maps if "/" in line}
    return sorted(f.name for f in files if f.name.startswith(("libgomp", "libomp", "libiomp")))


def _reason(call: Callable[[str], object], impl: str) -> str | None:
    try:
        call(impl)
    except ValueError as e:
        return str(e).removeprefix(f"impl={impl!r}: ")
    return None


def _attention(impl: str) -> object:
    x = torch.zeros(1, 1, 1, 16)
    return attention(x, x, x, impl=impl)


def _paged(impl: str) -> object:
    q, cache = torch.zeros(1, 1, 1, 16), torch.zeros(1, 1, 1, 16)
    return paged_decode(q, cache, cache, *_table(), impl=impl)


def _tied(impl: str) -> object:
    q, cache = torch.zeros(1, 1, 1, 16), torch.zeros(1, 1, 1, 16)
    return tied_decode(q, q, cache, cache[:, :, 0], *_table(), softmax_scale=1.0, impl=impl)


def _table() -> tuple[torch.Tensor, torch.Tensor]:
    return torch.zeros(1, 1, dtype=torch.int32), torch.ones(1, dtype=torch.int32)


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "not installed"
