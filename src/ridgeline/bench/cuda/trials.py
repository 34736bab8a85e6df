"""Calls on a GPU that passed their check, and why the others did not."""

import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from ridgeline.bench.device import Device, first_line, unsupported
from ridgeline.bench.verify import relative_error


@dataclass
class Trials:
    """Each call by name, made ready on ``device`` and held against ``want``.

    ``runs`` holds what may be timed. A call that does not support the shape is ``absent``, one of
    ours that breaks or gives a wrong result has ``failed``, one that no CUDA graph could hold is
    ``eager`` and timed as it is: each with its reason, which the row shows.
    """

    device: Device
    want: Tensor
    runs: dict[str, Callable[[], Any]] = field(default_factory=dict)
    errors: dict[str, float] = field(default_factory=dict)
    rmse: dict[str, float] = field(default_factory=dict)
    absent: dict[str, str] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)
    eager: dict[str, str] = field(default_factory=dict)

    def ours(self, name: str, call: Callable[[], Tensor], budget: float) -> Tensor | None:
        """The result of ``call`` if it is right: from now on it may be timed."""
        try:
            return self._admit(name, call, budget)
        except Exception as e:  # compilers and drivers have exceptions of their own
            reasons = self.absent if unsupported(e) else self.failed
            reasons[name] = first_line(e)
        return None

    def peer(
        self,
        name: str,
        make: Callable[[], Callable[[], Any]],
        budget: float,
        canonical: Callable[[Any], Tensor] = lambda out: out,
    ) -> None:
        """``make`` arranges the call's arguments; ``canonical`` arranges its result."""
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")  # where torch says what a backend lacks
            try:
                self._admit(name, make(), budget, canonical)
            except Exception as e:  # foreign code fails in ways of its own; the row says how
                reasons = [first_line(e), *(str(w.message).split(" (Triggered")[0] for w in said)]
                self.absent[name] = "; ".join(dict.fromkeys(reasons))

    def reject(self, name: str, why: str) -> None:
        """Take a call back that was admitted."""
        del self.runs[name]
        self.failed[name] = why

    def _admit(
        self,
        name: str,
        call: Callable[[], Any],
        budget: float,
        canonical: Callable[[Any], Tensor] = lambda out: out,
    ) -> Tensor:
        ready = self.device.ready(call, graph=True)
        # The result of the very thing that is timed: a replay, where it is a graph.
        out = canonical(ready.run())
        self.errors[name] = relative_error(name, out, self.want, budget)
        self.rmse[name] = (out - self.want).square().mean().sqrt().item()
        self.runs[name] = ready.run
        if ready.eager is not None:
            self.eager[name] = ready.eager
        return out
