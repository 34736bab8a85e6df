"""A compact suite that tells a right implementation from a wrong one, given as a callable.

``problem(run, op)`` hands every case of the suite to ``run(case) -> (out, lse)``, for ``attention``
``(out, lse, dq, dk, dv)``, compares with the oracle and, for decode operations, repeats it with
poison where nothing may be read. The cases are few and each has a purpose, so that a whole set of
planted bugs is checked in seconds.
"""

from collections.abc import Callable
from dataclasses import replace
from functools import cache
from typing import Literal

import torch
from torch import Tensor

from ridgeline.testing.cases import AttentionCase, Case, DecodeCase, MergeCase
from ridgeline.testing.generate import DIMS, FP8, merge_case, paged_case, tied_case
from ridgeline.testing.generate_attention import attention_case
from ridgeline.testing.layouts import far_along
from ridgeline.testing.poison import poisoned
from ridgeline.testing.tolerance import violations

Op = Literal["attention", "paged_decode", "tied_decode", "merge"]
Run = Callable[[Case], tuple[Tensor, ...]]

F32, F64 = torch.float32, torch.float64
_PLAIN = {"magnitude": 1.0, "softcap": 0.0, "window": None, "causal": True, "strides": True}
_SHAPE = {"lengths": [37, 9, 0, 16, 2], "page_size": 8, "query_len": 3, "kv_heads": 2, "group": 3}
# Query rows of a cached head, 1 to 40, as kernels block them; widths of a part of a vector to many.
_ROWS = [
    ({"query_len": length, "kv_heads": heads, "group": group}, dim)
    for length, heads, group, dim in (
        (1, 2, 1, 64),
        (2, 1, 1, 100),
        (1, 1, 3, 17),
        (1, 2, 4, 128),
        (1, 1, 7, 80),
        (2, 1, 6, 76),
        (3, 1, 5, 3),
        (5, 1, 4, 40),
        (1, 1, 32, 96),
        (5, 1, 8, 20),
    )
]
_TWO_PAGES = {"lengths": [4], "page_size": 2, "spare_pages": 0}


@cache
def cases(
    op: Op, fp8: bool = False, half: torch.dtype = torch.bfloat16, double: bool = True
) -> tuple[Case, ...]:
    """The suite of one operation; ``fp8`` adds caches in float8_e4m3fn, ``double`` float64.

    ``half`` is what most 16-bit cases are in.
    """
    match op:
        case "attention":
            return _attention(half, double)
        case "paged_decode":
            return _paged(fp8, half)
        case "tied_decode":
            return _tied(fp8, half)
        case "merge":
            shape = {"rows": (2, 3), "dim": 17}
            return (
                *(merge_case(s, **shape, magnitude=1.0, dtype=F32) for s in range(6)),
                *(merge_case(s, **shape, magnitude=1e3) for s in range(6)),
                *(merge_case(s, parts=1, dtype=half) for s in range(3)),
            )


def problem(run: Run, op: Op, *, fp8: bool = False) -> str | None:
    """What is wrong with ``run`` as an implementation of ``op``, or ``None``.

    An exception counts: every case is valid input.
    """
    for case in cases(op, fp8):
        try:
            results = run(case)
            wrong = violations(case, *results)
            of_decode = not isinstance(case, MergeCase | AttentionCase)
            if wrong is None and of_decode and not _is_far(case):
                wrong = _reads_poison(run, case, *results)
        except Exception as e:
            wrong = f"raised {type(e).__name__}: {e}"
        if wrong:
            return f"{wrong}\n{case}"
    return None


def _reads_poison(run: Run, case: DecodeCase, out: Tensor, lse: Tensor) -> str | None:
    for value, entry in ((torch.nan, 2147480000), (1e30, -7)):
        again = run(poisoned(case, value, entry))
        if not (torch.equal(again[0], out) and torch.equal(again[1], lse)):
            return f"the result depends on memory that no query sees (set to {value})"
    return None


