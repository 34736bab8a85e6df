"""Random shapes, strides and options against the float64 oracle, and planted poison."""

from dataclasses import replace

import pytest
import torch
from hopper_cases import DTYPES, MAKERS, drawn, run, small

from ridgeline.testing import assert_matches, paged_case, poisoned, tied_case
from ridgeline.testing.generate import FP8
from ridgeline.testing.poison import ENTRIES, VALUES


def equal(a, b) -> bool:
    return all(torch.equal(x, y) and not x.isnan().any() for x, y in zip(a, b, strict=True))


@pytest.mark.parametrize("seed", range(16))
def test_any_shape(seed: int) -> None:
    """And garbage wherever nothing may be read: under another schedule, the same bits."""
    case, changes = drawn(seed)
    out, lse = run(case, seed, **changes)
    assert_matches(case, out, lse)
    garbage = poisoned(case, VALUES[seed % 3], ENTRIES[seed % 2])
    assert equal(run(garbage, seed + 1, **changes), (out, lse))


# Scales of all tokens, or of each: one, or one for 64 or 128 columns; all sides of wgmma.
FP8_CASES = {
    "number": {"scale_kind": "number", "dim": 64},
    "head": {"scale_kind": "head", "dim": 40},
    "token": {"scale_kind": 1, "dim": 40},
    "blocks": {"scale_kind": 3, "dim": 192, "page_size": 7},
    "blocks-rows-on-m": {"scale_kind": 2, "dim": 256, "group": 20},
}


@pytest.mark.parametrize("name", FP8_CASES)
@pytest.mark.parametrize("make", MAKERS)
def test_fp8_caches(make, name: str) -> None:
    chosen = {"page_size": 16} | FP8_CASES[name]
    dim = chosen["dim"]
    widths = {"value_dim": dim} if make is paged_case else {"nope_dim": dim // 2}
    dtype = DTYPES[(list(FP8_CASES).index(name) + MAKERS.index(make)) % 2]
    case = small(make, 1, cache_dtype=FP8, dtype=dtype, **widths | chosen)
    assert_matches(case, *run(case, 1))


def test_scales_beyond_the_range_of_float16() -> None:
    chosen = {"dtype": torch.float16, "cache_dtype": FP8, "scale_kind": 2, "strides": False}
    case = small(paged_case, 3, dim=128, **chosen | {"value_dim": 128})
    values = (case.v_cache.float() / 64).to(FP8)
    case = replace(case, v_cache=values, v_scale=case.v_scale * 2**17)
    out, lse = run(case)
    assert out.abs().max() > 100
    assert_matches(case, out, lse)


SERVED = {
    "mla-16": {"group": 16, "kv_heads": 1, "dim": 512, "nope_dim": 512},
    "mla-128": {"group": 128, "kv_heads": 1, "dim": 512, "nope_dim": 512},
    "gla-2-of-32": {"group": 16, "kv_heads": 2, "dim": 256, "nope_dim": 256},
    "gta-32-8": {"group": 4, "kv_heads": 8, "dim": 128, "nope_dim": 64},
}


@pytest.mark.parametrize("name", SERVED)
def test_served_widths(name: str) -> None:
    shape = {"rope_dim": 64, "query_len": 1, "page_size": 64, "strides": "records"}
    case = tied_case(1, DTYPES, lengths=[300, 64, 2], **shape | SERVED[name])
    assert_matches(case, *run(case, 1))


@pytest.mark.parametrize("make", MAKERS)
def test_many_sequences(make) -> None:
    """More than a program reads the lengths of at a time."""
    lengths = [(37 * i) % 90 for i in range(75)]
    case = small(make, 6, lengths=lengths, kv_heads=1, num_splits=0, page_size=16)
    assert_matches(case, *run(case, 6))


@pytest.mark.parametrize("left", [0, 70])
def test_pages_behind_the_window_are_garbage(left: int) -> None:
    case = small(paged_case, 1, lengths=[150, 3], window=(left, None), page_size=16)
    assert equal(run(poisoned(case, torch.nan, ENTRIES[0])), run(case))


@pytest.mark.parametrize("make", MAKERS)
@pytest.mark.parametrize("num_splits", [0, 1, 3])
def test_every_output_is_written(make, num_splits: int) -> None:
    case = small(make, 0, num_splits=num_splits)
    assert equal(run(case, fill=torch.nan), run(case, fill=0.0))


@pytest.mark.parametrize("page_size", [7, 16])
@pytest.mark.parametrize("make", MAKERS)
def test_corrupt_tables_and_lengths_read_nothing_outside(make, page_size: int, monkeypatch) -> None:
    """As on a device, where nobody looks at values: the interpreter checks every address."""
    monkeypatch.setattr("ridgeline.ops.common.device.check_values_of_decode", lambda *_: None)
    case = small(make, 2, page_size=page_size, lengths=[70, 40, 150], num_splits=2)
    whole = run(case)
    case.block_table[0, 0], case.block_table[0, 1] = 2147480000, -7
    case.cache_seqlens[1] = 2_000
    out, lse = run(case)
    assert out.isfinite().all()
    assert torch.equal(out[2], whole[0][2])
    assert torch.equal(lse[2], whole[1][2])


@pytest.mark.parametrize(
    ("make", "strides", "page_size"),
    [
        (paged_case, True, 1),
        (paged_case, False, 16),
        (paged_case, True, 128),
        (tied_case, "records", 1),
        (tied_case, True, 16),
        (tied_case, "records", 128),
    ],
)
def test_prefetch_changes_no_bit(make, strides, page_size: int) -> None:
    """And asks for nothing outside the caches: the interpreter checks."""
    case = small(make, 3, kv_heads=1, page_size=page_size, lengths=[0, 300], strides=strides)
    off = run(case)
    for distance in (1, 3):
        assert equal(run(case, prefetch=distance), off)


@pytest.mark.parametrize("make", MAKERS)
def test_splits_by_length_alone_are_batch_invariant(make) -> None:
    """A sequence gives the same bits alone, in a batch, and under any schedule of the threads."""
    case = small(make, 4, num_splits=2, lengths=[130, 300])
    out, lse = run(case)
    rows = {"block_table": case.block_table[1:], "cache_seqlens": case.cache_seqlens[1:]}
    names = ("q",) if make is paged_case else ("q_nope", "q_rope")
    alone = replace(case, **rows, **{name: getattr(case, name)[1:] for name in names})
    assert equal(run(alone, seed=7), (out[1:], lse[1:]))
