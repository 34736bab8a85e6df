"""An NVIDIA GPU as the device that is timed."""

import subprocess
from collections.abc import Callable
from importlib import metadata
from typing import Any

import torch

from ridgeline.bench.device import Ready, first_line

# Read before every timed call. Many times any L2, so that nothing of the call's inputs is left in
# it; only read, so that no dirty line is written back inside the clock; and half a
# millisecond of work at 4 TB/s, in which the host enqueues what is timed.
SCRUB_BYTES = 2 << 30
WARM_UPS = 2
MIN_CAPABILITY = (8, 0)
_THROTTLE = {
    0x4: "power cap",
    0x8: "hardware slowdown",
    0x20: "software thermal",
    0x40: "hardware thermal",
    0x80: "power brake",
}


class Cuda:
    """The current CUDA device; ``api`` is ``torch.cuda``.

    Raises:
        ValueError: there is no GPU that torch can use.
    """

    def __init__(
        self,
        api: Any = torch.cuda,
        where: torch.device | str = "cuda",
        scrub_bytes: int = SCRUB_BYTES,
    ) -> None:
        _check_usable(api)
        self.where = torch.device(where)
        self._api = api
        self._scrub = torch.ones(scrub_bytes // 8, dtype=torch.int64, device=self.where)

    def ready(self, call: Callable[[], Any], graph: bool = False) -> Ready:
        for _ in range(WARM_UPS):
            call()
        self._api.synchronize()
        if not graph:
            return Ready(call)
        recorded = self._api.CUDAGraph()
        try:
            with self._api.graph(recorded):
                out = call()
        except RuntimeError as e:
            self._api.synchronize()
            return Ready(call, f"not captured: {first_line(e)}")

        def replay() -> Any:
            recorded.replay()
            return out

        return Ready(replay)

    def seconds(self, call: Callable[[], object]) -> float:
        """The time between two events around the call, which finds L2 cold."""
        start, stop = (self._api.Event(enable_timing=True) for _ in range(2))
        self._scrub.sum()
        start.record()
        call()
        stop.record()
        stop.synchronize()
        return start.elapsed_time(stop) / 1e3

    def state(self) -> dict[str, str | int]:
        found = self._smi("clocks.sm", "clocks.mem", "clocks_event_reasons.active")
        if found is None:
            return {}
        sm, memory, reasons = found
        return {
            "sm_clock_MHz": int(sm),
            "memory_clock_MHz": int(memory),
            "throttled": throttled(reasons),
        }

    def facts(self) -> dict[str, str]:
        p = self._api.get_device_properties(self._api.current_device())
        driver = self._smi("driver_version") or ["unknown"]
        return {
            "machine": f"{p.name}, {p.multi_processor_count} SMs, {p.L2_cache_size / 2**20:.0f} "
            f"MiB L2, {p.total_memory / 2**30:.0f} GiB, driver {driver[0]}",
            "versions": f"CUDA {torch.version.cuda}, cuDNN {torch.backends.cudnn.version()}, "
            f"triton {_version('triton')}",
        }

    def _smi(self, *fields: str) -> list[str] | None:
        """What nvidia-smi says of this GPU, numbers without units; ``None`` where it does not."""
        p = self._api.get_device_properties(self._api.current_device())
        command = ["nvidia-smi", f"--id=GPU-{p.uuid}", f"--query-gpu={','.join(fields)}"]
        command.append("--format=csv,noheader,nounits")
        try:
            done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=30)
        except (OSError, subprocess.SubprocessError):
            return None
        return [x.strip() for x in done.stdout.split(",")]


def throttled(reasons: str) -> str:
    """nvidia-smi's mask of why clocks are low, such as ``0x0000000000000004``, in words."""
    try:
        mask = int(reasons, 16)
    except ValueError:
        return "unknown"
    return " and ".join(name for bit, name in _THROTTLE.items() if mask & bit) or "no"


def _check_usable(api: Any) -> None:
    expected = "--device cuda: expected a GPU that torch can use"
    if torch.version.cuda is None and api is torch.cuda:
        raise ValueError(f"{expected}, got torch {torch.__version__}, which is built without CUDA")
    if not api.is_available():
        raise ValueError(f"{expected}, got none (torch {torch.__version__})")
    capability = tuple(api.get_device_capability())
    if capability < MIN_CAPABILITY:
        have, least = (".".join(map(str, x)) for x in (capability, MIN_CAPABILITY))
        raise ValueError(f"{expected}, of compute capability {least} or newer, got {have}")


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "not installed"
