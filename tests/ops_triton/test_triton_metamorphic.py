"""Relations between calls: what changes no bit of a result, and what changes it within rounding."""

from dataclasses import replace

import pytest
import torch
from triton_cases import LENGTHS, MAKERS, small

import ridgeline
from ridgeline.testing import PagedCase, TiedCase, assert_matches, paged_case, run, tied_case
from ridgeline.testing.layouts import far_along

FEW = {"kv_heads": 1, "query_len": 1}


def equal(a, b) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


def sequences(case: PagedCase | TiedCase, order: list[int]) -> PagedCase | TiedCase:
    names = ["q"] if isinstance(case, PagedCase) else ["q_nope", "q_rope"]
    names += ["block_table", "cache_seqlens"]
    return replace(case, **{name: getattr(case, name)[order] for name in names})


@pytest.mark.parametrize("num_splits", [1, 3])
@pytest.mark.parametrize("make", MAKERS)
def test_bits_do_not_depend_on_the_batch(make, num_splits: int) -> None:
    case = small(make, 0, **FEW, num_splits=num_splits)
    together = run(case, "triton-16")
    for b in range(len(LENGTHS)):
        alone = run(sequences(case, [b]), "triton-16")
        assert equal(alone, [x[b : b + 1] for x in together])
    turned = run(sequences(case, [2, 1, 0]), "triton-16")
    assert equal(turned, [x.flip(0) for x in together])


def test_the_check_finds_a_batch_dependent_split() -> None:
    """Negative control: the balanced schedule cuts by what else is in the batch."""
    case = small(paged_case, 0, **FEW, dtype=torch.float32, num_splits=0, magnitude=1.0)
    case = sequences(replace(case, window=None, softcap=0.0), [0] * 5)
    together = run(case, "triton-16")[0]
    alone = run(sequences(case, [0]), "triton-16")[0]
    assert not all(torch.equal(alone[0], row) for row in together)


@pytest.mark.parametrize("num_splits", [0, 2, 1000])
@pytest.mark.parametrize("make", MAKERS)
def test_number_of_splits_changes_nothing_but_rounding(make, num_splits: int) -> None:
    case = small(make, 2, **FEW, num_splits=num_splits)
    result = run(case, "triton-16")
    assert_matches(case, *result)
    assert equal(run(case, "triton-16"), result)


@pytest.mark.parametrize("batch", [1, 130])
def test_balanced_schedule_of_few_and_many_sequences(batch: int) -> None:
    """One sequence is cut into many parts; more sequences are read than fit one vector."""
    lengths = [700] if batch == 1 else [n % 50 // 49 * 20 for n in range(batch)]
    case = small(
        paged_case,
        4,
        **FEW,
        lengths=lengths,
        group=1,
        dim=8,
        value_dim=8,
        page_size=16,
        num_splits=0,
    )
    assert_matches(case, *run(case, "triton-16"))


@pytest.mark.parametrize("page_size", [1, 16, 32, 130])
@pytest.mark.parametrize("make", MAKERS)
def test_page_sizes(make, page_size: int) -> None:
    """Tiles of many pages, of one, and of a part of one."""
    case = small(make, 1, **FEW, page_size=page_size)
    assert_matches(case, *run(case, "triton-16"))


@pytest.mark.parametrize("make", MAKERS)
def test_cut_and_merge(make) -> None:
    extra = {"window": None} if make is paged_case else {}
    case = small(make, 3, **FEW, causal=False, **extra)
    lengths = case.cache_seqlens
    head = replace(case, cache_seqlens=lengths.clamp(max=24))
    tail = replace(
        case, cache_seqlens=(lengths - 24).clamp(min=0), block_table=case.block_table[:, 3:]
    )
    parts = [run(part, "triton") for part in (head, tail)]
    assert_matches(case, *ridgeline.merge(*zip(*parts, strict=True)))


@pytest.mark.parametrize("dims", [(64, 64, 128), (512, 64, 512), (100, 20, 576)], ids=str)
def test_widths_of_tied_states(dims: tuple[int, int, int], triton_impl: str) -> None:
    """GTA, MLA, and a key that ends inside a tile."""
    nope, rope, dim = dims
    shape = FEW | {"lengths": [40], "group": 16, "dim": dim, "nope_dim": nope, "rope_dim": rope}
    case = small(tied_case, 0, **shape)
    assert_matches(case, *run(case, triton_impl))


@pytest.mark.parametrize("dim", [0, 1, 2], ids=["pages", "tokens", "heads"])
@pytest.mark.parametrize("make", MAKERS)
def test_far_stride(make, dim: int) -> None:
    """Elements more than 2^31 away: committed only where touched."""
    shape = {"lengths": [11], "page_size": 4, "group": 2, "dim": 8, "dtype": torch.float16}
    case = small(make, 0, **shape)
    caches = {name: getattr(case, name) for name in case.caches}
    far = {name: far_along(x, min(dim, x.dim() - 2)) for name, x in caches.items()}
    assert_matches(case, *run(replace(case, **far), "triton"))


@pytest.mark.parametrize("make", MAKERS)
def test_far_queries(make) -> None:
    case = small(make, 0, lengths=[11, 3], dtype=torch.float16)
    names = ["q"] if make is paged_case else ["q_nope", "q_rope"]
    far = {name: far_along(getattr(case, name), 0) for name in names}
    assert_matches(case, *run(replace(case, **far), "triton"))


@pytest.mark.parametrize("shape", [{"lengths": []}, {"lengths": [0, 0], "spare_pages": 0}], ids=str)
@pytest.mark.parametrize("make", MAKERS)
def test_nothing_cached(make, shape: dict, triton_impl: str) -> None:
    out, lse = run(small(make, 0, **shape), triton_impl)
    assert (out == 0).all()
    assert (lse == -torch.inf).all()


@pytest.mark.parametrize("make", MAKERS)
def test_nan_that_is_seen_is_not_hidden(make) -> None:
    extra = {"window": None} if make is paged_case else {}
    shape = FEW | {"lengths": [40, 40], "page_size": 64, "magnitude": 1.0, "strides": False}
    case = small(make, 0, **shape, **extra)
    getattr(case, case.caches[0])[case.block_table[1, 0], 3] = torch.nan
    out, _ = run(case, "triton-16")
    assert out[1].isnan().all()
    assert out[0].isfinite().all()
