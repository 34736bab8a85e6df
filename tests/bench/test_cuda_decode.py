"""Rows of a GPU: what is admitted, in which order it is timed, medians, files and failures."""

import csv
import inspect
import warnings
from dataclasses import replace
from importlib import import_module
from unittest.mock import create_autospec

import pytest
import torch

from ridgeline.bench import peers
from ridgeline.bench.cuda import compare, decode, prefetch, report, run
from ridgeline.bench.cuda.decode import CudaDecodeOptions, Row, measure, record, truth
from ridgeline.bench.cuda.trials import Trials
from ridgeline.bench.grid import PlainConsole
from ridgeline.bench.inputs import DecodeInputs
from ridgeline.bench.shapes import VARIANTS, DecodeShape
from ridgeline.bench.verify import OURS_BUDGET, ROUNDING, relative_error
from ridgeline.roofline import Roofs

GLA = DecodeShape("gla", 4, 2, 16, 2, 37)
UNSUPPORTED = "cpu" if torch.cuda.is_available() else "hopper"


def options(**given) -> CudaDecodeOptions:
    fields = {"shapes": (GLA,), "impls": ("reference",), "prefetch": (), "reps": 5}
    return CudaDecodeOptions(**fields | {"page_sizes": (5,)} | given)


@pytest.fixture
def made_row():
    """A row of given numbers: GQA 32/8, 64 sequences of 8,192 tokens, 2.1 GB."""

    def make(seconds=0.0006, shape=None, **given) -> Row:
        shape = shape or DecodeShape("gqa", 32, 8, 128, 64, 8192)
        fields = {"no_prefetch": None, "peers": {}, "error": 1e-3, "drift": 0.0, "samples": {}}
        fields |= {"impl": "triton", "page_size": 64} | given
        fields["rmse"] = dict.fromkeys((fields["impl"], *fields["peers"]), 1.25e-5)
        return Row(shape, seconds, Roofs(4e12, 8e14), **fields)

    return make


@pytest.mark.parametrize("variant", ["gqa", "gta"])
def test_triton_with_and_without_prefetch_takes_turns_with_peers_and_roofs(gpu, variant) -> None:
    shape = DecodeShape(variant, 4, 2, 16, 1, 20, dtype="fp16")
    chosen = options(impls=("triton", UNSUPPORTED), prefetch=(0, 2))
    (row,) = measure(shape, 8, chosen, gpu)
    calls = 3 + len(row.peers) + 2
    rounds = [sorted(gpu.order[i : i + calls]) for i in range(0, len(gpu.order), calls)]
    assert rounds == [list(range(calls))] * 5
    assert len({tuple(gpu.order[i : i + calls]) for i in range(0, 5 * calls, calls)}) > 1
    # Medians, for each call stalls once; in the order of their admission.
    assert (row.impl, row.page_size, row.seconds) == ("triton", 8, 0.001)
    assert row.prefetch == {0: 0.002, 2: 0.003}
    assert list(row.peers.values()) == [0.001 * (i + 4) for i in range(len(row.peers))]
    assert row.roofs.memory == pytest.approx(2 * 1024 / (0.001 * (calls - 1)))
    assert row.roofs.gemm == pytest.approx(2 * 32**3 / (0.001 * calls))
    assert row.drift == 0.0
    assert set(row.rmse) == {"triton", *row.peers}
    assert 0 < row.rmse["triton"] < 1e-3
    assert row.state == gpu.state()
    assert "sdpa flash" in row.peers
    assert row.absent[UNSUPPORTED].startswith(f"impl={UNSUPPORTED!r}: ")
    assert 0 <= row.error <= OURS_BUDGET * ROUNDING["fp16"]


