"""``ridgeline plan``: what its commands write, and what they say of bad input."""

import csv
import json
import sys

import pytest
from typer.testing import CliRunner

from ridgeline.cli import app
from ridgeline.roofline import configs, hardware, measured
from ridgeline.roofline.workload import Lengths, Workload

SERVED = ["serve", "--prompt", "500", "--output", "20", "--requests", "8"]
DEEPSEEK_V3 = {
    "model_type": "deepseek_v3",
    "num_hidden_layers": 61,
    "hidden_size": 7168,
    "num_attention_heads": 128,
    "intermediate_size": 18432,
    "vocab_size": 129280,
    "qk_nope_head_dim": 128,
    "qk_rope_head_dim": 64,
    "v_head_dim": 128,
    "kv_lora_rank": 512,
    "q_lora_rank": 1536,
    "n_routed_experts": 256,
    "n_shared_experts": 1,
    "num_experts_per_tok": 8,
    "moe_intermediate_size": 2048,
    "first_k_dense_replace": 3,
    "torch_dtype": "bfloat16",
    "quantization_config": {"quant_method": "fp8"},
}
LLAMA = {
    "model_type": "llama",
    "num_hidden_layers": 32,
    "hidden_size": 4096,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "intermediate_size": 14336,
    "vocab_size": 128256,
    "dtype": "bfloat16",
}
DECODE = (
    "# command: ridgeline bench decode\n"
    "variant,heads,cache_heads,head_dim,batch,length,query_len,dtype,ms,memory_roof_GB/s,"
    "gemm_roof_GFLOP/s\n"
    "gqa,32,8,128,1,8192,1,bf16,4.0,20.0,140\n"
    "gqa,32,8,128,4,8192,1,bf16,14.0,22.0,120\n"
)


def run(*args):
    return CliRunner().invoke(app, ["plan", *map(str, args)])


def rows(path):
    return list(csv.DictReader(x for x in path.read_text().splitlines() if x[0] != "#"))


def write(path, content):
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return path


def test_show_writes_its_files(tmp_path):
    out = [tmp_path / "new" / name for name in ("x.csv", "x.json", "x.png", "cache.png")]
    names = ("--csv", "--json", "--plot", "--plot-cache")
    args = [x for pair in zip(names, out, strict=True) for x in pair]
    result = run("show", "--model", "deepseek-v2", "--tp", 2, "--dp", 4, *args)
    assert result.exit_code == 0, result.output
    assert "236" in result.output.replace("235.69", "236")
    assert all(path.stat().st_size > 0 for path in out)
    (row,) = rows(out[0])
    assert row["cache_bytes_per_token_and_device"] == "69120"
    assert row["decode_binding_roof"] == "memory"
    parts = ("weights_ms", "attention_ms", "collectives_ms", "overhead_ms")
    total = sum(float(row[f"decode_{part}"]) for part in parts)
    assert total == pytest.approx(float(row["decode_step_ms"]), abs=1e-3)
    assert json.loads(out[1].read_text())["rows"][0]["parallel"] == "TP2,DP4"


def test_serve_writes_a_row_a_concurrency(tmp_path):
    out = [tmp_path / "x.csv", tmp_path / "x.png"]
    result = run(*SERVED, "--concurrency", "1,4", "--csv", out[0], "--plot", out[1])
    assert result.exit_code == 0, result.output
    one, four = rows(out[0])
    assert (one["concurrency"], four["concurrency"]) == ("1", "4")
    assert float(four["tokens/s"]) > 2 * float(one["tokens/s"])
    assert out[1].stat().st_size > 0


def test_serve_takes_a_file_of_rows_and_a_rate(tmp_path):
    given = write(tmp_path / "load.csv", "prompt,output\n100,10\n2000,30\n")
    result = run("serve", "--workload", given, "--rate", 2, "--csv", tmp_path / "x.csv")
    assert result.exit_code == 0, result.output
    assert rows(tmp_path / "x.csv")[0]["rate"] == "2.0"


def test_search_ranks_and_gives_reasons(tmp_path):
    out = tmp_path / "x.csv"
    result = run(
        *("search", "--variants", "gqa-8,gla-2,mla", "--devices", 2, "--itl", 8, "--ttft", 2),
        *(*SERVED[1:], "--csv", out),
    )
    assert result.exit_code == 0, result.output
    found = rows(out)
    assert len(found) == 6
    meeting = [float(r["tokens/s"]) for r in found if r["meets"] == "yes"]
    assert meeting
    assert meeting == sorted(meeting, reverse=True)
    assert all(r["meets"] != "yes" for r in found[len(meeting) :])
    result = run(
        "search", "--model", "deepseek-v2", "--devices", 1, "--variants", "mla", *SERVED[1:]
    )
    assert "memory" in result.output  # 236 GB do not fit on one device


