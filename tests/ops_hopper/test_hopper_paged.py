"""Pages in the forward kernel: the float64 oracle, garbage around what is read, which calls."""

from dataclasses import replace
from unittest import mock

import pytest
import torch
from hopper_paged_cases import config_of, drawn, plain, run

from ridgeline.ops.attention.hopper import forward
from ridgeline.ops.attention.hopper.config import ForwardConfig
from ridgeline.ops.attention.hopper.paged_config import paged_config
from ridgeline.ops.common.triton import INTERPRETED
from ridgeline.testing import assert_matches, poisoned
from ridgeline.testing.poison import ENTRIES, VALUES
from ridgeline.testing.run import launch_decode


def equal(a, b) -> bool:
    return all(torch.equal(x, y) and not x.isnan().any() for x, y in zip(a, b, strict=True))


@pytest.mark.parametrize("seed", range(16))
def test_any_case(seed: int) -> None:
    """And garbage wherever nothing may be read: under another schedule, the same bits."""
    case, changes = drawn(seed)
    out, lse = run(case, seed, **changes)
    assert_matches(case, out, lse)
    garbage = poisoned(case, VALUES[seed % 3], ENTRIES[seed % 2])
    assert equal(run(garbage, seed + 1, fill=0.0, **changes), (out, lse))


@pytest.mark.parametrize("entry", ["page of garbage", *ENTRIES])
@pytest.mark.parametrize("left", [0, 40])
def test_pages_behind_the_window_are_garbage(left: int, entry: str | int) -> None:
    case = plain(1, query_len=20, window=(left, None), spare_pages=1)
    spare = set(range(len(case.k_cache))) - set(case.block_table.flatten().tolist())
    number = next(iter(spare), 0) if entry == "page of garbage" else entry
    assert equal(run(poisoned(case, torch.nan, number), 1), run(case))


def test_keys_and_values_in_one_record() -> None:
    """Strided views of pages ``[head, token, K | V]``, as an engine keeps them."""
    case = plain(2, kv_heads=2, dim=64, value_dim=128)
    record = torch.cat([case.k_cache, case.v_cache], -1).transpose(1, 2).contiguous()
    k, v = record.transpose(1, 2).split((64, 128), -1)
    assert equal(run(replace(case, k_cache=k, v_cache=v)), run(case))


def test_a_sequence_alone_or_in_a_batch() -> None:
    case = plain(3, lengths=[130, 90], num_splits=1)
    out, lse = run(case)
    names = ("q", "block_table", "cache_seqlens")
    alone = replace(case, **{name: getattr(case, name)[1:] for name in names})
    assert equal(run(alone, seed=5), (out[1:], lse[1:]))


def test_corrupt_tables_and_lengths_read_nothing_outside(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a device, where nobody looks at values: the interpreter checks every address."""
    monkeypatch.setattr("ridgeline.ops.common.device.check_values_of_decode", lambda *_: None)
    case = plain(4, lengths=[70, 40, 150, 30])
    whole = run(case)
    case.block_table[0, 0], case.block_table[0, 1] = 2147480000, -7
    case.cache_seqlens[1], case.cache_seqlens[3] = 2_000_000_000, -5
    out, lse = run(case)
    assert out.isfinite().all()
    assert (out[3] == 0).all()
    assert torch.equal(out[2], whole[0][2])
    assert torch.equal(lse[2], whole[1][2])


@pytest.mark.parametrize("made", [{"lengths": []}, {"lengths": [0, 0], "spare_pages": 0}])
def test_nothing_cached(made: dict) -> None:
    case = plain(5, **made)
    assert_matches(case, *run(case))


def served(**chosen: object) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, int]:
    """Queries, caches and splits of 8 sequences of 64 queries, 32 heads of which 8 are cached."""
    shape = {"batch": 8, "query_len": 64, "heads": 32, "dim": 128, "page_size": 16, "splits": 0}
    shape |= {"dtype": torch.bfloat16, "value_dim": 128} | chosen
    q = torch.empty(shape["batch"], shape["query_len"], shape["heads"], shape["dim"])
    pages = torch.empty(2, shape["page_size"], 8, 0, dtype=shape["dtype"])
    k, v = (pages.new_empty(*pages.shape[:3], shape[d]) for d in ("dim", "value_dim"))
    return q.bfloat16(), k, v, shape["splits"]


TAKEN = {
    "a chunk": {},
    "of one sequence": {"batch": 1, "query_len": 512},
    "pages of 24": {"page_size": 24},
    "pages of 1024": {"page_size": 1024},
    "narrower values": {"value_dim": 64},
    "not to be split": {"batch": 1, "splits": 1},
}
LEFT = {
    "one query": {"query_len": 1},
    "a tile not filled": {"query_len": 31},
    "heads of no power of two": {"heads": 24, "query_len": 96},
    "too few tiles for the processors": {"batch": 1},
    "splits": {"splits": 2},
    "pages of 4": {"page_size": 4},
    "pages of 100": {"page_size": 100},
    "wide heads": {"dim": 320},
    "FP8": {"dtype": torch.float8_e4m3fn},
    "strides": {"dim": 60},
}


@pytest.mark.parametrize("name", [*TAKEN, *LEFT])
def test_which_calls_are_the_forward_kernels(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ridgeline.ops.common.device.processors", lambda _: 132)
    config = paged_config(*served(**(TAKEN | LEFT)[name]))
    assert isinstance(config, ForwardConfig) is (name in TAKEN)


@pytest.mark.skipif(not INTERPRETED, reason="by the interpreter, where three processors are many")
def test_the_launcher_follows() -> None:
    """Into the forward kernel for many queries alone, and with the tiling that is chosen."""
    from ridgeline.ops.paged_decode import hopper
    from ridgeline.testing.gluon import interpreted

    for query_len, taken in ((64, True), (2, False)):
        case = plain(6, query_len=query_len)
        inputs = (case.q, case.k_cache, case.v_cache, case.block_table, case.cache_seqlens)
        out, lse = torch.empty_like(case.q), torch.empty(case.q.shape[:3])
        options = (case.scale, True, -1, -1, 0.0, None, None, 0)
        with interpreted(), mock.patch.object(forward, "forward", wraps=forward.forward) as called:
            hopper.paged_decode(*inputs, *options, out, lse)
        assert called.called is taken
        assert_matches(case, out, lse)
        if taken:
            assert called.call_args.kwargs["config"] == config_of(case)
            with interpreted():
                assert equal(launch_decode(case, "hopper", config=config_of(case)), (out, lse))
