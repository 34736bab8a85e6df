"""``attention`` of rows, sequences and batches that hold nothing; garbage where nobody looks."""

from dataclasses import replace

import pytest
import torch

from ridgeline import attention
from ridgeline.testing import assert_matches, attention_case, run
from ridgeline.testing.layouts import FAR, clone, far_along

PLAIN = {"magnitude": 1.0, "window": None, "softcap": 0.0, "softmax_scale": None, "tree": None}
INT32 = torch.int32


@pytest.mark.parametrize("tree", [None, "nested"])
@pytest.mark.parametrize(
    ("packed", "lengths"),
    [
        *((packed, [pair] * 2) for packed in (True, False) for pair in ((0, 0), (0, 5), (5, 0))),
        (True, [(0, 0), (5, 5), (3, 0), (0, 4), (2, 7)]),
        (True, []),
        (False, []),
    ],
    ids=str,
)
def test_no_queries_or_no_keys(packed: bool, lengths, tree, attention_impl: str) -> None:
    case = attention_case(0, packed=packed, lengths=lengths, tree=tree)
    out, lse, dq, dk, dv = results = run(case, attention_impl)
    assert_matches(case, *results)  # shapes too
    for rows, keys in case.sequences():
        if case.k[keys].shape[0] == 0:
            assert (out[rows] == 0).all()
            assert (lse[rows] == -torch.inf).all()
            assert (dq[rows] == 0).all()
        if case.q[rows].shape[0] == 0:
            assert (dk[keys] == 0).all()
            assert (dv[keys] == 0).all()


@pytest.mark.parametrize("causal", [True, False])
def test_more_queries_than_keys(causal: bool, attention_impl: str) -> None:
    """Queries before the first key see nothing when causal, every key when not."""
    case = attention_case(
        1, **PLAIN, packed=False, lengths=[(40, 3)], causal=causal, with_dlse=True, dim=40
    )
    out, lse, dq, dk, dv = results = run(case, attention_impl)
    assert_matches(case, *results)
    assert (lse[0, :37] == -torch.inf).all().item() is causal
    assert (dq[0, :37] == 0).all().item() is causal
    assert lse[0, 37:].isfinite().all()
    assert all(x.isfinite().all() for x in (out, dq, dk, dv))


@pytest.mark.parametrize("window", [(None, 2), (3, 2), (0, 0)], ids=str)
def test_window_that_sees_nothing(window, attention_impl: str) -> None:
    """The window of a query before the first key may end before it too."""
    case = attention_case(
        2, **PLAIN | {"window": window}, packed=True, lengths=[(9, 3), (4, 4)], causal=False
    )
    _, lse, *_ = results = run(case, attention_impl)
    assert_matches(case, *results)
    assert (lse[: 6 - window[1]] == -torch.inf).all()
    assert lse[6 - window[1] :].isfinite().all()


@pytest.mark.parametrize("lse_gradient", [torch.nan, torch.inf, 0.0, 1e30])
def test_rows_that_see_nothing_have_finite_gradients(
    lse_gradient: float, attention_impl: str
) -> None:
    """Whatever comes back through their lse of -inf; a function of it may have a NaN there."""
    case = attention_case(
        3, **PLAIN, packed=False, lengths=[(40, 7)], causal=True, strides=False, with_dlse=True
    )
    dlse = case.dlse.clone()
    dlse[:, :33] = lse_gradient
    want, got = run(case, attention_impl), run(replace(case, dlse=dlse), attention_impl)
    assert all(torch.equal(x, y) for x, y in zip(got, want, strict=True))
    assert all(x.isfinite().all() for x in got[2:])


@pytest.mark.parametrize("magnitude", [1e-3, 1e2, 1e4])
@pytest.mark.parametrize("softcap", [0.0, 0.5, 50.0])
def test_logits_of_any_size(softcap: float, magnitude: float, attention_impl: str) -> None:
    options = PLAIN | {"magnitude": magnitude, "softcap": softcap, "dtype": torch.float32}
    case = attention_case(4, **options, packed=True, lengths=[(70, 100), (3, 3)], causal=True)
    results = run(case, attention_impl)
    assert all(x.isfinite().all() for x in results)
    assert_matches(case, *results)


@pytest.mark.parametrize("garbage", [torch.nan, torch.inf, 1e30])
def test_a_sequence_does_not_spoil_its_neighbours(garbage: float, attention_impl: str) -> None:
    """No arithmetic crosses ``cu_seqlens``: 0 times a NaN next door would be NaN."""
    lengths = [(33, 70), (40, 40), (65, 65), (0, 9), (7, 0)]
    for seed in range(4):
        case = attention_case(seed, packed=True, lengths=lengths, dtype=torch.bfloat16)
        clean = run(case, attention_impl)
        for bad in range(5):
            rows, keys = case.sequences()[bad]
            spoiled = {n: clone(getattr(case, n)) for n in ("q", "k", "v", "dout")}
            for name, x in spoiled.items():
                x[rows if name in ("q", "dout") else keys] = garbage
            got = run(replace(case, **spoiled), attention_impl)
            at = (rows, rows, rows, keys, keys)
            for x, y, spoilt in zip(got, clean, at, strict=True):
                keep = torch.ones(len(x), dtype=torch.bool)
                keep[spoilt] = False
                assert torch.equal(x[keep], y[keep])


def test_nan_that_is_seen_is_not_hidden(attention_impl: str) -> None:
    case = attention_case(
        0, **PLAIN, packed=False, lengths=[(40, 40)] * 2, causal=False, dim=40, strides=False
    )
    for name in ("k", "v"):
        x = getattr(case, name).clone()
        x[1, 3] = torch.nan
        out, *_ = run(replace(case, **{name: x}), attention_impl)
        assert out[1].isnan().all()
        assert out[0].isfinite().all()


def test_every_result_is_written(attention_impl: str) -> None:
    for seed in range(40):
        dims = {"dim": (8, 40, 17, 128)[seed % 4], "value_dim": (40, 8, 128, 17)[seed // 4 % 4]}
        case = attention_case(seed, **dims)
        results = [run(case, attention_impl, fill=fill) for fill in (torch.nan, 0.0)]
        for x, y in zip(*results, strict=True):
            assert not x.isnan().any()
            assert torch.equal(x, y)


@pytest.mark.parametrize("dim", [0, 1, 2], ids=["sequences", "tokens", "heads"])
def test_far_strides(dim: int, attention_impl: str) -> None:
    """Elements more than 2^31 away; the memory is committed only where it is touched."""
    case = attention_case(
        0, packed=False, lengths=[(3, 5)] * 2, kv_heads=2, group=2, dim=8, dtype=torch.bfloat16
    )
    far = {name: far_along(getattr(case, name), dim) for name in ("q", "k", "v", "dout")}
    assert far["q"].untyped_storage().nbytes() > FAR
    assert_matches(case, *run(replace(case, **far), attention_impl))


def test_one_key() -> None:
    v = torch.randn(1, 1, 2, 8)
    out, lse = attention(torch.randn(1, 3, 2, 4), torch.zeros(1, 1, 2, 4), v, return_lse=True)
    assert torch.equal(out, v.expand(-1, 3, -1, -1))
    assert (lse == 0).all()
