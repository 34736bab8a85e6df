"""Every timed call is held against float32 attention, and the roofs are read where they lie."""

import pytest
import torch

from ridgeline.bench import compare, decode, peers, verify
from ridgeline.bench.decode import DecodeOptions, measure
from ridgeline.bench.inputs import DecodeInputs
from ridgeline.bench.shapes import VARIANTS, DecodeShape
from ridgeline.ops.common import core

EXPECTED_PEERS = {
    "mha": {"sdpa gqa"},
    "gqa": {"sdpa gqa", "sdpa packed"},
    "gta": {"sdpa gqa", "sdpa packed", "eager dense"},
    "gla": {"sdpa packed", "eager dense"},
}


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("query_len", [1, 3])
@pytest.mark.parametrize("dtype", ["bf16", "fp16", "fp32"])
def test_ours_and_every_peer_compute_the_same(variant, query_len, dtype):
    options = DecodeOptions(
        variants=(variant,),
        sizes=((2, 37),),
        query_lens=(query_len,),
        dtypes=(dtype,),
        heads=(8,),
        kv_heads=2,
        head_dim=16,
        page_size=5,
        reps=1,
    )
    row = measure(options.shapes()[0], options)
    assert 0 <= row.error <= verify.OURS_BUDGET * verify.ROUNDING[dtype]
    dtypes = {"bf16", "fp32"} if dtype == "bf16" else {"fp32"}
    if variant in EXPECTED_PEERS:
        expected = {f"{n} {d}" for n in EXPECTED_PEERS[variant] for d in dtypes}
        if "eager dense fp32" in expected and dtype != "fp16":
            expected.add(f"eager {dtype}")
        assert set(row.peers) == expected
    assert (row.no_prefetch is None) == (core.missing() is not None)


@pytest.mark.parametrize("who", ["ours", "eager dense bf16"])
def test_a_wrong_result_is_not_timed(who, tiny_options, monkeypatch):
    shape = DecodeShape("gla", 8, 2, 16, 2, 37)
    if who == "ours":
        right = DecodeInputs.decode
        monkeypatch.setattr(DecodeInputs, "decode", lambda *a: right(*a) * 1.02)
    else:
        right = peers.Dense.eager
        wrong = lambda d: right(d) * (1.0 if d.q.dtype == torch.float32 else 1.2)  # noqa: E731
        monkeypatch.setattr(peers.Dense, "eager", wrong)
    with pytest.raises(RuntimeError, match=who):
        measure(shape, tiny_options)


@pytest.mark.parametrize("variant", ["gqa", "gta"])
def test_the_memory_roof_reads_what_a_step_reads(variant):
    shape = DecodeShape(variant, 8, 2, 16, batch=3, length=40)
    inputs = DecodeInputs(shape, page_size=8, cold_bytes=1000)
    storage = inputs.storage()
    assert sum(x.nbytes for x in storage) == shape.cache_bytes
    assert all(x.is_contiguous() for x in storage)
    first = {x.data_ptr() for x in inputs.cache.layer(0)}
    assert storage[0].data_ptr() in first


def test_records_are_read_as_they_are_cached():
    shape = DecodeShape("gla", 8, 2, 16, batch=3, length=40)
    inputs = DecodeInputs(shape, page_size=8, cold_bytes=1000)
    records = peers.Dense(inputs, torch.bfloat16, records=True)
    dense = peers.Dense(inputs, torch.bfloat16)
    assert records.value.stride(2) == records.rope.stride(2) == shape.spec.elements_per_token
    assert dense.value.is_contiguous()
    assert torch.equal(records.value, dense.value)
    assert torch.equal(records.rope, dense.rope)


def test_calls_find_other_copies_of_the_cache():
    shape = DecodeShape("gqa", 8, 2, 16, batch=1, length=40)
    inputs = DecodeInputs(shape, page_size=8, cold_bytes=10 * shape.cache_bytes)
    copies = [inputs.storage()[0].data_ptr() for _ in range(22)]
    assert len(set(copies)) == 11
    assert copies[:11] == copies[11:]
    assert torch.equal(inputs.cache.layer(0)[1], inputs.cache.layer(10)[1])


@pytest.mark.parametrize("variant", ["gqa", "gta"])
def test_the_memory_roof_may_span_copies(variant):
    shape = DecodeShape(variant, 8, 2, 16, batch=1, length=40)
    inputs = DecodeInputs(shape, page_size=8, cold_bytes=10 * shape.cache_bytes)
    starts = []
    for _ in range(4):
        spans = inputs.storage(at_least=4 * shape.cache_bytes - 1)
        assert sum(x.nbytes for x in spans) == 4 * shape.cache_bytes
        starts.append(spans[0].data_ptr())
    layers = [inputs.cache.layer(i)[0].data_ptr() for i in range(11)]
    assert starts == [layers[0], layers[4], layers[0], layers[4]]
    everything = inputs.storage(at_least=10**9)
    assert sum(x.nbytes for x in everything) == inputs.cache.nbytes


def test_a_drifting_roof_is_measured_again(tiny_options, monkeypatch):
    drifts = iter([0.5, 0.0, 0.02, 0.01])
    monkeypatch.setattr(decode.timing, "drift", lambda samples: next(drifts))
    row = measure(DecodeShape("mqa", 8, 1, 16, 1, 20), tiny_options)
    assert row.drift == 0.02


def test_rates_follow_from_seconds(made_row):
    row = made_row(seconds=0.004, no_prefetch=0.006, peers={"a": 0.08, "b": 0.02})
    nbytes = 32768 * 4096
    assert row.bandwidth == pytest.approx(nbytes / 0.004)
    assert row.percent == pytest.approx(100 * nbytes / 40e9 / 0.004)
    assert row.binding == "memory"
    assert row.prefetch_gain == pytest.approx(1.5)
    assert row.speedup("a") == pytest.approx(20.0)
    assert row.fastest_peer == "b"


def test_comparisons_of_rows(made_row):
    rows = [
        made_row("gqa", 0.0040, 1, 32768),
        made_row("gta", 0.0022, 1, 32768),
        made_row("gqa", 0.0044, 16, 2048),
        made_row("gta", 0.0022, 16, 2048),
    ]
    lines = compare.comparisons(rows)
    assert lines[0].startswith("GQA 32/8 bf16 L_q 1: 1x32768 33.6 GB/s")
    assert lines[0].endswith(": 1.10")
    assert lines[1].endswith(": 1.00")
    assert lines[2:] == [
        "GTA / GQA bf16 L_q 1 1x32768: 0.55 of the time, 0.53 of the bytes",
        "GTA / GQA bf16 L_q 1 16x2048: 0.50 of the time, 0.53 of the bytes",
    ]


def test_different_amounts_of_tokens_are_not_compared(made_row):
    rows = [made_row(batch=1, length=1024), made_row(batch=16, length=2048)]
    assert compare.one_against_many(rows) == []