def _far(case: DecodeCase) -> DecodeCase:
    """The case with its first cache's pages, and its second one's tokens, beyond 32-bit offsets.

    Of two indices along a far dim the second is at ``FAR``, which wraps into the buffer: a wrong
    result, not a crash.
    """
    first, second = case.caches
    caches = {
        first: far_along(getattr(case, first), 0),
        second: far_along(getattr(case, second), 1),
    }
    return replace(case, **caches)


def _is_far(case: DecodeCase) -> bool:
    return getattr(case, case.caches[0]).untyped_storage().nbytes() > 2**31


def _paged(fp8: bool, half: torch.dtype) -> tuple[DecodeCase, ...]:
    plain = _PLAIN | _SHAPE | {"dim": 40, "value_dim": 24, "softmax_scale": None}
    made = [
        paged_case(0, **plain | {"dtype": F32}),
        paged_case(1, **plain | {"dtype": half}),
        paged_case(2, **plain | {"dtype": torch.float16, "value_dim": 64}),
        paged_case(3, **plain | {"dtype": F32, "causal": False}),
        paged_case(4, **plain | {"dtype": F32, "softmax_scale": 0.05}),
        paged_case(5, **plain | {"dtype": F32, "softmax_scale": -0.2}),
        paged_case(6, **plain | {"dtype": F32, "softcap": 0.5, "magnitude": 3.0}),
        paged_case(7, **plain | {"dtype": F32, "magnitude": 1e4}),
        paged_case(8, **plain | {"dtype": F32, "page_size": 1}),
        paged_case(9, **plain | {"dtype": F32, "lengths": [130, 64, 1], "page_size": 64}),
        paged_case(10, **plain | {"dtype": F32, "query_len": 1, "lengths": [300, 5]}),
        paged_case(11, **plain | {"dtype": F32, "kv_heads": 1, "group": 8}),
        paged_case(12, **plain | {"dtype": F32, "kv_heads": 4, "group": 1, "dim": 17}),
    ]
    windows = [(0, 0), (5, None), (5, 0), (None, 0), (None, 1), (8, 2), (1000, 1000)]
    for seed, window in enumerate(windows):
        made.append(paged_case(seed, **plain | {"dtype": F32, "causal": False, "window": window}))
    made.append(paged_case(20, **plain | {"dtype": F32, "window": (7, 3)}))
    for splits in (1, 2, 7, 64):
        made.append(paged_case(splits, **plain | {"dtype": F32, "num_splits": splits}))
    made.append(_far(paged_case(0, **plain | _TWO_PAGES | {"dtype": half})))
    for n, (heads, dim) in enumerate(_ROWS):
        shape = heads | {"dim": dim, "value_dim": DIMS[-n % 9], "lengths": [150, 301]}
        made.append(paged_case(n, **plain | shape | {"dtype": half, "num_splits": n % 4}))
    # More bytes a token than any kernel works on at once.
    wide = {"kv_heads": 24, "group": 1, "dim": 192, "value_dim": 80, "lengths": [40]}
    made.append(paged_case(0, **plain | wide | {"dtype": F32}))
    long = {"lengths": [700, 300], "dim": 8, "value_dim": 8, "dtype": F32, "num_splits": 3}
    made.append(paged_case(0, **plain | long))
    if fp8:
        for seed, kind in enumerate(("number", "head", 1, 4)):
            fp8_cache = {"dtype": F32, "cache_dtype": FP8, "scale_kind": kind}
            made.append(paged_case(seed, **plain | fp8_cache))
    return tuple(made)


