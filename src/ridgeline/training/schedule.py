"""The learning rate as a pure function of the step."""

import math


def learning_rate(step: int, *, peak: float, warmup: int, steps: int, floor: float) -> float:
    """Linear warm-up to ``peak``, then a cosine down to ``floor * peak`` at the last step.

    Args:
        step: optimizer step, from 0 to ``steps - 1``.
        warmup: steps of the warm-up; the first step already has ``peak / warmup``.
        floor: last learning rate as a fraction of the peak.
    """
    if step < warmup:
        return peak * (step + 1) / warmup
    progress = (step - warmup) / max(1, steps - 1 - warmup)
    return peak * (floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * min(progress, 1.0))))