def test_every_implementation_has_a_row(gpu) -> None:
    rows = measure(GLA, 5, options(impls=("reference", "auto"), with_peers=False), gpu)
    assert [(row.impl, row.seconds) for row in rows] == [("reference", 0.001), ("auto", 0.002)]
    assert [row.peers for row in rows] == [{"auto": 0.002}, {"reference": 0.001}]


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("dtype", ["bf16", "fp8"])
def test_the_truth_is_the_operation_in_float64(variant, dtype) -> None:
    kv_heads = {"mha": 4, "mqa": 1, "mla": 1}.get(variant, 2)
    shape = DecodeShape(variant, 4, kv_heads, 16, 3, 29, query_len=3, dtype=dtype)
    inputs = DecodeInputs(shape, page_size=4, cold_bytes=0)
    want = truth(inputs)
    error = relative_error("x", inputs.decode("reference"), want, OURS_BUDGET * ROUNDING[dtype])
    assert error > 0
    whole = peers.oracle(peers.Dense(inputs, torch.float32))
    torch.testing.assert_close(want.float(), whole, rtol=1e-5, atol=1e-6)
    assert want.dtype == torch.float64
    assert sum(x.nbytes for x in inputs.next_views()) == 3 * 32 * shape.bytes_per_token


def test_scales_of_fp8_use_its_range() -> None:
    inputs = DecodeInputs(DecodeShape("gqa", 4, 2, 16, 1, 40, dtype="fp8"), cold_bytes=0)
    assert {x.dtype for x in inputs.next_views()} == {torch.float8_e4m3fn}
    assert [x.float().abs().amax().item() for x in inputs.next_views()] == [448.0] * 2
    assert list(inputs.scales) == ["k_scale", "v_scale"]
    assert {x.shape for x in inputs.scales.values()} == {(2,)}


def test_one_copy_where_the_device_is_made_cold() -> None:
    inputs = DecodeInputs(GLA, page_size=5, cold_bytes=0)
    assert inputs.cache.num_layers == 1
    assert inputs.next_views()[0].data_ptr() == inputs.next_views()[0].data_ptr()


def test_a_wrong_result_is_a_failed_row_and_the_others_go_on(gpu, monkeypatch, tmp_path) -> None:
    right = DecodeInputs.decode
    wrong = lambda inputs, impl: right(inputs, impl) * (1.05 if impl == "auto" else 1)  # noqa: E731
    monkeypatch.setattr(DecodeInputs, "decode", wrong)
    path = tmp_path / "x.csv"
    chosen = options(impls=("auto", "reference"), page_sizes=(5, 8), with_peers=False)
    with pytest.raises(RuntimeError, match=r"^2 of 4 rows failed"):
        run.bench_decode(chosen, gpu, PlainConsole(), csv=path)
    lines = [x for x in path.read_text().splitlines() if not x.startswith("#")]
    rows = list(csv.DictReader(lines))
    assert [(r["impl"], r["page_size"]) for r in rows] == [
        (impl, page) for page in ("5", "8") for impl in ("auto", "reference")
    ]
    assert rows[0]["failure"].startswith("auto: relative error 5.0e-02 exceeds")
    assert rows[0]["ms"] == ""
    assert float(rows[1]["ms"]) > 0
    assert rows[1]["auto_absent"] == rows[0]["failure"]


def test_rows_are_on_disk_before_the_end(gpu, monkeypatch, tmp_path) -> None:
    path = tmp_path / "x.csv"
    measured = decode.measure

    def until_the_second(shape, page_size, *rest):
        if page_size == 8:
            raise RuntimeError("an illegal memory access was encountered")
        return measured(shape, page_size, *rest)

    monkeypatch.setattr(decode, "measure", until_the_second)
    with pytest.raises(RuntimeError, match="illegal memory access"):
        run.bench_decode(options(page_sizes=(5, 8)), gpu, PlainConsole(), csv=path)
    text = path.read_text()
    assert "# machine: Fake GPU; " in text
    assert "# versions: CUDA 13.0; ridgeline" in text
    assert text.count("\nreference,5,gla") == 1


