"""Cases of the Hopper backward, and running it."""

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from ridgeline.ops.attention import reference
from ridgeline.ops.attention.hopper import backward
from ridgeline.ops.attention.hopper.backward_config import backward_config
from ridgeline.ops.common.triton import INTERPRETED
from ridgeline.testing import AttentionCase, attention_case
from ridgeline.testing.run import launch_attention, on_device

SMALL = {
    "dtype": torch.bfloat16,
    "packed": False,
    "lengths": [(150, 170)],
    "kv_heads": 1,
    "group": 1,
    "dim": 64,
    "value_dim": 64,
    "softmax_scale": None,
    "magnitude": 1.0,
    "causal": True,
    "window": None,
    "softcap": 0.0,
    "tree": None,
    "strides": True,
    "with_dlse": True,
}
# By registers, and by shared memory: 64 keys a program.
SHARED = {"block_m": 64, "block_n": 64, "shared": True}


class Replayed:
    """``prepare_kernel``, by Triton's interpreter once for the same inputs: it takes its time."""

    def __init__(self) -> None:
        self.kernel, self.found = backward.prepare_kernel, {}

    def __getitem__(self, grid: tuple) -> Callable[..., None]:
        def launch(*args: Any, **options: Any) -> None:
            inputs, (delta, shift) = args[:4], args[4:6]
            values = (x if x is None else x.double().numpy().tobytes() for x in inputs)
            key = (grid, delta.shape, *values)
            if key not in self.found:
                self.kernel[grid](*args, **options)
                self.found[key] = delta.clone(), shift.clone()
            delta.copy_(self.found[key][0])
            shift.copy_(self.found[key][1])

        return launch


def small(seed: int = 0, **chosen: Any) -> AttentionCase:
    return attention_case(seed, **SMALL | chosen)


def gradients(
    case: AttentionCase, seed: int = 0, *, deterministic: bool = False, **changes: Any
) -> tuple[Tensor, ...]:
    """``out`` and ``lse`` by the reference, then dq, dk and dv by the kernels.

    Outputs begin filled with NaN; ``changes`` are to the tiling. ``seed`` is that of the
    interpreter's schedule.
    """

    def run(*args: Any) -> None:
        config = replace(backward_config(case.q.shape[-1], case.v.shape[-1]), **changes)
        scheduled = nullcontext()
        if INTERPRETED:
            from ridgeline.testing.gluon import interpreted

            scheduled = interpreted(seed=seed)
        with scheduled:
            backward.backward(*args, deterministic=deterministic, config=config)

    case = case if INTERPRETED else on_device("cuda", case)
    found = launch_attention(reference.forward, run, case, torch.nan, True)
    return tuple(x.cpu() for x in found)
