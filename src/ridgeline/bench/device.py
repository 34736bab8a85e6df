"""The device that is timed: where tensors live, how a call is made ready, and its clock."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import torch

from ridgeline.bench import timing

NAMES = ("cpu", "cuda")


@dataclass(frozen=True)
class Ready:
    """A call that has warmed up; ``eager`` says why it is no CUDA graph where one was asked for."""

    run: Callable[[], Any]
    eager: str | None = None


class Device(Protocol):
    """What a benchmark asks of the device that it times."""

    where: torch.device

    def ready(self, call: Callable[[], Any], graph: bool = False) -> Ready:
        """``call`` after warm-up (compilation too), as a CUDA graph where ``graph`` and possible.

        What ``run`` returns is overwritten by its next run.
        """

    def seconds(self, call: Callable[[], object]) -> float:
        """The time of one call."""

    def state(self) -> dict[str, str | int]:
        """Columns that say in which state the device is right now: clocks, throttling."""

    def facts(self) -> dict[str, str]:
        """What stands before the ``machine`` and ``versions`` of a result file."""


class Cpu:
    """The processor, by its clock on the wall."""

    where = torch.device("cpu")

    def ready(self, call: Callable[[], Any], graph: bool = False) -> Ready:
        call()
        return Ready(call)

    def seconds(self, call: Callable[[], object]) -> float:
        return timing.seconds(call)

    def state(self) -> dict[str, str | int]:
        return {}

    def facts(self) -> dict[str, str]:
        return {}


CPU = Cpu()


def open_device(name: str) -> Device:
    """The device called ``name`` on the command line.

    Raises:
        ValueError: there is no such device, or no GPU that torch can use.
    """
    if name not in NAMES:
        raise ValueError(f"--device: expected {' or '.join(NAMES)}, got {name!r}")
    if name == "cpu":
        return CPU
    from ridgeline.bench.cuda.device import Cuda

    return Cuda()


def first_line(e: BaseException) -> str:
    """What an exception says, in one line; its type where it says nothing."""
    return next(iter(str(e).strip().splitlines()), "") or type(e).__name__


def unsupported(e: Exception) -> bool:
    """Whether one of our implementations says that it does not compute a call."""
    return isinstance(e, ValueError) and str(e).startswith("impl=")
