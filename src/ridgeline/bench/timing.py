"""Timing calls that take turns, so that a change of the machine's speed meets all of them."""

import random
import time
from collections.abc import Callable, Hashable, Mapping, Sequence
from statistics import median

ATTEMPTS = 3
MAX_DRIFT = 0.15

Samples = dict[Hashable, list[float]]
Clock = Callable[[Callable[[], object]], float]


def seconds(call: Callable[[], object]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def interleave(
    calls: Mapping[Hashable, Callable[[], object]], reps: int, clock: Clock = seconds
) -> Samples:
    """Seconds of each call, ``reps`` rounds of all of them, each round in an order of its own.

    In a fixed order a call would always meet what the same other one left behind: a core that a
    GEMM has heated runs the next call slower. A call of each must have warmed code paths up before.
    """
    samples: Samples = {name: [] for name in calls}
    draw = random.Random(0)
    for _ in range(reps):
        for name in draw.sample(list(calls), len(calls)):
            samples[name].append(clock(calls[name]))
    return samples


def steady(
    calls: Mapping[Hashable, Callable[[], object]],
    reps: int,
    roofs: Sequence[Hashable],
    clock: Clock = seconds,
) -> tuple[Samples, float]:
    """``interleave`` and the largest drift of those calls that are ``roofs``.

    Measured again, up to ``ATTEMPTS`` times, while a roof drifts by more than ``MAX_DRIFT``.
    """
    for _ in range(ATTEMPTS):
        samples = interleave(calls, reps, clock)
        found = max(drift(samples[name]) for name in roofs)
        if found <= MAX_DRIFT:
            break
    return samples, found


def medians(samples: Samples) -> dict[Hashable, float]:
    return {name: median(x) for name, x in samples.items()}


def drift(samples: list[float]) -> float:
    """How far the medians of the first and the second half lie apart, 0 for not at all."""
    half = len(samples) // 2
    if half == 0:
        return 0.0
    a, b = median(samples[:half]), median(samples[half:])
    return max(a, b) / min(a, b) - 1
