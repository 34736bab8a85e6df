"""Plans of the server's steps come from rates and overheads, never from the steps."""

import csv
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from ridgeline.bench import files, machine
from ridgeline.bench.serving import report
from ridgeline.bench.serving.client import Load, Metrics
from ridgeline.bench.serving.measure import MIB, OURS, Row, ServeBenchOptions
from ridgeline.bench.serving.models import NARROW, ServedShape
from ridgeline.cli import app
from ridgeline.models import RidgelineConfig, RidgelineForCausalLM
from ridgeline.roofline import measure, measure_serve, roofs
from ridgeline.serving import launch

VOCAB, OUTPUT, LAYERS = 96, 8, 2
SHAPE = ServedShape(
    layers=LAYERS, hidden=64, intermediate=256, heads=4, kv_heads=2, latent_heads=2, q_rank=32
)
KEYS = [f"p{p}_{x}_ms" for p in (50, 99) for x in ("ttft", "itl", "e2el")]


def row(
    name: str, itl: float, *, context: int = 40, concurrency: int = 2, seen: bool = True
) -> Row:
    """As a server of ``name`` gives it that holds three requests of any load."""
    model = SHAPE.variant(name, VOCAB)
    sizes = {**model.model, "vocab_size": VOCAB, "dtype": "fp32"}
    result = dict.fromkeys(KEYS, itl) | {"output_throughput": 1.0, "duration": 1.0}
    load = Load(context, OUTPUT, concurrency, concurrency)
    capacity = 3 * (context + OUTPUT)
    before, after = Metrics(capacity), Metrics(capacity, 0, 100, 97 if seen else 0)
    return Row(name, OURS, model.parameters, MIB, sizes, load, seen, result, before, after)


def rows(*names: str) -> list[Row]:
    """Steps of 20 ms for every variant, of which a narrow model takes 5 or 7."""
    found = [row(name, 20.0, seen=seen) for name in names for seen in (False, True)]
    for name in names:
        found += [row(f"{name}{NARROW}", itl, context=4, seen=itl == 7) for itl in (5.0, 7.0)]
    return found


def write(path: Path, found: list[Row], **changed: str) -> Path:
    records = [report.record(r) | changed for r in found]
    files.write_csv(path, records, {"machine": "a test"})
    return path


def test_rows_that_decode_alone_become_steps(tmp_path):
    left_out = [
        row("gqa", 90.0, seen=False),
        row("gqa", 91.0, concurrency=4),  # three are held
        replace(row("gqa", 92.0), attention="engine"),
        replace(row("gqa", 93.0), after=Metrics(144, 1, 100, 97)),  # preempted
        replace(row("gqa", 94.0), after=Metrics(144, 0, 100, 50)),  # half of the prompts computed
    ]
    found = measure_serve.read(write(tmp_path / "x.csv", [*left_out, *rows("gqa", "gla")]))
    assert [s.shape.variant for s in found] == ["gqa", "gla"]
    for step in found:
        assert (step.seconds, step.overhead) == pytest.approx((0.020, 0.006))
        assert step.load == {"context": 40, "output": OUTPUT, "concurrency": 2}
        assert step.cached == 44


@pytest.mark.parametrize("name", ["mha", "mqa", "gqa", "gta", "mla", "gla"])
def test_the_planner_counts_the_model_that_is_served(name, tmp_path):
    step = measure_serve.read(write(tmp_path / "x.csv", rows(name)))[0]
    served = SHAPE.variant(name, VOCAB)
    with torch.device("meta"):
        model = RidgelineForCausalLM(RidgelineConfig(**served.model, vocab_size=VOCAB))
    norms = sum(p.numel() for key, p in model.named_parameters() if "norm" in key)
    assert step.shape.parameters == served.parameters - norms
    assert step.shape.cache_bytes() == 2 * served.cache_bytes  # float32, not bfloat16
    assert step.shape.spec() == model.model.layers[0].self_attn.cache_spec()


def test_a_plan_of_several_sequences_is_the_sum_of_measured_parts():
    shape = measure.MeasureOptions(dtype="fp32").shape("gla-2")
    rates = measure.Rates(20e9, 15e9, 1e12, kernels={"x": 2e-3}, overheads={"x": 4e-3})
    cost = measure.plan(shape, "x", rates, cached=4096, sequences=8)
    read = 4 * (shape.parameters - shape.embedding_parameters)
    assert cost.total == pytest.approx(read / 15e9 + shape.layers * 2e-3 + 4e-3)


