"""Small cases for the interpreter, and its dtypes: it multiplies bfloat16 wrongly."""

from functools import cache
from typing import Any

import torch

from ridgeline.ops.common.triton import INTERPRETED
from ridgeline.testing import MergeCase, PagedCase, TiedCase, merge_case, paged_case, tied_case
from ridgeline.testing.generate import FP8
from ridgeline.testing.suite import far

DTYPES = (torch.float16, torch.float32) + (() if INTERPRETED else (torch.bfloat16,))
HALF = torch.float16 if INTERPRETED else torch.bfloat16
MAKERS = [paged_case, tied_case]
SMALL = {"kv_heads": 2, "group": 3, "query_len": 2, "dim": 40, "page_size": 8}
LENGTHS = [70, 0, 23]


def small(make: Any, seed: int, **chosen: Any) -> PagedCase | TiedCase:
    widths = {"value_dim": 24} if make is paged_case else {"rope_dim": 16}
    return make(seed, DTYPES, **SMALL | {"lengths": LENGTHS} | widths | chosen)


@cache
def compact(op: str) -> tuple[PagedCase | TiedCase | MergeCase, ...]:
    """A suite for planted bugs: few and cheap cases, each with a purpose."""
    if op == "merge":
        shape = {"rows": (2, 3), "dim": 17, "dtype": torch.float32}
        return tuple(merge_case(s, **shape, magnitude=1.0, parts=(3, 20)[s % 2]) for s in range(6))
    make = paged_case if op == "paged_decode" else tied_case
    plain = {"lengths": [37, 2], "query_len": 3, "dtype": torch.float32, "causal": True}
    plain |= {"magnitude": 1.0, "softmax_scale": 0.2, "num_splits": 2}
    long = {"lengths": [5, 150], "kv_heads": 1, "query_len": 1}
    changes = [{}, {"causal": False}, long | {"num_splits": 0}, long | {"num_splits": 3}]
    changes += [{"magnitude": 1e4}, {"query_len": 1, "kv_heads": 4, "group": 1}]
    changes += [{"cache_dtype": FP8, "scale_kind": kind} for kind in ("number", "head", 4)]
    if make is paged_case:
        plain |= {"window": None, "softcap": 0.0, "value_dim": 40}
        changes += [{"softcap": 0.5, "magnitude": 3.0}]
        windows = [(5, None), (None, 0), (7, 1)]
        changes += [{"window": window, "causal": False} for window in windows]
    made = [small(make, seed, **plain | change) for seed, change in enumerate(changes)]
    two = {
        "num_splits": 1,
        "lengths": [4],
        "page_size": 2,
        "spare_pages": 0,
        "dtype": torch.float16,
    }
    return (*made, far(small(make, 0, **plain | two)))