def test_a_hugging_face_configuration(tmp_path):
    write(tmp_path / "config.json", DEEPSEEK_V3)
    shape = configs.load(tmp_path)
    assert shape.parameters == pytest.approx(671e9, rel=0.002)
    assert shape.active_parameters == pytest.approx(37.5e9, rel=0.02)
    assert (shape.weight_dtype, shape.cache_dtype) == ("fp8", "bf16")
    llama = configs.from_config(LLAMA, "llama-3-8b")
    assert llama == configs.KNOWN["llama-3-8b"]


def test_ridgelines_own_configuration():
    from ridgeline.models.generate import default_model

    shape = configs.load(default_model())
    assert shape.variant == "gla"
    assert shape.cache_bytes() > 0


def test_hardware_and_kernels_from_a_bench_file(tmp_path):
    path = write(tmp_path / "decode.csv", DECODE)
    machine, found = measured.read(path, 8e9)
    assert (machine.bandwidth, machine.bf16) == (21e9, 130e9)
    times = measured.kernel_times(found, configs.KNOWN["llama-3-8b"])
    assert times(1, 8192) == pytest.approx(4e-3)
    assert times(2, 20480) == pytest.approx(9e-3)
    assert times(8, 65536) == pytest.approx(28e-3)
    as_json = write(tmp_path / "x.json", {"rows": [dict(r) for r in rows(path)]})
    assert measured.read(as_json, 8e9)[1] == found
    with pytest.raises(ValueError, match="kernels: expected a row with variant"):
        measured.kernel_times(found, configs.KNOWN["llama-3-8b"], tp=2)
    assert run("show", "--hardware", path, "--kernels", path, "--batch", 1).exit_code == 0


def test_own_hardware_and_efficiency(tmp_path):
    device = write(tmp_path / "d.toml", "[X1]\nbf16 = 1e15\nmemory = 1e11\nbandwidth = 4e12\n")
    shares = write(tmp_path / "e.toml", "layer_overhead = 0\n[decode]\nmemory = 0.5\n")
    out = tmp_path / "x.csv"
    assert run("show", "--hardware", device, "--efficiency", shares, "--csv", out).exit_code == 0
    (row,) = rows(out)
    expected = 1e3 * (32 * 8192 * 131072 / 2e12 + 32 * 5e-6)
    assert float(row["decode_attention_ms"]) == pytest.approx(expected, abs=1e-3)


@pytest.mark.parametrize("name", hardware.data_sheets())
def test_a_data_sheet_has_the_ridge_of_its_device(name):
    """Published ridges in FLOP/B: H20 37, H100 295, H200 206."""
    device = hardware.find(name)
    ridge = device.bf16 / device.bandwidth
    assert ridge == pytest.approx({"H20": 37, "H100": 295, "H200": 206}.get(name, ridge), abs=0.5)
    assert device.fp8 in (0, pytest.approx(2 * device.bf16, rel=0.001))


def test_distributions():
    import numpy as np

    generator = np.random.default_rng(0)
    uniform = Lengths.parse("x", "uniform:1-100").draw(20_000, generator)
    assert (uniform.min(), uniform.max()) == (1, 100)
    assert uniform.mean() == pytest.approx(50.5, rel=0.02)
    skewed = Lengths.parse("x", "lognormal:1000,0.5,4000").draw(20_000, generator)
    assert np.median(skewed) == pytest.approx(1000, rel=0.02)
    assert skewed.max() == 4000
    assert set(Lengths.parse("x", "77").draw(3, generator)) == {77}


