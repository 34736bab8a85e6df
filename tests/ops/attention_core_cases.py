"""What the C++ kernels of attention are held against: the suite's cases, and larger ones.

The larger ones have more rows than a block, more keys than a step of the softmax, more of both than
a tile of the gradients, and keys enough that the gradients of one head are split.
"""

from collections.abc import Callable
from dataclasses import replace
from functools import cache

import torch
from torch import Tensor

from ridgeline.testing import AttentionCase, attention_case, violations
from ridgeline.testing.suite import cases

NAMES = ("out", "lse", "dq", "dk", "dv")
Run = Callable[[AttentionCase], tuple[Tensor, ...]]
ONE_HEAD = {"kv_heads": 1, "group": 1, "dim": 24, "value_dim": 16, "with_dlse": True}
ONE_HEAD |= {"magnitude": 1.0, "softcap": 0.0, "window": None, "softmax_scale": None}
ONE_HEAD |= {"dtype": torch.float32, "packed": False, "tree": None, "causal": True}


@cache
def core_cases() -> tuple[AttentionCase, ...]:
    changes = [
        {"lengths": [(300, 560)]},
        {"lengths": [(560, 560)], "causal": False, "dtype": torch.bfloat16},
        {"lengths": [(530, 530)], "tree": "nested", "window": (200, 0)},
        {"lengths": [(130, 530)], "group": 5, "causal": False, "window": (60, 20)},
    ]
    large = [attention_case(i, **ONE_HEAD | change) for i, change in enumerate(changes)]
    small = [case for case in cases("attention", fp8=False) if case.q.dtype != torch.float64]
    return (*small, *large)


def core_problem(run: Run) -> str | None:
    """What is wrong with ``run``, or ``None``; an exception counts."""
    for case in core_cases():
        try:
            wrong = violations(case, *run(case))
        except Exception as e:
            wrong = f"raised {type(e).__name__}: {e}"
        if wrong:
            return f"{wrong}\n{case}"
    return _spoilt_by_nan(run)


def _spoilt_by_nan(run: Run) -> str | None:
    for case, garbage in unseen_rows():
        for name, x, y in zip(NAMES, run(case), run(garbage), strict=True):
            if not torch.equal(x, y):
                return f"{name}: depends on rows that nobody sees\n{case}"
    case = attention_case(5, **ONE_HEAD | {"group": 2, "strides": False}, lengths=[(70, 70)])
    v = case.v.clone()
    v[:, 37:] = torch.nan
    if not torch.equal(run(case)[0][:, :37], run(replace(case, v=v))[0][:, :37]):
        return f"out: depends on later values\n{case}"
    return None


@cache
def unseen_rows(dtype: torch.dtype = torch.float32) -> tuple[tuple[AttentionCase, ...], ...]:
    """Cases, and each with NaN in keys that no query sees, or in queries that see nothing."""
    options = ONE_HEAD | {"group": 2, "dtype": dtype, "strides": False}
    left = attention_case(
        3, **options | {"causal": False, "window": (19, None)}, lengths=[(60, 100)]
    )
    early = attention_case(4, **options, lengths=[(101, 60)])
    return (
        (left, _with_nan(left, 21, "k", "v")),  # the first query stands at key 40
        (early, _with_nan(early, 41, "q", "dout", "dlse")),  # query 41 stands at key 0
    )


def _with_nan(case: AttentionCase, rows: int, *names: str) -> AttentionCase:
    changed = {}
    for name in names:
        changed[name] = getattr(case, name).clone()
        changed[name][:, :rows] = torch.nan
    return replace(case, **changed)
