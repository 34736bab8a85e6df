"""Cases of ``paged_decode`` with many queries, by the forward kernel of ``attention``."""

import random
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from ridgeline.ops.attention.hopper.config import ForwardConfig, forward_config
from ridgeline.ops.attention.hopper.paged_config import REGISTERS
from ridgeline.ops.common.triton import INTERPRETED
from ridgeline.testing import PagedCase, paged_case
from ridgeline.testing.run import launch_decode, on_device

DTYPES = (torch.bfloat16, torch.float16)
PLAIN = {
    "lengths": [150, 0, 70, 20],
    "query_len": 40,
    "kv_heads": 1,
    "group": 2,
    "dim": 64,
    "page_size": 16,
    "causal": True,
    "window": None,
    "softcap": 0.0,
    "softmax_scale": None,
    "strides": False,
    "magnitude": 1.0,
    "num_splits": 0,
}


def plain(seed: int, **chosen: Any) -> PagedCase:
    widths = {"value_dim": chosen.get("dim", 64)}
    return paged_case(seed, DTYPES, **PLAIN | widths | chosen)


def drawn(seed: int) -> tuple[PagedCase, dict[str, int]]:
    """A random case, and changes to the tiling that is chosen for it."""
    rng = random.Random(seed)
    dim = rng.choice([64, 96, 128, 256, 40, 80, 192])
    case = paged_case(
        seed,
        DTYPES,
        lengths=rng.choice([[130, 3], [0, 64], [200], [64, 65, 1, 128], [5, 0, 90]]),
        query_len=rng.choice([33, 66, 100]),
        kv_heads=rng.choice([1, 2]),
        group=rng.choice([1, 2, 3, 4]),
        dim=dim,
        value_dim=128 if dim == 192 else rng.choice([dim, dim, 24]),
        page_size=rng.choice([8, 16, 16, 32, 48, 64, 64, 128, 192, 256]),
        window=rng.choice([None, None, (20, None), (9, 5), (None, 70), (0, 0)]),
        softmax_scale=None,
        strides=False,
        num_splits=rng.choice([0, 1]),
    )
    return case, rng.choice([{}, {"block_n": 32}, {"stages": 2}, {"consumers": 1}])


def config_of(case: PagedCase) -> ForwardConfig:
    """The tiling that is chosen for a case, or would be if it had more queries."""
    _, query_len, heads, dim = case.q.shape
    value_dim, group = case.v_cache.shape[3], heads // case.k_cache.shape[2]
    return replace(forward_config(dim, value_dim, query_len, group), **REGISTERS)


def run(
    case: PagedCase, seed: int = 0, *, fill: float = torch.nan, **changes: Any
) -> tuple[Tensor, Tensor]:
    """``out`` and ``lse`` by the forward kernel, with ``changes`` to its tiling of the case.

    Outputs begin filled with ``fill``. ``seed`` is that of the interpreter's schedule.
    """
    config = config_of(case)
    if INTERPRETED:
        from ridgeline.testing.gluon import interpreted

        with interpreted(seed=seed):
            return launch_decode(case, "hopper", fill, config, **changes)
    out, lse = launch_decode(on_device("cuda", case), "hopper", fill, config, **changes)
    return out.cpu(), lse.cpu()
