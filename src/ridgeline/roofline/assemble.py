"""Engines and workloads from the text of a command line."""

from dataclasses import dataclass, replace
from pathlib import Path

from ridgeline.bench.machine import memory_bytes
from ridgeline.roofline import configs, efficiency, hardware, measured
from ridgeline.roofline.cost import Engine
from ridgeline.roofline.model import ModelShape
from ridgeline.roofline.parallel import Parallelism
from ridgeline.roofline.workload import Lengths, Workload


@dataclass(frozen=True)
class Given:
    """What names an engine; each field as the option of its name."""

    model: str
    variant: str | None
    hardware: str
    efficiency: Path | None
    kernels: Path | None
    weights: str | None
    cache: str | None

    def shape(self) -> ModelShape:
        found = configs.find(self.model)
        if self.variant is not None:
            found = configs.with_attention(found, self.variant)
        return replace(
            found,
            weight_dtype=self.weights or found.weight_dtype,
            cache_dtype=self.cache or found.cache_dtype,
        )

    def device(self) -> hardware.Hardware:
        path = Path(self.hardware)
        if path.suffix in (".csv", ".json") and path.is_file():
            return measured.read(path, memory_bytes())[0]
        if self.hardware == "measured":
            from ridgeline.roofline.measure import this_machine

            return this_machine()
        return hardware.find(self.hardware)

    def reached(self) -> efficiency.Efficiency:
        if self.efficiency is None:
            return efficiency.Efficiency()
        return efficiency.load(self.efficiency)

    def engine(self, tp: int, dp: int) -> Engine:
        """Raises ``ValueError`` where the model does not fit the devices."""
        shape, times = self.shape(), None
        parallel = Parallelism(tp, dp)
        parallel.check_fits(shape)
        if self.kernels is not None:
            rows = measured.read(self.kernels, memory_bytes())[1]
            times = measured.kernel_times(rows, shape, tp)
        return Engine(shape, self.device(), parallel, self.reached(), times)


def workload(
    prompt: str,
    output: str,
    file: Path | None,
    requests: int,
    concurrency: int | None,
    rate: float | None,
    seed: int,
) -> Workload:
    """Requests of ``file``, or drawn from the distributions ``prompt`` and ``output``."""
    load = {"concurrency": concurrency, "rate": rate}
    if file is not None:
        return Workload.from_file(file, **load)
    lengths = Lengths.parse("prompt", prompt), Lengths.parse("output", output)
    return Workload.drawn(*lengths, requests, **load, seed=seed)
