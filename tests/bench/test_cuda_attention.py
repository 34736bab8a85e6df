"""Attention on a GPU: rows by implementation, what fails, and other people's functions."""

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from ridgeline.bench import verify
from ridgeline.bench.attention import calls, measure, peers, report
from ridgeline.bench.attention.calls import Inputs
from ridgeline.bench.attention.measure import AttentionOptions
from ridgeline.bench.attention.shapes import AttentionShape
from ridgeline.bench.cuda import attention_peers, decode_peers, packages, run
from ridgeline.bench.grid import PlainConsole
from ridgeline.ops.attention import attention

SMALL = {"heads": 4, "kv_heads": 2, "head_dim": 16}
CAUSAL = AttentionShape(2, 24, **SMALL)
TREE = AttentionShape.tree([(9, 5, 4), (7, 3, 6)], **SMALL)
# Methods of ``bench accuracy``, and their columns here.
RMSE = {
    "fp16 standard": "fp16_standard",
    "fp16": "fp16",
    "fp8 standard, per tensor": "fp8_standard_per_tensor",
    "fp8, per tensor": "fp8_per_tensor",
    "fp8, blocks": "fp8_blocks",
    "fp8, per tensor, incoherent": "fp8_per_tensor_incoherent",
    "fp8, blocks, incoherent": "fp8_blocks_incoherent",
}
UNSUPPORTED = "cpu" if torch.cuda.is_available() else "hopper"


def options(**given) -> AttentionOptions:
    return AttentionOptions(**{"impls": ("reference",), "reps": 5, "with_peers": False} | given)


@pytest.fixture(autouse=True)
def _nothing_is_compiled(monkeypatch):
    monkeypatch.setattr(attention_peers.torch_peers, "flex", lambda inputs: _uncompiled(inputs))


def _uncompiled(inputs: Inputs) -> calls.Call:
    return calls.ours(inputs, "reference", f"flex {inputs.shape.dtype}")


def test_every_implementation_has_rows_and_takes_turns(gpu) -> None:
    shape = replace(CAUSAL, dtype="fp16")
    rows = measure.measure(shape, options(impls=("reference", "auto")), gpu)
    assert [(row.impl, row.which) for row in rows] == [
        (impl, which) for impl in ("reference", "auto") for which in ("forward", "backward")
    ]
    # A millisecond a letter; each call stalls once.
    assert [row.seconds for row in rows] == pytest.approx([0.009, 0.009, 0.004, 0.004])
    assert [list(row.peers) for row in rows] == [["auto"]] * 2 + [["reference"]] * 2
    assert rows[0].speedup("auto") == pytest.approx(4 / 9)
    assert rows[0].gemm == pytest.approx(2 * 32**3 / 0.004)
    assert rows[0].state == gpu.state()
    rounds = [set(gpu.order[i : i + 5]) for i in range(0, len(gpu.order), 5)]
    assert len(rounds) == 5
    assert all(len(x) == 5 for x in rounds)


def test_fp8_stands_beside_bf16(gpu) -> None:
    """Quantised before and within, with errors on inputs with outliers by every way of scaling."""
    forward, backward = measure.measure(CAUSAL, options(), gpu)
    assert set(forward.peers) == {"reference fp8", "reference quantize fp8"}
    assert backward.absent["reference fp8"] == "FP8 is for the forward alone"
    assert (set(forward.rmse), backward.rmse) == (set(RMSE), {})
    found = measure.record(forward)
    assert {"reference_fp8_ms", "reference_fp8_ratio", "reference_quantize_fp8_ms"} < set(found)
    assert {f"rmse_{name}" for name in RMSE.values()} < set(found)
    assert not any(name.startswith("rmse") for name in measure.record(backward))
    assert any("RMSE on inputs with outliers: fp8" in x for x in report.notes([forward]))


