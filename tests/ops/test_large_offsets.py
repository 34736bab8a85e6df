"""Elements more than 2^31 away from a tensor's start; the memory is committed only where touched.

Each stride of a cache in turn is so large that its offset overflows 32 bits; so is the sum of small
ones over a large page id.
"""

from dataclasses import replace

import pytest
import torch

from ridgeline.testing import assert_matches, paged_case, run, tied_case
from ridgeline.testing.cases import DecodeCase
from ridgeline.testing.layouts import FAR, far_along

MAKERS = [paged_case, tied_case]
SMALL = {"dtype": torch.bfloat16, "dim": 8, "kv_heads": 2, "group": 2, "page_size": 4}
OPTIONS = {"lengths": [11, 3], "query_len": 2, "magnitude": 1.0}


def with_far_caches(case: DecodeCase, dim: int) -> DecodeCase:
    caches = {name: getattr(case, name) for name in case.caches}
    return replace(
        case, **{name: far_along(x, min(dim, x.dim() - 2)) for name, x in caches.items()}
    )


@pytest.mark.parametrize("dim", [0, 1, 2], ids=["pages", "tokens", "heads"])
@pytest.mark.parametrize("make", MAKERS)
def test_far_stride(make, dim: int, impl: str) -> None:
    case = make(0, **SMALL, **OPTIONS)
    assert_matches(case, *run(with_far_caches(case, dim), impl))


@pytest.mark.parametrize("make", MAKERS)
def test_page_id_times_page_size_beyond_int32(make, impl: str) -> None:
    """Contiguous caches of more than 2^31 elements, all sequences in the last pages."""
    widths = {"value_dim": 8} if make is paged_case else {"rope_dim": 16}  # 64 elements a page
    case = make(0, **SMALL, **OPTIONS, **widths)
    num_pages = FAR // 64 + 1
    caches = {}
    for name in case.caches:
        x = getattr(case, name)
        assert x[0].numel() == 64
        caches[name] = torch.empty(num_pages, *x.shape[1:], dtype=x.dtype)
        caches[name][-x.shape[0] :] = x
    table = case.block_table + num_pages - x.shape[0]
    assert_matches(case, *run(replace(case, block_table=table, **caches), impl))


@pytest.mark.parametrize("make", MAKERS)
def test_far_queries(make, impl: str) -> None:
    case = make(0, **SMALL, **OPTIONS)
    names = ["q"] if make is paged_case else ["q_nope", "q_rope"]
    far = {name: far_along(getattr(case, name), 0) for name in names}
    assert_matches(case, *run(replace(case, **far), impl))
