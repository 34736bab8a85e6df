"""Cases of the Hopper kernels, and running them."""

import random
from typing import Any

import torch
from torch import Tensor

from ridgeline.ops.common.triton import INTERPRETED
from ridgeline.testing import PagedCase, TiedCase, paged_case, tied_case
from ridgeline.testing.run import launch_decode, on_device

DTYPES = (torch.bfloat16, torch.float16)
MAKERS = [paged_case, tied_case]
SMALL = {"kv_heads": 2, "group": 3, "query_len": 2, "dim": 40, "page_size": 8}
LENGTHS = [70, 0, 150]


def small(make: Any, seed: int, **chosen: Any) -> PagedCase | TiedCase:
    widths = {"value_dim": 24} if make is paged_case else {"rope_dim": 16}
    return make(seed, DTYPES, **SMALL | {"lengths": LENGTHS} | widths | chosen)


def drawn(seed: int) -> tuple[PagedCase | TiedCase, dict[str, int]]:
    """A random case, and changes to the tiling that is chosen for it."""
    rng = random.Random(seed)
    heads = rng.choice([(1, 1), (1, 8), (1, 16), (2, 3), (2, 12), (4, 2), (4, 5), (1, 40), (2, 33)])
    kv_heads, group = heads
    dim = rng.choice([64, 128, 40, 17, 96])
    chosen = {
        "kv_heads": kv_heads,
        "group": group,
        "dim": dim,
        "query_len": rng.choice([1, 1, 2, 4]),
        "page_size": rng.choice([1, 3, 8, 16, 32, 64, 64, 128, 100]),
        "lengths": rng.choice([[70, 3], [0, 130], [300], [64, 65, 1, 128], [5, 0, 0, 200]]),
        "num_splits": rng.choice([0, 0, 0, 1, 2, 5]),
    }
    changes = {}
    if rng.random() < 0.4:
        changes["stages"] = rng.choice([2, 4])
    if rng.random() < 0.3:
        changes["q_stages"] = 1
    if seed % 2:
        chosen["nope_dim"] = rng.choice([dim, max(1, dim // 2)])
        chosen["rope_dim"] = rng.choice([0, 16, 32, 17, 64])
        return tied_case(seed, DTYPES, **chosen), changes
    chosen["value_dim"] = rng.choice([dim, 64, 24])
    return paged_case(seed, DTYPES, **chosen), changes


def run(
    case: PagedCase | TiedCase, seed: int = 0, *, fill: float = torch.nan, **changes: int
) -> tuple[Tensor, Tensor]:
    """``out`` and ``lse`` by the kernels, with ``changes`` to the tiling that is chosen.

    Outputs begin filled with ``fill``. ``seed`` is that of the interpreter's schedule.
    """
    if INTERPRETED:
        from ridgeline.testing.gluon import interpreted

        with interpreted(seed=seed):
            return launch_decode(case, "hopper", fill, **changes)
    out, lse = launch_decode(on_device("cuda", case), "hopper", fill, **changes)
    return out.cpu(), lse.cpu()
