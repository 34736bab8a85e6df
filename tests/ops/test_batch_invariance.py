"""With a given number of splits a sequence's bits do not depend on its batch or on threads."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from ridgeline.testing import PagedCase, TiedCase, paged_case, run, tied_case
from ridgeline.testing.run import threads

MAKERS = [paged_case, tied_case]
LENGTHS = [300, 7, 0, 129, 300, 64, 1]


def rows_alone_and_together(case: PagedCase | TiedCase, run_case) -> list[tuple[Tensor, Tensor]]:
    """Per sequence: its output in the whole batch, and alone."""
    together, _ = run_case(case)
    names = ("q",) if isinstance(case, PagedCase) else ("q_nope", "q_rope")
    pairs = []
    for b in range(len(LENGTHS)):
        one = {name: getattr(case, name)[b : b + 1] for name in names}
        one |= {name: getattr(case, name)[b : b + 1] for name in ("block_table", "cache_seqlens")}
        pairs.append((together[b], run_case(replace(case, **one))[0][0]))
    return pairs


def batch_invariant(case: PagedCase | TiedCase, run_case) -> bool:
    return all(torch.equal(x, y) for x, y in rows_alone_and_together(case, run_case))


@pytest.mark.parametrize("num_splits", [1, 2, 3, 7, 64])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=["bf16", "fp32"])
@pytest.mark.parametrize("make", MAKERS)
def test_bits_do_not_depend_on_the_batch(make, dtype, num_splits: int, impl: str) -> None:
    case = make(0, lengths=LENGTHS, dtype=dtype, dim=64, num_splits=num_splits)
    assert batch_invariant(case, lambda c: run(c, impl))


@pytest.mark.parametrize("num_splits", [1, 2, 7])
@pytest.mark.parametrize("make", MAKERS)
def test_bits_do_not_depend_on_threads(make, num_splits: int, cpu_impl: str) -> None:
    case = make(0, lengths=LENGTHS, dim=64, num_splits=num_splits, magnitude=1.0)
    results = []
    for count in (1, 2, 3, 5):
        with threads(count):
            results.append(run(case, cpu_impl))
    for out, lse in results[1:]:
        assert torch.equal(out, results[0][0])
        assert torch.equal(lse, results[0][1])


@pytest.mark.parametrize("make", MAKERS)
def test_the_check_finds_a_batch_dependent_split(make, cpu_impl: str) -> None:
    """Negative control: the number of splits follows the batch size, as a scheduler's would."""
    case = make(0, lengths=LENGTHS, dtype=torch.float32, dim=64, num_splits=1, magnitude=1.0)

    def splits_by_batch(c: PagedCase | TiedCase) -> tuple[Tensor, Tensor]:
        return run(replace(c, num_splits=c.q.shape[0]), cpu_impl)

    assert not batch_invariant(case, splits_by_batch)
