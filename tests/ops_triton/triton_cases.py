"""Small cases for the interpreter, and its dtypes: it multiplies bfloat16 wrongly."""

from dataclasses import replace
from functools import cache
from typing import Any

import torch

from ridgeline.ops.common.triton import INTERPRETED
from ridgeline.testing import MergeCase, PagedCase, TiedCase, merge_case, paged_case, tied_case
from ridgeline.testing.generate import FP8

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
    plain |= {"magnitude": 1.0, "softmax_scale": 0.2, "num_splits": 2, "kv_heads": 1}
    long = {"lengths": [5, 150], "query_len": 1}
    changes = [{"kv_heads": 2}, {"causal": False}, {"magnitude": 1e4}]
    changes += [long | {"num_splits": 0}, long | {"num_splits": 3}]
    if make is paged_case:
        plain |= {"window": None, "softcap": 0.0, "value_dim": 40}
        windows = [(5, None), (None, 0), (7, 1)]
        changes += [{"window": window, "causal": False} for window in windows]
        changes += [{"softcap": 0.5, "magnitude": 3.0}]
    one = {"lengths": [9]}
    changes += [one | {"cache_dtype": FP8, "scale_kind": kind} for kind in ("number", "head", 4)]
    made = [small(make, seed, **plain | change) for seed, change in enumerate(changes)]
    return (*made, *(_beyond_32_bits(make, plain, dim) for dim in range(2 - (make is tied_case))))


def _beyond_32_bits(make: Any, plain: dict[str, Any], dim: int) -> PagedCase | TiedCase:
    """Index 4 along a dim of the caches times a stride below 2^31 wraps to 64: a wrong result.

    Only indices 0 and 4 are read: others would wrap to negative offsets, and crash.
    """
    stride = 2**30 + 16
    shape = {"dtype": torch.float16, "strides": False, "num_splits": 1, "query_len": 1}
    if dim == 0:
        shape |= {"lengths": [4], "page_size": 2, "spare_pages": 3}
    else:
        shape |= {"lengths": [5], "page_size": 5, "spare_pages": 0, "window": (0, 0)}
    case = small(make, 0, **plain | shape)
    if dim == 0:
        case.block_table[0, :2] = torch.tensor([0, 4])
    far = {}
    for name in case.caches:
        x = getattr(case, name)
        strides = [*x.stride()[:dim], stride, *x.stride()[dim + 1 :]]
        far[name] = torch.empty(4 * stride + x.numel(), dtype=x.dtype).as_strided(x.shape, strides)
        far[name].copy_(x)
    return replace(case, **far)