def test_the_command_plans_without_the_steps_and_without_simpy(tmp_path, monkeypatch):
    monkeypatch.setattr(measure, "BALLAST", 2**16)
    monkeypatch.setattr(measure_serve, "BALLAST", 2**16)
    monkeypatch.setattr(measure_serve, "require_engine", lambda: None)
    monkeypatch.setattr(measure_serve, "engine_linear", measure.torch_linear)
    monkeypatch.setattr(roofs, "GEMM_SIZE", 32)
    monkeypatch.setattr(machine, "cold_bytes", lambda: 2**16)
    monkeypatch.setitem(sys.modules, "simpy", None)
    # The kernels' and products' clock stands still, so that a plan is the overhead and rates alone.
    monkeypatch.setattr(
        measure_serve.timing, "medians", lambda samples: dict.fromkeys(samples, 1e-3)
    )
    planned = []
    for i, slower in enumerate((1.0, 2.0)):
        found = rows("gqa", "gta", "gla")
        for r in found:
            if not r.is_narrow:
                r.result.update({key: slower * x for key, x in r.result.items()})
        source, out = write(tmp_path / f"{i}.csv", found), tmp_path / f"out{i}.csv"
        result = CliRunner().invoke(app, ["plan", "measure-serve", str(source), "--csv", str(out)])
        assert result.exit_code == 0, result.output
        lines = [x for x in out.read_text().splitlines() if x[0] != "#"]
        read = list(csv.DictReader(lines))
        assert [(r["variant"], r["concurrency"]) for r in read] == [
            (v, "2") for v in ("gqa", "gta", "gla")
        ]
        for r in read:
            assert float(r["measured_ms"]) == 20 * slower
            assert float(r["planned_attention_ms"]) == LAYERS
            assert float(r["planned_overhead_ms"]) == 6
            error = 100 * (float(r["planned_ms"]) / float(r["measured_ms"]) - 1)
            assert float(r["error_percent"]) == pytest.approx(error, abs=0.06)
        planned.append([r["planned_ms"] for r in read])
    assert planned[0] == planned[1]


@pytest.mark.parametrize(
    ("found", "changed", "message"),
    [
        ([row("gqa", 9.0)], {}, "row 1: expected rows of gqa-narrow at concurrency 2"),
        ([row("gqa", 9.0, seen=False)], {}, "expected a row with prompts_are seen"),
        (rows("gqa"), {"dtype": "fp8"}, "row 2: dtype: expected bf16, fp16, fp32, got 'fp8'"),
        (rows("gqa"), {"hidden_size": "wide"}, "hidden_size: expected a number above 0"),
        (rows("gqa"), {"hidden_size": "64.5"}, "hidden_size: expected a whole number, got '64.5'"),
        (rows("gqa"), {"num_key_value_heads": "3"}, "row 2: kv_heads: expected a divisor"),
        (rows("gqa"), {"p50_itl_ms": "0"}, "p50_itl_ms: expected a number above 0"),
    ],
    ids=["no twin", "no step", "dtype", "size", "part", "heads", "itl"],
)
def test_a_bad_file_names_row_and_column(found, changed, message, tmp_path):
    path = write(tmp_path / "x.csv", found, **changed)
    with pytest.raises(ValueError, match=message):
        measure_serve.read(path)


def test_a_file_without_sizes_is_refused(tmp_path):
    path = tmp_path / "x.csv"
    path.write_text("model,attention,prompts_are\ngqa,ridgeline,seen\n")
    with pytest.raises(ValueError, match="expected a column 'variant', found model"):
        measure_serve.read(path)


def test_narrow_twins_are_served_when_asked_for():
    options = ServeBenchOptions(variants=("gqa", "gla"), contexts=(8, 16), concurrency=(1, 4))
    names = [name for name, _ in replace(options, overhead=True).served()]
    assert names == ["gqa", "gla", f"gqa{NARROW}", f"gla{NARROW}"]
    assert [name for name, _ in options.served()] == ["gqa", "gla"]
    loads = options.loads(narrow=True)
    assert [(x.context, x.concurrency) for x in loads] == [(64, 1), (64, 4)]
    assert len({x.seed for x in loads}) == 2
    wide, narrow = (ServedShape().variant(f"gla{end}", VOCAB) for end in ("", NARROW))
    assert narrow.model["num_hidden_layers"] == wide.model["num_hidden_layers"]
    assert narrow.parameters < wide.parameters / 50


def test_without_vllm_it_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setattr(launch, "find_spec", lambda name: None)
    source = write(tmp_path / "x.csv", rows("gqa"))
    result = CliRunner().invoke(app, ["plan", "measure-serve", str(source)])
    assert "pip install 'ridgeline[vllm]'" in str(result.exception)
