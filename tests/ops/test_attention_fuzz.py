"""``attention`` and its gradients: random cases against the float64 oracle."""

from functools import lru_cache

import pytest
import torch

from ridgeline.ops.attention import cpu
from ridgeline.testing import (
    AttentionCase,
    assert_matches,
    attention_case,
    attention_implementations,
    run,
)
from ridgeline.testing.generate import KERNEL_DTYPES
from ridgeline.testing.run import threads

# Seeds outermost: the truth of a case is computed once for all implementations.
SEEDS = [
    pytest.param(impl, seed, id=f"{impl}-{seed}")
    for seed in range(250)
    for impl in attention_implementations()
]


@lru_cache(maxsize=4)
def case_of(seed: int) -> AttentionCase:
    return attention_case(seed)


@pytest.mark.parametrize(("implementation", "seed"), SEEDS)
def test_forward_and_backward(implementation: str, seed: int) -> None:
    case = case_of(seed)
    if implementation != "reference" and cpu.unsupported(case.q, case.k, case.v):
        with pytest.raises(ValueError, match="impl='cpu'"):
            run(case, "cpu")
        return
    with threads(2 if seed % 4 == 0 else 1):
        results = run(case, implementation)
    assert_matches(case, *results)


@pytest.mark.parametrize("seed", range(60))
def test_reference_in_float64(seed: int) -> None:
    case = attention_case(seed, dtype=torch.float64)
    results = run(case, "reference")
    assert {x.dtype for x in results} == {torch.float64}
    assert_matches(case, *results)


@pytest.mark.parametrize("seed", range(20))
def test_auto(seed: int) -> None:
    case = attention_case(seed, dtypes=(*KERNEL_DTYPES, torch.float64))
    assert_matches(case, *run(case, "auto"))


def test_the_draws_cover_the_corners() -> None:
    cases = [attention_case(seed) for seed in range(300)]
    lengths = []
    for case in cases:
        for rows, keys in case.sequences():
            pair = (len(case.q[rows]), len(case.k[keys]))
            lengths.append(pair)
    heads = {(case.q.shape[-2] // case.k.shape[-2], case.k.shape[-2]) for case in cases}
    for a, b in ((0, 0), (0, 1), (1, 0)):
        assert any((x > 0, y > 0) == (a > 0, b > 0) for x, y in lengths)
    assert any(0 < x < y for x, y in lengths)
    assert any(x > y > 0 for x, y in lengths)
    assert any(x == y > 128 for x, y in lengths)
    assert any(case.q.dim() == 3 for case in cases)
    assert any(case.q.dim() == 4 for case in cases)
    assert any(case.q.shape[0] == 0 for case in cases)
    assert any(group == 1 and kv > 1 for group, kv in heads)
    assert any(group > 1 and kv == 1 for group, kv in heads)
    assert any(group > 1 and kv > 1 for group, kv in heads)
    assert any(case.q.shape[-1] % 2 and case.q.shape[-1] > 1 for case in cases)
    assert any(case.q.shape[-1] > case.v.shape[-1] for case in cases)
    assert any(case.q.shape[-1] < case.v.shape[-1] for case in cases)
    for name in ("q", "k", "v", "dout", "dlse"):
        given = [x for case in cases if (x := getattr(case, name)) is not None and x.numel()]
        assert any(not x.is_contiguous() for x in given)
        assert any(x.is_contiguous() for x in given)
    assert any(case.subtree_end is None and case.causal for case in cases)
    assert any(case.subtree_end is not None and case.window for case in cases)
    assert any(case.subtree_end is not None and case.q.dim() == 4 for case in cases)
    assert any(case.dlse is None for case in cases)
    assert any(case.softcap for case in cases)
