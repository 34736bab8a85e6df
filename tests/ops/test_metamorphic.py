"""Relations between calls: what must not change a result, and what changes it in a known way."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor

import ridgeline
from ridgeline.testing import PagedCase, TiedCase, assert_matches, paged_case, run, tied_case

MAKERS = [paged_case, tied_case]
PLAIN = {"lengths": [41, 7, 0, 64, 130], "page_size": 8, "num_splits": 3}
SEEDS = range(4)


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("make", MAKERS)
def test_batch_permutation_is_bitwise(make, seed: int, impl: str) -> None:
    case = make(seed, **PLAIN)
    order = torch.randperm(5, generator=torch.Generator().manual_seed(seed))
    got = run(_sequences(case, order), impl)
    assert all(torch.equal(x, y[order]) for x, y in zip(got, run(case, impl), strict=True))


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("make", MAKERS)
def test_page_permutation_is_bitwise(make, seed: int, impl: str) -> None:
    case = make(seed, **PLAIN, strides=False)
    num_pages = getattr(case, case.caches[0]).shape[0]
    order = torch.randperm(num_pages, generator=torch.Generator().manual_seed(seed))
    moved = {name: torch.empty_like(getattr(case, name)) for name in case.caches}
    for name, cache in moved.items():
        cache[order] = getattr(case, name)
    table = order[case.block_table.long()].int()
    got = run(replace(case, block_table=table, **moved), impl)
    assert all(torch.equal(x, y) for x, y in zip(got, run(case, impl), strict=True))


@pytest.mark.parametrize("page_size", [1, 3, 64, 200])
@pytest.mark.parametrize("make", MAKERS)
def test_page_size_changes_nothing_but_rounding(make, page_size: int, impl: str) -> None:
    case = make(1, **PLAIN)
    assert_matches(case, *run(repaged(case, page_size), impl))


@pytest.mark.parametrize("num_splits", [0, 1, 2, 3, 5, 64, 1000])
@pytest.mark.parametrize("make", MAKERS)
def test_number_of_splits_changes_nothing_but_rounding(make, num_splits: int, impl: str) -> None:
    case = make(2, **PLAIN | {"num_splits": num_splits})
    assert_matches(case, *run(case, impl))


@pytest.mark.parametrize("pages", [1, 3, 20])
@pytest.mark.parametrize("make", MAKERS)
def test_cut_and_merge(make, pages: int, impl: str) -> None:
    """Attention over the first pages and over the rest, merged by lse, is attention over all."""
    extra = {"window": None} if make is paged_case else {}
    case = make(3, **PLAIN, causal=False, **extra)
    cut = pages * 8
    lengths = case.cache_seqlens
    head = replace(case, cache_seqlens=lengths.clamp(max=cut))
    tail = replace(
        case, cache_seqlens=(lengths - cut).clamp(min=0), block_table=case.block_table[:, pages:]
    )
    parts = [run(part, impl) for part in (head, tail)]
    assert_matches(case, *ridgeline.merge(*zip(*parts, strict=True)))


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("nope", ["all", "half"])
def test_tied_is_paged_with_the_rope_key_beside_the_state(seed: int, nope: str, impl: str) -> None:
    """K = [state[:d_n] | rope], V = state."""
    dims = {"dim": 32, "nope_dim": 32 if nope == "all" else 16, "rope_dim": 16}
    case = tied_case(seed, **PLAIN, **dims)
    assert_matches(case, *run(expanded(case), impl))
    assert_matches(expanded(case), *run(case, impl))


@pytest.mark.parametrize("seed", SEEDS)
def test_gqa_is_mha_with_repeated_heads(seed: int, impl: str) -> None:
    case = paged_case(seed, **PLAIN, kv_heads=2, group=3)
    k, v = (x.repeat_interleave(3, dim=2) for x in (case.k_cache, case.v_cache))
    assert_matches(case, *run(replace(case, k_cache=k, v_cache=v), impl))


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("make", MAKERS)
def test_many_queries_are_as_many_steps(make, seed: int, impl: str) -> None:
    case = make(seed, **PLAIN | {"lengths": [41, 7, 9, 64, 130]}, query_len=4, causal=True)
    steps = [run(_step(case, i), impl) for i in range(4)]
    out, lse = (torch.cat(parts, 1) for parts in zip(*steps, strict=True))
    assert_matches(case, out, lse)


@pytest.mark.parametrize("make", MAKERS)
def test_run_to_run_is_bitwise(make, impl: str) -> None:
    for num_splits in (0, 3):
        case = make(5, **PLAIN | {"num_splits": num_splits})
        first = run(case, impl)
        for _ in range(5):
            assert all(torch.equal(x, y) for x, y in zip(run(case, impl), first, strict=True))


def repaged(case: PagedCase | TiedCase, page_size: int) -> PagedCase | TiedCase:
    """The same tokens in pages of another size, each sequence in pages of its own."""
    old = getattr(case, case.caches[0]).shape[1]
    needed = [-(-n // page_size) for n in case.cache_seqlens.tolist()]
    table = torch.zeros(len(needed), max(needed), dtype=torch.int32)
    caches = {}
    for name in case.caches:
        cache = getattr(case, name)
        new = cache.new_zeros(sum(needed), page_size, *cache.shape[2:])
        page = 0
        for b, count in enumerate(needed):
            table[b, :count] = torch.arange(page, page + count)
            for t in range(int(case.cache_seqlens[b])):
                record = cache[case.block_table[b, t // old], t % old]
                new[page + t // page_size, t % page_size] = record
            page += count
        caches[name] = new
    return replace(case, block_table=table, **caches)


def expanded(case: TiedCase) -> PagedCase:
    state, rope = case.state_cache, case.rope_cache
    rope = rope[:, :, None].expand(-1, -1, state.shape[2], -1)
    return PagedCase(
        torch.cat([case.q_nope, case.q_rope], -1),
        torch.cat([state[..., : case.q_nope.shape[-1]], rope], -1),
        state,
        case.block_table,
        case.cache_seqlens,
        softmax_scale=case.softmax_scale,
        causal=case.causal,
        num_splits=case.num_splits,
    )


def _queries(case: PagedCase | TiedCase) -> dict[str, Tensor]:
    names = ("q",) if isinstance(case, PagedCase) else ("q_nope", "q_rope")
    return {name: getattr(case, name) for name in names}


def _sequences(case: PagedCase | TiedCase, order: Tensor) -> PagedCase | TiedCase:
    rows = {name: q[order] for name, q in _queries(case).items()}
    return replace(
        case, block_table=case.block_table[order], cache_seqlens=case.cache_seqlens[order], **rows
    )


def _step(case: PagedCase | TiedCase, i: int) -> PagedCase | TiedCase:
    """Query ``i`` alone, the cache as long as it was at that step."""
    later = case.q.shape[1] - 1 - i
    rows = {name: q[:, i : i + 1] for name, q in _queries(case).items()}
    return replace(case, cache_seqlens=case.cache_seqlens - later, **rows)