def test_fp8_that_is_wrong_is_not_timed(gpu, monkeypatch) -> None:
    right = calls.fp8.quantize

    def wrong(x, per, seed):
        values, scale = right(x, per, seed=seed)
        return values, scale * (1 if seed is None else 2)

    monkeypatch.setattr(calls.fp8, "quantize", wrong)
    forward, _ = measure.measure(CAUSAL, options(), gpu)
    assert "relative error" in forward.absent["reference fp8"]
    assert forward.rmse == {}


@pytest.mark.parametrize("shape", [TREE, replace(CAUSAL, head_dim=24)], ids=["tree", "d24"])
def test_fp8_has_no_outliers_where_accuracy_has_none(gpu, shape) -> None:
    forward, _ = measure.measure(shape, options(), gpu)
    assert "reference fp8" in forward.peers
    assert forward.rmse == {}


def test_peers_of_a_causal_row(gpu) -> None:
    forward, backward = measure.measure(CAUSAL, options(with_peers=True, impls=("auto",)), gpu)
    for row in (forward, backward):
        names = {"sdpa cudnn", "sdpa flash", "sdpa efficient", "flex bf16"}
        assert {*row.peers, *row.absent} == names
        assert {"sdpa flash", "flex bf16"} <= set(row.peers)
    assert "torch_sdpa_flash_ratio" in measure.record(forward)


def test_a_tree_stands_beside_its_other_ways(gpu) -> None:
    forward, _ = measure.measure(TREE, options(with_peers=True), gpu)
    assert set(forward.peers) == {
        "reference causal",
        "reference unpacked",
        "reference fp8",
        "reference quantize fp8",
        "sdpa unpacked bf16",
        "flex bf16",
    }
    found = measure.record(forward)
    assert (found["impl"], found["mask"], found["pairs"]) == ("reference", "tree", "9+5+4 7+3+6")
    assert {"reference_causal_ratio", "torch_flex_bf16_ratio"} < set(found)


def test_what_fails_is_a_row_that_says_why(gpu, monkeypatch, tmp_path) -> None:
    right = calls.Call.results

    def wrong(call, which):
        found = right(call, which)
        bad = call.name == "auto" and which == "backward"
        return {name: x * (1.1 if bad else 1) for name, x in found.items()}

    monkeypatch.setattr(calls.Call, "results", wrong)
    chosen = options(shapes=(CAUSAL,), impls=("reference", "auto"))
    path = tmp_path / "x.csv"
    with pytest.raises(RuntimeError, match=r"^1 of 4 rows failed"):
        run.bench_attention(chosen, gpu, PlainConsole(), csv=path)
    text = path.read_text()
    assert "auto: dq: relative error" in text
    assert text.startswith("# command: ")
    assert "# machine: Fake GPU; " in text


def test_what_nothing_supports_is_a_row_that_says_why(gpu) -> None:
    rows = measure.measure(CAUSAL, options(impls=(UNSUPPORTED,)), gpu)
    assert [row.which for row in rows] == ["forward", "backward"]
    assert all(row.failure.startswith(f"impl={UNSUPPORTED!r}: ") for row in rows)
    assert "ms" not in measure.record(rows[0])


def test_the_table_names_implementations_and_packages(gpu) -> None:
    rows = measure.measure(CAUSAL, options(impls=("reference", UNSUPPORTED)), gpu)
    rows[0].peers["flash-attn 3"] = rows[0].peers["flash-attn 2"] = 0.018
    lines = str(report.attention_table(rows)).splitlines()
    assert "impl" in " ".join(lines)
    assert lines[-2].count("2.0x") == 2
    for row, peer, column in (
        (rows[0], "sdpa cudnn", "sdpa cudnn"),
        (rows[0], "sdpa unpacked bf16", "sdpa"),
        (rows[0], "flash-attn 3", "flash-attn 3"),
        (rows[0], "reference causal", "reference causal"),
        (rows[0], "flex bf16", "flex"),
    ):
        assert report.kind(row, peer) == column