def _tied(fp8: bool, half: torch.dtype) -> tuple[DecodeCase, ...]:
    plain = {k: v for k, v in _PLAIN.items() if k not in ("softcap", "window")}
    plain |= _SHAPE | {"dim": 40, "nope_dim": 40, "rope_dim": 16, "softmax_scale": 0.15}
    gta = {"nope_dim": 20, "rope_dim": 20, "strides": "records"}
    made = [
        tied_case(0, **plain | {"dtype": F32}),
        tied_case(1, **plain | gta | {"dtype": F32}),
        tied_case(2, **plain | {"dtype": half, "strides": "records"}),
        tied_case(3, **plain | {"dtype": torch.float16}),
        tied_case(4, **plain | {"dtype": F32, "rope_dim": 0}),
        tied_case(5, **plain | {"dtype": F32, "kv_heads": 1, "group": 16, "nope_dim": 1}),
        tied_case(6, **plain | {"dtype": F32, "causal": False}),
        tied_case(7, **plain | {"dtype": F32, "softmax_scale": -0.1}),
        tied_case(8, **plain | {"dtype": F32, "magnitude": 1e4}),
        tied_case(9, **plain | {"dtype": F32, "page_size": 1, "query_len": 1}),
        tied_case(10, **plain | {"dtype": F32, "lengths": [130, 64, 1], "page_size": 64}),
        tied_case(
            11, **plain | gta | {"dtype": F32, "kv_heads": 4, "group": 2, "dim": 17, "nope_dim": 9}
        ),
    ]
    for splits in (1, 2, 7, 64):
        made.append(tied_case(splits, **plain | {"dtype": F32, "num_splits": splits}))
    made.append(_far(tied_case(0, **plain | _TWO_PAGES | {"dtype": half})))
    for n, (heads, dim) in enumerate(_ROWS):
        shape = heads | {"dim": dim, "nope_dim": max(1, dim - 4 * n), "lengths": [150, 301]}
        made.append(tied_case(n, **plain | shape | {"dtype": half, "num_splits": n % 4}))
    if fp8:
        for seed, kind in enumerate(("number", "head", 1, 4)):
            fp8_cache = {"dtype": F32, "cache_dtype": FP8, "scale_kind": kind}
            made.append(tied_case(seed, **plain | fp8_cache))
    return tuple(made)


def _attention(half: torch.dtype, double: bool) -> tuple[AttentionCase, ...]:
    plain = {"magnitude": 1.0, "softcap": 0.0, "window": None, "softmax_scale": None}
    plain |= {"tree": None, "causal": True, "kv_heads": 2, "group": 3, "dim": 40, "value_dim": 24}
    plain |= {"packed": True, "lengths": [(37, 37), (5, 40), (0, 3), (4, 0), (9, 6)]}
    plain |= {"with_dlse": True, "strides": True, "dtype": F32}
    batch = {"packed": False, "lengths": [(13, 33)] * 3}
    changes = [
        {},
        {"dtype": half},
        {"dtype": torch.float16, "value_dim": 64},
        {"dtype": F64} if double else {},
        {"causal": False},
        {"with_dlse": False},
        {"softmax_scale": 0.05},
        {"softmax_scale": -0.2},
        {"softcap": 0.5, "magnitude": 3.0},
        {"softcap": 30.0, "magnitude": 1e2},
        {"magnitude": 1e4},
        {"kv_heads": 1, "group": 8},
        {"kv_heads": 4, "group": 1, "dim": 17},
        {"tree": "nested"},
        {"tree": "any"},
        {"tree": "nested", "causal": False, "window": (8, 3)},
        {"lengths": [(130, 300), (1, 65)], "group": 1, "kv_heads": 1},
        {"lengths": [(150, 150)], "group": 2, "kv_heads": 1, "tree": "nested"},
        batch,
        batch | {"tree": "nested", "dtype": half},
        batch | {"lengths": [(33, 13)] * 2, "causal": False},
        batch | {"strides": False, "value_dim": 80, "dim": 128},
    ]
    windows = [(0, 0), (5, None), (5, 0), (None, 0), (None, 1), (8, 2), (1000, 1000)]
    changes += [{"causal": False, "window": window} for window in windows]
    return tuple(attention_case(seed, **plain | change) for seed, change in enumerate(changes))
