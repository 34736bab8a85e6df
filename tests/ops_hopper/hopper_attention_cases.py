"""Cases of the Hopper attention kernels, and running them."""

import random
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from ridgeline.ops.attention.hopper import forward
from ridgeline.ops.attention.hopper.config import ForwardConfig
from ridgeline.ops.common.triton import INTERPRETED
from ridgeline.testing import AttentionCase
from ridgeline.testing.generate_attention import attention_case
from ridgeline.testing.run import launch_attention, on_device

DTYPES = (torch.bfloat16, torch.float16)
PLAIN = {
    "packed": False,
    "lengths": [(140, 170)],
    "kv_heads": 1,
    "group": 2,
    "dim": 64,
    "causal": False,
    "window": None,
    "softcap": 0.0,
    "softmax_scale": None,
    "tree": None,
    "strides": False,
    "magnitude": 1.0,
    "with_dlse": False,
}
PACKED = {"packed": True, "lengths": [(90, 90), (0, 5), (20, 140), (5, 0), (3, 70)]}


def plain(seed: int, **chosen: Any) -> AttentionCase:
    widths = {"value_dim": chosen.get("dim", 64)}
    return attention_case(seed, DTYPES, **PLAIN | widths | chosen)


def drawn(seed: int) -> AttentionCase:
    """A random case, of lengths that take several tiles."""
    rng = random.Random(seed)
    longest = rng.choice([70, 140, 200])
    pairs = [(longest, longest), (longest // 3, longest), (longest, longest // 2), (0, 9), (7, 0)]
    packed = rng.random() < 0.6
    lengths = rng.sample(pairs, 3) if packed else [rng.choice(pairs[:3])] * rng.choice([1, 2])
    dim = rng.choice([64, 96, 128, 192, 256, 40, 17, 80])
    return attention_case(
        seed,
        DTYPES,
        packed=packed,
        lengths=lengths,
        kv_heads=rng.choice([1, 2]),
        group=rng.choice([1, 2, 3]),
        dim=dim,
        value_dim=128 if dim == 192 else rng.choice([dim, dim, 24]),
    )


def config_of(case: AttentionCase, **changes: Any) -> ForwardConfig:
    """The tiling that is chosen for a case, with ``changes``."""
    config = forward.config_for(case.q, case.k, case.v, len(case.sequences()))
    return replace(config, **changes)


def run(
    case: AttentionCase, seed: int = 0, *, fill: float = torch.nan, **changes: Any
) -> tuple[Tensor, Tensor]:
    """``out`` and ``lse`` by the kernels, with ``changes`` to the tiling that is chosen.

    Outputs begin filled with ``fill``. ``seed`` is that of the interpreter's schedule.
    """
    launchers = (forward.forward, None)
    if INTERPRETED:
        from ridgeline.testing.gluon import interpreted

        config = config_of(case, **changes)
        with interpreted(seed=seed):
            return launch_attention(*launchers, case, fill, False, config=config)
    case = on_device("cuda", case)
    config = config_of(case, **changes)
    return tuple(x.cpu() for x in launch_attention(*launchers, case, fill, False, config=config))