def test_torch_takes_the_backend_that_is_named() -> None:
    inputs = Inputs(CAUSAL)
    call = peers.sdpa(inputs, "bf16", ("flash", decode_peers.BACKENDS["flash"]))
    assert call.name == "sdpa flash"
    want = peers.exact(inputs)
    for which in ("forward", "backward"):
        for name, x in call.results(which).items():
            verify.relative_error(name, x, want[name], 0.02)
    if not torch.cuda.is_available():
        with pytest.raises(RuntimeError, match="No "):
            peers.sdpa(inputs, "bf16", ("cudnn", decode_peers.BACKENDS["cudnn"])).forward()


def _dense(q, k, v, causal):
    return attention(q, k, v, causal=causal, impl="reference")


class Flash:
    """flash-attn 2 and 3 return the output, 4 an lse behind it."""

    @staticmethod
    def flash_attn_func(q, k, v, dropout_p=0.0, softmax_scale=None, causal=False):
        assert softmax_scale is None
        return _dense(q, k, v, causal)


class Flash4:
    @staticmethod
    def flash_attn_func(q, k, v, softmax_scale=None, causal=False):
        return _dense(q, k, v, causal), torch.zeros(q.shape[:3])


def _varlen(q, k, v, starts, causal):
    assert starts.dtype == torch.int32
    packed = {"cu_seqlens_q": starts, "cu_seqlens_k": starts}
    return attention(q, k, v, **packed, causal=causal, impl="reference")


class Varlen:
    @staticmethod
    def is_fa_version_supported(version):
        return version == 3

    @staticmethod
    def flash_attn_varlen_func(
        q,
        k,
        v,
        max_seqlen_q,
        cu_seqlens_q,
        max_seqlen_k,
        cu_seqlens_k=None,
        causal=False,
        fa_version=3,
    ):
        assert (max_seqlen_q, max_seqlen_k, fa_version) == (24, 24, 3)
        assert torch.equal(cu_seqlens_q, cu_seqlens_k)
        return _varlen(q, k, v, cu_seqlens_q, causal)


class _Ragged:
    def __init__(self, float_workspace_buffer, kv_layout):
        assert kv_layout == "NHD"

    def plan(
        self,
        qo_indptr,
        kv_indptr,
        num_qo_heads,
        num_kv_heads,
        head_dim_qk,
        head_dim_vo,
        causal,
        q_data_type,
    ):
        assert torch.equal(qo_indptr, kv_indptr)
        assert (num_qo_heads, num_kv_heads, head_dim_qk, head_dim_vo) == (4, 2, 16, 16)
        self.starts, self.causal = qo_indptr, causal

    def run(self, q, k, v):
        return _varlen(q, k, v, self.starts, self.causal)


MODULES = {
    "flash-attn 2": Flash,
    "flash-attn 3": Flash,
    "flash-attn 4": Flash4,
    "flashinfer": SimpleNamespace(BatchPrefillWithRaggedKVCacheWrapper=_Ragged),
    "vllm": Varlen,
    "sglang": Varlen,
}


def test_arguments_are_where_every_package_has_them(gpu, monkeypatch) -> None:
    monkeypatch.setattr(packages, "installed", lambda name: True)
    monkeypatch.setattr(packages, "load", MODULES.__getitem__)
    assert set(MODULES) == set(attention_peers.ADAPTERS)
    for mask in ("causal", "full"):
        shape = AttentionShape(2, 24, **SMALL, mask=mask)
        forward, backward = measure.measure(shape, options(with_peers=True), gpu)
        assert set(MODULES) <= set(forward.peers)
        trained = {name for name in MODULES if name.startswith("flash-attn")}
        assert set(backward.peers) & set(MODULES) == trained
        assert backward.absent["vllm"] == "it is for inference"
        assert "flash_attn_3_ratio" in measure.record(forward)


def test_a_package_that_does_not_load_is_absent(gpu, monkeypatch) -> None:
    def load(name):
        raise ImportError("undefined symbol")

    monkeypatch.setattr(packages, "installed", lambda name: name == "flash-attn 3")
    monkeypatch.setattr(packages, "load", load)
    forward, _ = measure.measure(CAUSAL, options(with_peers=True), gpu)
    assert forward.absent["flash-attn 3"] == "undefined symbol"
    assert forward.failure is None
