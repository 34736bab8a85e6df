"""A corrupted length or page id is refused or, where no query looks, without effect."""

import random
from dataclasses import replace

import pytest
import torch

from ridgeline.testing import paged_case, run, tied_case
from ridgeline.testing.cases import read_by

GARBAGE = (-1, -7, 2147480000, 2**31 - 1, -(2**31))


@pytest.mark.parametrize("make", [paged_case, tied_case])
def test_page_ids(make, impl: str) -> None:
    refused = 0
    for seed in range(60):
        case = make(seed)
        if case.block_table.numel() == 0:
            continue
        rng = random.Random(seed)
        b, entry = (rng.randrange(n) for n in case.block_table.shape)
        table = case.block_table.clone()
        table[b, entry] = rng.choice(GARBAGE)
        page_size = getattr(case, case.caches[0]).shape[1]
        if entry in {t // page_size for t in read_by(case, b)}:
            refused += 1
            with pytest.raises(ValueError, match="block_table"):
                run(replace(case, block_table=table), impl)
        elif not _may_be_checked(case, b, entry, page_size):
            got, want = run(replace(case, block_table=table), impl), run(case, impl)
            assert torch.equal(got[0], want[0])
    assert refused > 10


@pytest.mark.parametrize("make", [paged_case, tied_case])
def test_lengths(make, impl: str) -> None:
    for seed in range(40):
        case = make(seed)
        if case.cache_seqlens.numel() == 0:
            continue
        rng = random.Random(seed)
        capacity = case.block_table.shape[1] * getattr(case, case.caches[0]).shape[1]
        lengths = case.cache_seqlens.clone()
        bad = rng.choice((*GARBAGE, capacity + 1))
        lengths[rng.randrange(len(lengths))] = bad
        with pytest.raises(ValueError, match=f"cache_seqlens.*{bad}"):
            run(replace(case, cache_seqlens=lengths), impl)


def _may_be_checked(case, b: int, entry: int, page_size: int) -> bool:
    """An entry of a page with tokens that no query sees, but not wholly behind the window."""
    return read_by(case, b).stop <= entry * page_size < int(case.cache_seqlens[b])
