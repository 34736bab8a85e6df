"""Which (variant, TP, DP) serves a workload best under limits of latency."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from ridgeline.roofline import configs, fields
from ridgeline.roofline.cost import Engine
from ridgeline.roofline.efficiency import Efficiency
from ridgeline.roofline.hardware import Hardware
from ridgeline.roofline.model import ModelShape
from ridgeline.roofline.parallel import Parallelism
from ridgeline.roofline.schedule import Policy
from ridgeline.roofline.simulate import Served, simulate
from ridgeline.roofline.workload import Workload


@dataclass(frozen=True)
class Target:
    """The longest p99 TTFT in seconds, and mean time between tokens in ms; None for no limit."""

    ttft: float | None = None
    itl: float | None = None

    def __post_init__(self) -> None:
        given = {"ttft": self.ttft, "itl": self.itl}
        fields.positive(**{name: x for name, x in given.items() if x is not None})

    def met_by(self, served: Served) -> bool:
        ttft_met = self.ttft is None or np.percentile(served.ttft, 99) <= self.ttft
        return bool(ttft_met and (self.itl is None or served.mean_itl * 1e3 <= self.itl))


@dataclass(frozen=True)
class Candidate:
    """One way to serve; ``refused`` says why it cannot, and then ``served`` is None."""

    variant: str
    parallel: Parallelism
    served: Served | None
    meets: bool
    refused: str = ""


def rank(
    model: ModelShape,
    variants: Sequence[str],
    device: Hardware,
    devices: int,
    workload: Workload,
    policy: Policy,
    efficiency: Efficiency,
    target: Target,
    *,
    seed: int = 0,
) -> list[Candidate]:
    """Every variant at every division of ``devices`` into TP and DP, those that meet ``target``
    first, each part by falling throughput; what cannot run comes last, with the reason.

    ``variants``: labels of ``configs.with_attention``.
    """
    shapes = {label: configs.with_attention(model, label) for label in variants}
    found = []
    for label, shape in shapes.items():
        for parallel in divisions(devices):
            try:
                engine = Engine(shape, device, parallel, efficiency)
                served = simulate(engine, workload, policy, seed=seed)
            except ValueError as e:
                found.append(Candidate(label, parallel, None, False, str(e)))
            else:
                found.append(Candidate(label, parallel, served, target.met_by(served)))
    return sorted(found, key=_order)


def divisions(devices: int) -> Iterator[Parallelism]:
    """Every TP x DP of ``devices``, pure tensor parallelism first."""
    for tp in range(devices, 0, -1):
        if devices % tp == 0:
            yield Parallelism(tp, devices // tp)


def _order(c: Candidate) -> tuple[bool, bool, float]:
    return c.served is None, not c.meets, -c.served.throughput if c.served else 0.0