BAD = {
    "hardware": (["show", "--hardware", "H900"], "hardware: expected one of H20, A100, H100"),
    "model": (["show", "--model", "nothing"], "model: expected llama-3-8b, deepseek-v2"),
    "variant": (["show", "--variant", "gla"], "variants: expected mha, mqa, mla, gqa-N"),
    "cached-heads": (["show", "--variant", "gla-3"], "kv_heads: expected a divisor of heads (32)"),
    "heads": (["show", "--tp", "3"], "tp: expected a divisor of the 32 query heads (1, 2, 4"),
    "mlp": (["show", "--tp", "8", "--dp", "3"], "tp * dp: expected a divisor of the MLP"),
    "memory": (["show", "--model", "deepseek-v2"], "memory: the weights need 236.7 GB a device"),
    "dtype": (["show", "--cache", "int4"], "cache_dtype: expected one of bf16"),
    "prompt": (["serve", "--prompt", "many"], "prompt: expected 8192, uniform"),
    "output": (["serve", "--output", "uniform:9-3"], "output: expected 1 <= low <= high"),
    "request": (["serve", "--prompt", "900000"], "workload: expected requests of at most"),
    "load": (["serve", "--rate", "1", "--concurrency", "2"], "--rate: expected without"),
    "reserve": (["serve", "--reserve", "1.5"], "reserve: expected at most 1"),
    "acceptance": (["serve", "--acceptance", "0.5"], "acceptance: expected together with draft"),
    "requests": (["serve", "--requests", "0"], "requests: expected at least 1"),
    "limit": (["search", "--itl", "-1"], "itl: expected a number above 0"),
    "measure": (["measure", "--steps", "0"], "steps: expected at least 1"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_arguments_name_the_culprit(name):
    args, message = BAD[name]
    result = run(*args)
    assert isinstance(result.exception, (ValueError, OSError))
    assert str(result.exception).startswith(message)


FILES = {
    "hardware-unknown": (
        ["show", "--hardware"],
        "x.toml",
        "[X]\nbf16 = 1\nmemory = 1\nbandwidth = 1\ntensor_cores = 4\n",
        "x.toml [X]: unknown field 'tensor_cores'; possible are name, bf16",
    ),
    "hardware-missing": (
        ["show", "--hardware"],
        "x.toml",
        "[X]\nbf16 = 1\n",
        "'memory' is missing",
    ),
    "hardware-value": (
        ["show", "--hardware"],
        "x.toml",
        "[X]\nbf16 = 1\nmemory = -1\nbandwidth = 1\n",
        "memory: expected a number above 0, got -1",
    ),
    "no-toml": (["show", "--hardware"], "x.toml", "[X\n", "expected TOML"),
    "efficiency": (
        ["show", "--efficiency"],
        "x.toml",
        "[decode]\nspeed = 1\n",
        "unknown field 'speed'",
    ),
    "share": (["show", "--efficiency"], "x.toml", "prefill = 1.5\n", "prefill: expected a share"),
    "model-type": (["show", "--model"], "c.json", {"model_type": "bert"}, "model_type: expected"),
    "model-field": (
        ["show", "--model"],
        "c.json",
        {"model_type": "llama", "num_attention_heads": 4, "hidden_size": 64},
        "num_hidden_layers: the configuration has none",
    ),
    "no-json": (["show", "--model"], "c.json", "{", "expected JSON"),
    "model-toml": (["show", "--model"], "m.toml", 'variant = "gqa"\nwidth = 3\n', "field 'width'"),
    "column": (["serve", "--workload"], "w.csv", "prompt,answer\n1,2\n", "column 'output'"),
    "cell": (
        ["serve", "--workload"],
        "w.csv",
        "prompt,output\n5,6\n1,many\n",
        "w.csv, row 2: output: expected a number above 0, got 'many'",
    ),
    "part-of-a-token": (["serve", "--workload"], "w.csv", "prompt,output\n1.5,2\n", "whole tokens"),
    "short-row": (
        ["serve", "--workload"],
        "w.csv",
        "prompt,output\n1\n",
        "row 1: expected the col",
    ),
    "empty": (["serve", "--workload"], "w.csv", "prompt,output\n", "at least one row"),
    "kernels": (["show", "--kernels"], "k.csv", "variant,ms\ngqa,1\n", "column 'memory_roof_GB/s'"),
}


@pytest.mark.parametrize("name", FILES)
def test_bad_files_name_the_field(name, tmp_path):
    args, file, content, message = FILES[name]
    result = run(*args, write(tmp_path / file, content))
    assert isinstance(result.exception, ValueError)
    assert message in str(result.exception)


def test_one_kind_of_load():
    with pytest.raises(ValueError, match="concurrency, rate: expected one of them"):
        Workload((1,), (1,))


@pytest.mark.parametrize("command", ["serve", "search", "validate"])
def test_without_simpy_it_says_what_to_install(command, monkeypatch):
    monkeypatch.setitem(sys.modules, "simpy", None)
    result = run(command)
    assert isinstance(result.exception, ValueError)
    assert "pip install 'ridgeline[plan]'" in str(result.exception)


def test_a_plan_without_a_server_needs_no_simpy(monkeypatch):
    monkeypatch.setitem(sys.modules, "simpy", None)
    assert run("show").exit_code == 0
