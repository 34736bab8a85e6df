"""What a benchmark result must name to be repeated: command, commit, machine, versions, date."""

import os
import platform
import shlex
import subprocess
import sys
from datetime import UTC, datetime
from functools import cache
from pathlib import Path

import torch

import ridgeline
from ridgeline.bench.device import CPU, Device
from ridgeline.ops.common import core

FLAGS = ("avx2", "fma", "f16c", "avx512f", "avx512_bf16", "avx512_vnni", "amx_bf16", "asimd", "sve")
COLD_BYTES = 400_000_000


def provenance(device: Device = CPU) -> dict[str, str]:
    """Facts for the head of a result file, by name; those of ``device`` before the machine's."""
    facts = {
        "command": command(),
        "commit": commit(),
        "machine": machine(),
        "versions": versions(),
        "date": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
    }
    return facts | {name: f"{x}; {facts[name]}" for name, x in device.facts().items()}


def command() -> str:
    """What was typed: ``ridgeline bench ...``, or ``python -m ridgeline.bench ...``."""
    program = Path(sys.argv[0])
    module = program.name == "__main__.py" and program.parent.name == "bench"
    start = ["python", "-m", "ridgeline.bench"] if module else ["ridgeline"]
    return shlex.join([*start, *sys.argv[1:]])


def machine() -> str:
    flags = " ".join(f for f in FLAGS if f in _cpuinfo("flags").split()) or "unknown flags"
    return (
        f"{cpu_model()}, {cores()} cores, {torch.get_num_threads()} threads, {flags}, "
        f"{l3_bytes() / 2**20:.0f} MiB L3, {memory_bytes() / 2**30:.0f} GiB memory, "
        f"{platform.system()} {platform.machine()}"
    )


def versions() -> str:
    compiler = "no compiled core" if core.missing() else f"compiler {core.load().compiler}"
    return (
        f"ridgeline {ridgeline.__version__}, torch {torch.__version__}, "
        f"python {platform.python_version()}, {compiler}"
    )


def commit() -> str:
    """The commit of the checkout this runs from, ``+`` where files differ from it."""
    try:
        return _git("rev-parse", "HEAD") + ("+" if _git("status", "--porcelain", "-uno") else "")
    except (OSError, subprocess.CalledProcessError):
        return f"release {ridgeline.__version__}"


def cpu_model() -> str:
    return _cpuinfo("model name") or platform.processor() or platform.machine()


def cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def memory_bytes() -> int:
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


@cache
def l3_bytes() -> int:
    """Size of the last-level cache, 0 where the system does not say."""
    path = Path("/sys/devices/system/cpu/cpu0/cache/index3/size")
    try:
        return int(path.read_text().strip().removesuffix("K")) * 1024
    except (OSError, ValueError):
        return 0


def cold_bytes() -> int:
    """Other reads between two reads of one cache: enough that L3 holds nothing of it."""
    return max(COLD_BYTES, 4 * l3_bytes())


@cache
def _cpuinfo(key: str) -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return ""
    return next((x.split(":", 1)[1].strip() for x in lines if x.startswith(key)), "")


def _git(*args: str) -> str:
    # Only a checkout of Ridgeline counts, not some repository that the package was installed into.
    root = Path(__file__).resolve().parents[3]
    if not (root / "csrc").is_dir():
        raise FileNotFoundError(root)
    return subprocess.run(
        ["git", "-C", str(root), *args], capture_output=True, text=True, check=True
    ).stdout.strip()
