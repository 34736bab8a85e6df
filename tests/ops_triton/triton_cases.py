"""Small cases for the interpreter, and its dtypes: it multiplies bfloat16 wrongly."""

from typing import Any

import torch

from ridgeline.ops.common.triton import INTERPRETED
from ridgeline.testing import PagedCase, TiedCase, paged_case, tied_case

DTYPES = (torch.float16, torch.float32) + (() if INTERPRETED else (torch.bfloat16,))
HALF = torch.float16 if INTERPRETED else torch.bfloat16
MAKERS = [paged_case, tied_case]
SMALL = {"kv_heads": 2, "group": 3, "query_len": 2, "dim": 40, "page_size": 8}
LENGTHS = [41, 7, 0, 64, 130]


def small(make: Any, seed: int, **chosen: Any) -> PagedCase | TiedCase:
    widths = {"value_dim": 24} if make is paged_case else {"rope_dim": 16}
    return make(seed, DTYPES, **SMALL | {"lengths": LENGTHS} | widths | chosen)