def test_prefetch_that_changes_the_result_is_not_timed(gpu, monkeypatch) -> None:
    monkeypatch.setattr(prefetch, "decode", lambda inputs, impl, n: inputs.decode(impl) + n * 1e-5)
    chosen = options(prefetch=(0, 1), with_peers=False)
    (row,) = measure(GLA, 5, chosen, gpu)
    assert list(row.prefetch) == [0]
    assert row.broken == {"reference prefetch 1": "reference prefetch 1: changed the result"}
    assert record(row)["reference_prefetch_1_absent"] == row.broken["reference prefetch 1"]
    with pytest.raises(RuntimeError, match=r"^1 of 1 rows failed"):
        run.bench_decode(chosen, gpu, PlainConsole())


@pytest.mark.parametrize("impl", ["triton", "hopper"])
@pytest.mark.parametrize("variant", ["gqa", "mla"])
def test_the_distance_of_a_prefetch_is_all_that_changes(impl, variant, monkeypatch) -> None:
    shape = DecodeShape(variant, 16, 1, 128, 2, 70, query_len=2)
    inputs = DecodeInputs(shape, page_size=64, cold_bytes=0)
    operation = "paged_decode" if variant == "gqa" else "tied_decode"
    module = import_module(f"ridgeline.ops.{operation}.{impl}")
    launcher = getattr(module, operation)
    spy = create_autospec(launcher)  # refuses what the launcher would
    monkeypatch.setattr(module, operation, spy)
    out = prefetch.decode(inputs, impl, 3)
    given = inspect.signature(launcher).bind(*spy.call_args.args, **spy.call_args.kwargs).arguments
    queries = (inputs.q_nope,) if variant == "gqa" else (inputs.q_nope, inputs.q_rope)
    width = (shape.spec.dim,) if variant == "gqa" else ()
    plain = module.config_for(*queries, inputs.next_views()[0], *width)
    assert given["config"] == replace(plain, prefetch=3) != plain
    assert (given["softmax_scale"], given["causal"]) == (shape.softmax_scale, True)
    assert given["num_splits"] == 0
    assert given["out"] is out
    assert out.shape == (2, 2, 16, shape.spec.dim)


def test_a_call_that_no_graph_holds_says_so(gpu) -> None:
    gpu.eager = "not captured: a reason"
    (row,) = measure(GLA, 5, options(with_peers=False), gpu)
    assert row.eager == {"reference": "not captured: a reason"}
    assert record(row)["reference_eager"] == "not captured: a reason"


def test_a_shape_that_nothing_supports_has_a_row_that_says_why(gpu) -> None:
    (row,) = measure(GLA, 5, options(impls=(UNSUPPORTED,)), gpu)
    assert row.failure.startswith(f"impl={UNSUPPORTED!r}: ")
    assert set(gpu.order) == {0, 1}  # the roofs
    assert record(row)["failure"] == row.failure
    assert "ms" not in record(row)


def test_a_peer_that_breaks_is_absent_with_its_words(gpu, monkeypatch) -> None:
    def broken(module, inputs):
        raise TypeError("unexpected keyword\nand more")

    monkeypatch.setattr(decode.decode_peers, "ADAPTERS", {"flash-attn 3": broken, "vllm": broken})
    monkeypatch.setattr(decode.packages, "installed", lambda name: name != "vllm")
    monkeypatch.setattr(decode.packages, "load", lambda name: None)
    (row,) = measure(GLA, 5, options(), gpu)
    assert row.absent["flash-attn 3"] == "unexpected keyword"
    assert "vllm" not in row.absent
    assert record(row)["flash_attn_3_absent"] == "unexpected keyword"
    assert "eager dense" in row.peers


