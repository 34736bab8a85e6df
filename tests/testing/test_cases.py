"""The generator draws what it promises, the same on every run; poison goes where it should."""

import math

import pytest
import torch

from ridgeline.testing import attention_case, merge_case, paged_case, poisoned, tied_case
from ridgeline.testing.cases import read_by
from ridgeline.testing.generate import FP8

MAKERS = [paged_case, tied_case, merge_case, attention_case]


@pytest.mark.parametrize("make", MAKERS)
def test_a_seed_is_a_case(make) -> None:
    for seed in range(10):
        first, second = make(seed), make(seed)
        assert repr(first) == repr(second)
        for name, x in vars(first).items():
            if isinstance(x, torch.Tensor):
                assert torch.equal(x.nan_to_num(7.0), getattr(second, name).nan_to_num(7.0))
    assert repr(make(0)) != repr(make(1))


@pytest.mark.parametrize("make", MAKERS)
def test_unknown_properties_are_refused(make) -> None:
    with pytest.raises(TypeError, match="unknown properties of a case: sequence_length"):
        make(0, sequence_length=3)


@pytest.mark.parametrize("make", [paged_case, tied_case])
def test_the_draws_cover_the_corners(make) -> None:
    cases = [make(seed) for seed in range(250)]
    lengths = [n for case in cases for n in case.cache_seqlens.tolist()]
    pages = [getattr(case, case.caches[0]).shape[1] for case in cases]
    heads = [(case.q.shape[2], getattr(case, case.caches[0]).shape[2]) for case in cases]
    assert {0, 1} <= set(lengths)
    assert any(case.q.shape[0] == 0 for case in cases)
    assert any(
        n % page == 0
        for case, page in zip(cases, pages, strict=True)
        for n in case.cache_seqlens.tolist()
        if n
    )
    assert any(n < case.q.shape[1] for case in cases for n in case.cache_seqlens.tolist())
    assert {case.q.shape[1] for case in cases} == {1, 2, 3, 4, 5}
    assert {case.num_splits for case in cases} == {0, 1, 2, 3, 7, 64}
    assert {case.causal for case in cases} == {True, False}
    assert any(h == k for h, k in heads)
    assert any(k == 1 and h > 1 for h, k in heads)
    assert any(h > k > 1 for h, k in heads)
    assert any(case.q.shape[-1] % 2 for case in cases)
    assert 1 in pages
    assert any(not getattr(case, case.caches[0]).is_contiguous() for case in cases)
    assert {case.q.dtype for case in cases} == {torch.bfloat16, torch.float16, torch.float32}


@pytest.mark.parametrize("make", [paged_case, tied_case])
def test_memory_between_the_elements_is_nan(make) -> None:
    """A read outside a view shows in the result."""
    found = 0
    for seed in range(40):
        cache = getattr(case := make(seed, strides=True), case.caches[0])
        whole = torch.empty(0, dtype=cache.dtype).set_(cache.untyped_storage())
        assert not cache.isnan().any()
        found += int(whole.isnan().any())
    assert found > 20


@pytest.mark.parametrize("kind", ["number", "head", "block"])
def test_scales_are_never_one(kind: str) -> None:
    case = paged_case(0, cache_dtype=FP8, scale_kind=kind)
    for scale in (case.k_scale, case.v_scale):
        assert ((torch.as_tensor(scale) - 1).abs() > 0.2).all()


@pytest.mark.parametrize("make", [paged_case, tied_case])
def test_poison_spares_exactly_what_is_read(make) -> None:
    for seed in range(20):
        case = make(seed, lengths=[30, 0, 9], page_size=4)
        bad = poisoned(case, math.nan, -7)
        used = torch.zeros(getattr(case, case.caches[0]).shape[:2], dtype=torch.bool)
        for b in range(3):
            pages = {t // 4 for t in read_by(case, b)}
            for t in read_by(case, b):
                used[case.block_table[b, t // 4], t % 4] = True
            for entry in range(case.block_table.shape[1]):
                want = case.block_table[b, entry] if entry in pages else -7
                assert bad.block_table[b, entry] == want
        for name in case.caches:
            clean, dirty = getattr(case, name), getattr(bad, name)
            assert torch.equal(clean[used], dirty[used])
            assert dirty[~used].isnan().all()
            assert dirty.stride() == clean.stride()
            assert not clean.isnan().any()
