"""A device for tests: a GPU, or the CPU without one; its clock is told what to say."""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch

from ridgeline.bench.device import Ready

STALL = 3  # of its measurements this one takes ten times as long


class FakeGpu:
    """The i-th call made ready takes i + 1 ms; ``order`` is the order in which calls were timed.

    A call that was not made ready takes a millisecond for each letter of its name; ``eager`` is why
    no call becomes a graph.
    """

    where = torch.device("cuda" if torch.cuda.is_available() else "cpu")

    def __init__(self) -> None:
        self.order: list[Any] = []
        self.eager: str | None = None
        self._runs: list[Callable[[], Any]] = []

    def ready(self, call: Callable[[], Any], graph: bool = False) -> Ready:
        out = call()
        self._runs.append(lambda: out)
        return Ready(self._runs[-1], self.eager if graph else None)

    def seconds(self, call: Callable[[], object]) -> float:
        if call in self._runs:
            name, ms = self._runs.index(call), self._runs.index(call) + 1
        else:
            name = call.func.__self__.name if isinstance(call, partial) else "gemm"
            ms = len(name)
        key = name if not isinstance(call, partial) else (name, *call.args)
        self.order.append(key)
        return ms * 1e-3 * (10 if self.order.count(key) == STALL else 1)

    def state(self) -> dict[str, str | int]:
        return {"sm_clock_MHz": 1755, "throttled": "no"}

    def facts(self) -> dict[str, str]:
        return {"machine": "Fake GPU", "versions": "CUDA 13.0"}