def test_an_absence_holds_what_torch_warned_of(gpu) -> None:
    def call() -> torch.Tensor:
        warnings.warn("heads are too wide (Triggered internally at x.cpp:9.)", stacklevel=1)
        raise RuntimeError("no available kernel")

    trials = Trials(gpu, torch.ones(2))
    trials.peer("sdpa", lambda: call, budget=1.0)
    trials.peer("right", lambda: lambda: torch.ones(2), budget=1.0)
    assert trials.absent == {"sdpa": "no available kernel; heads are too wide"}
    assert list(trials.runs) == ["right"]


def test_columns_follow_from_seconds(made_row) -> None:
    row = made_row(
        seconds=0.0006,
        peers={"sdpa flash": 0.0009, "flash-attn 3": 0.0006},
        prefetch={0: 0.0006, 2: 0.00057},
        state={"throttled": "no"},
    )
    found = record(row)
    assert list(found)[:3] == ["impl", "page_size", "variant"]
    assert (found["ms"], found["GB/s"], found["memory_roof_GB/s"]) == (0.6, 3579.139, 4000.0)
    assert (found["percent_of_roof"], found["binding_roof"]) == (89.5, "memory")
    assert found["rmse"] == found["flash_attn_3_rmse"] == 1.25e-5
    assert (found["prefetch_0_ms"], found["prefetch_2_ms"]) == (0.6, 0.57)
    assert (found["torch_sdpa_flash_ms"], found["torch_sdpa_flash_ratio"]) == (0.9, 1.5)
    assert (found["flash_attn_3_ratio"], found["throttled"]) == (1.0, "no")


def test_the_table_shows_every_row(made_row) -> None:
    rows = [
        made_row(prefetch={0: 0.0006, 2: 0.00057}, peers={"sdpa flash": 0.0009}),
        made_row(seconds=0.0, failure="broken", impl="hopper", error=0.0),
    ]
    lines = str(report.decode_table(rows)).splitlines()
    assert [x.split()[0] for x in lines[-2:]] == ["GQA", "GQA"]
    for part in ("GQA 32/8", "64x8192", "triton", "0.600", "3579", "89 mem", "0.950", "1.5x"):
        assert part in lines[-2]
    assert "failed" in lines[-1]
    notes = "\n".join(report.notes(rows))
    assert "copy 4000 GB/s read and written, GEMM 800000 GFLOP/s" in notes
    assert "FAILED: broken" in notes
    assert "Not installed, so not timed: " in notes


def test_what_rows_say_together(made_row) -> None:
    mla = {"variant": "mla", "kv_heads": 1}
    base = {"heads": 128, "head_dim": 128, "batch": 128, "length": 4096}

    def row(seconds, query_len=1, shape=None, **given):
        fields = {**base, **mla, "query_len": query_len} | (shape or {})
        return made_row(seconds, DecodeShape(**fields), **given)

    rows = [
        row(0.010),
        row(0.011, query_len=2),
        row(0.012, page_size=1),
        row(0.008, impl="hopper"),
        row(0.005, query_len=2, shape={"variant": "gla", "kv_heads": 2}),
        row(0.007, shape={"dtype": "fp8"}),
        row(0.0, query_len=4, failure="broken"),
        made_row(0.0006),
        made_row(0.00033, DecodeShape("gta", 32, 8, 128, 64, 8192)),
    ]
    at = "128x4096"
    assert compare.comparisons(rows) == [
        "GTA 32/8 bf16 64x8192 L_q 1, pages of 64, triton: 0.550 of the time with variant gqa",
        f"GLA-2 128 bf16 {at} L_q 2, pages of 64, triton: 0.455 of the time with variant mla",
        f"MLA 128 bf16 {at} L_q 2, pages of 64, triton: 1.100 of the time with query_len 1",
        f"MLA 128 bf16 {at} L_q 1, pages of 1, triton: 1.200 of the time with page_size 64",
        f"MLA 128 fp8 {at} L_q 1, pages of 64, triton: 0.700 of the time with dtype bf16",
        f"MLA 128 bf16 {at} L_q 1, pages of 64, hopper: 0.800 of the time with impl triton",
    ]
