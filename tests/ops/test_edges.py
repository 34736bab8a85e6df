"""Rows, sequences and batches that hold nothing."""

from dataclasses import replace

import pytest
import torch

from ridgeline.testing import assert_matches, paged_case, run, tied_case
from ridgeline.testing.layouts import clone

MAKERS = [paged_case, tied_case]


@pytest.mark.parametrize("make", MAKERS)
def test_zero_length_sequences(make, impl: str) -> None:
    case = make(0, lengths=[0, 5, 0], query_len=2)
    out, lse = run(case, impl)
    for b in (0, 2):
        assert (out[b] == 0).all()
        assert (lse[b] == -torch.inf).all()
    assert lse[1].isfinite().all()


@pytest.mark.parametrize("make", MAKERS)
def test_all_sequences_empty_and_no_pages(make, impl: str) -> None:
    case = make(0, lengths=[0, 0], spare_pages=0)
    out, lse = run(case, impl)
    assert (out == 0).all()
    assert (lse == -torch.inf).all()


@pytest.mark.parametrize("make", MAKERS)
def test_empty_batch(make, impl: str) -> None:
    case = make(0, lengths=[], query_len=3)
    out, lse = run(case, impl)
    assert out.shape[:3] == lse.shape == (0, 3, case.q.shape[2])


@pytest.mark.parametrize("make", MAKERS)
@pytest.mark.parametrize("causal", [True, False])
def test_fewer_tokens_than_queries(make, causal: bool, impl: str) -> None:
    """Queries before the sequence's start see nothing when causal, all tokens when not."""
    case = make(0, lengths=[2], query_len=4, causal=causal, **_no_window(make))
    out, lse = run(case, impl)
    assert_matches(case, out, lse)
    assert (lse[0, :2] == -torch.inf).all().item() is causal


def test_window_that_sees_nothing(impl: str) -> None:
    """Without causal, the window of a query before the sequence's start may end before it too."""
    case = paged_case(0, lengths=[2], query_len=5, causal=False, window=(None, 1))
    out, lse = run(case, impl)
    assert_matches(case, out, lse)
    assert (lse[0, :2] == -torch.inf).all()
    assert lse[0, 2:].isfinite().all()


@pytest.mark.parametrize("make", MAKERS)
def test_one_token(make, impl: str) -> None:
    case = make(0, lengths=[1], query_len=1, dtype=torch.float32, kv_heads=1, **_no_window(make))
    out, _ = run(case, impl)
    values = case.v_cache if make is paged_case else case.state_cache
    page = case.block_table[0, 0]
    torch.testing.assert_close(out[0, 0], values[page, 0].expand_as(out[0, 0]), rtol=1e-6, atol=0)


@pytest.mark.parametrize("make", MAKERS)
def test_nan_that_is_seen_is_not_hidden(make, impl: str) -> None:
    """A NaN in a cached token spoils the rows that see it and no other sequence."""
    case = make(0, lengths=[40, 40], dim=40, magnitude=1.0, causal=False, **_no_window(make))
    for name in case.caches[:1] if make is tied_case else case.caches:
        cache = clone(getattr(case, name))
        page_size = cache.shape[1]
        cache[case.block_table[1, 3 // page_size], 3 % page_size] = torch.nan
        out, _ = run(replace(case, **{name: cache}), impl)
        assert out[1].isnan().all()
        assert out[0].isfinite().all()


@pytest.mark.parametrize("make", MAKERS)
@pytest.mark.parametrize("magnitude", [1e-3, 1e2, 1e4])
def test_logits_of_any_size(make, magnitude: float, impl: str) -> None:
    case = make(0, lengths=[100, 3], magnitude=magnitude, dtype=torch.float32)
    out, lse = run(case, impl)
    assert out.isfinite().all()
    assert_matches(case, out, lse)


def _no_window(make) -> dict[str, None]:
    return {"window": None} if make is paged_case else {}
