"""Timing calls that take turns, so that a change of the machine's speed meets all of them."""

import time
from collections.abc import Callable, Mapping
from statistics import median

Samples = dict[str, list[float]]


def seconds(call: Callable[[], object]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def interleave(calls: Mapping[str, Callable[[], object]], reps: int) -> Samples:
    """Seconds of each call, ``reps`` rounds of all of them in turn.

    A call of each must have warmed caches and code paths up before.
    """
    samples: Samples = {name: [] for name in calls}
    for _ in range(reps):
        for name, call in calls.items():
            samples[name].append(seconds(call))
    return samples


def medians(samples: Samples) -> dict[str, float]:
    return {name: median(x) for name, x in samples.items()}


def drift(samples: list[float]) -> float:
    """How far the medians of the first and the second half lie apart, 0 for not at all."""
    half = len(samples) // 2
    if half == 0:
        return 0.0
    a, b = median(samples[:half]), median(samples[half:])
    return max(a, b) / min(a, b) - 1
