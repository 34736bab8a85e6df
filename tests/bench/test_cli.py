import pytest
from typer.testing import CliRunner

from ridgeline.bench import end_to_end, info
from ridgeline.bench.attention import memory
from ridgeline.cli import app
from ridgeline.ops.common import core

TINY = ["--batch", "1,2", "--length", "32,16", "--heads", "8", "--head-dim", "16", "--reps", "1"]


def invoke(*args):
    return CliRunner().invoke(app, list(args))


def test_bench_decode_writes_its_files(tmp_path):
    paths = [tmp_path / "new" / name for name in ("x.csv", "x.json", "x.png")]
    given = zip(("--csv", "--json", "--plot"), map(str, paths), strict=True)
    result = invoke(
        "bench", "decode", "--variants", "gqa,gla", *TINY, *(x for pair in given for x in pair)
    )
    assert result.exit_code == 0, result.output
    assert "GQA 8/8" in result.output
    assert "GLA-2 8" in result.output
    assert "Roofs" in result.output
    assert all(path.stat().st_size > 0 for path in paths)


def test_bench_decode_without_peers():
    result = invoke("bench", "decode", "--variants", "mqa", "--no-peers", *TINY)
    assert result.exit_code == 0, result.output
    assert "sdpa" not in result.output


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--variants", "gqa,nope"], "variants: expected one of"),
        (["--dtype", "int8"], "dtype: expected one of"),
        (["--query-len", "1,x"], "--query-len: expected integers"),
        (["--batch", "1,2,3", "--length", "8,9"], "--length: expected as many as --batch"),
        (["--batch", "4"], "--length: expected together with"),
        (["--heads", "0"], "--heads: expected integers of at least 1"),
        (["--reps", "0"], "reps: expected"),
        (["--heads", "9"], "kv_heads: expected a divisor"),
    ],
)
def test_bad_arguments_name_the_culprit(args, message):
    result = invoke("bench", "decode", *args)
    assert isinstance(result.exception, ValueError)
    assert str(result.exception).startswith(message)


def test_bench_attention_writes_its_files(tmp_path):
    paths = [tmp_path / "new" / name for name in ("x.csv", "x.json", "x.png")]
    given = zip(("--csv", "--json", "--plot"), map(str, paths), strict=True)
    sizes = "--batch 1,2 --length 24,16 --heads 4 --kv-heads 2 --head-dim 16 --reps 1"
    result = invoke("bench", "attention", *sizes.split(), *(x for pair in given for x in pair))
    assert result.exit_code == 0, result.output
    for part in ("1 x 24, 4/2 heads", "2 x 16", "causal", "backward", "SDPA", "GEMM"):
        assert part in result.output
    assert all(path.stat().st_size > 0 for path in paths)
    assert paths[0].read_text().startswith("# command: ")


def test_bench_attention_without_peers_and_backward():
    sizes = "--pairs 2 --pair 8,4,4 --heads 2 --head-dim 16 --reps 1 --impl reference"
    result = invoke("bench", "attention", *sizes.split(), "--no-peers", "--no-backward")
    assert result.exit_code == 0, result.output
    assert "tree" in result.output
    for part in ("SDPA\n", "backward", "Flex-"):
        assert part not in result.output


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["attention", "--heads", "4"], "--heads: expected together with"),
        (["attention", "--length", "8", "--reps", "0"], "reps: expected"),
        (["attention", "--length", "8", "--impl", "fast"], "impl: expected one of"),
        (["memory", "--length", "x"], "--length: expected integers"),
        (["memory", "--impl", "fast"], "impl: expected one of"),
        (["accuracy", "--length", "0"], "--length: expected integers of at least 1"),
        (["accuracy", "--length", "8", "--head-dim", "48"], "x: expected a last dim that is a"),
        (["accuracy", "--length", "8", "--block", "48"], "per: expected tensor, head"),
    ],
)
def test_bad_arguments_of_attention_name_the_culprit(args, message):
    result = invoke("bench", *args)
    assert isinstance(result.exception, ValueError)
    assert str(result.exception).startswith(message)


def test_bench_memory_writes_its_file(tmp_path, monkeypatch):
    monkeypatch.setattr(memory, "in_fresh_process", lambda *job: 12_300_000)
    path = tmp_path / "x.csv"
    sizes = "--length 96 --head-dim 16 --no-peers --impl reference"
    result = invoke("bench", "memory", *sizes.split(), "--csv", str(path))
    assert result.exit_code == 0, result.output
    assert "12.3" in result.output
    assert "Largest resident size" in result.output
    assert path.read_text().startswith("# command: ")


def test_bench_accuracy_writes_its_files(tmp_path):
    csv, plot = tmp_path / "x.csv", tmp_path / "x.png"
    sizes = "--length 32,48 --heads 1 --head-dim 16 --seeds 2 --block 8 --causal"
    result = invoke("bench", "accuracy", *sizes.split(), "--csv", str(csv), "--plot", str(plot))
    assert result.exit_code == 0, result.output
    assert "fp8, blocks, incoherent" in result.output
    assert "causal" in result.output
    assert csv.read_text().startswith("# command: ")
    assert plot.stat().st_size > 0


def test_info_lists_every_implementation():
    result = invoke("info")
    assert result.exit_code == 0, result.output
    for operation in ("attention", "paged_decode", "tied_decode"):
        for impl in ("reference", "cpu", "triton", "hopper"):
            assert any(line.split()[:2] == [operation, impl] for line in result.output.splitlines())
    assert "  flash-attn 3       " in result.output


def test_info_says_why_the_core_is_not_usable(monkeypatch):
    monkeypatch.setattr(core, "_import", lambda: (None, "the compiled core is missing (reason)"))
    found = {(op, impl): reason for op, impl, reason in info.implementations()}
    assert found["paged_decode", "cpu"] == "the compiled core is missing (reason)"
    assert found["paged_decode", "reference"] is None
    assert any("the compiled core is missing (reason)" in line for line in info.lines())


def test_bench_e2e_compares_with_transformers(tmp_path, monkeypatch):
    monkeypatch.setattr(end_to_end, "BALLAST", 1024)
    sizes = "--layers 1 --hidden 32 --intermediate 48 --heads 4 --kv-heads 2 --head-dim 16"
    path = tmp_path / "x.csv"
    rest = ["--vocab", "99", "--length", "40", "--reps", "1", "--variants", "gla"]
    result = invoke("bench", "e2e", *sizes.split(), *rest, "--csv", str(path))
    assert result.exit_code == 0, result.output
    assert "transformers sdpa" in result.output
    assert path.read_text().startswith("# command: ")
