"""Plans of this machine's steps come from its rates alone."""

import csv

import pytest
from typer.testing import CliRunner

from ridgeline.bench import machine
from ridgeline.cli import app
from ridgeline.roofline import measure, roofs

RATES = measure.Rates(
    read=20e9, gemv=15e9, gemm=100e9, kernels={"gla-2": 2e-3}, overheads={"gla-2": 4e-3}
)


@pytest.fixture
def _small_probes(monkeypatch):
    monkeypatch.setattr(measure, "BALLAST", 2**16)
    monkeypatch.setattr(roofs, "GEMM_SIZE", 32)
    monkeypatch.setattr(machine, "cold_bytes", lambda: 2**16)


def test_a_plan_is_the_sum_of_measured_parts():
    shape = measure.MeasureOptions(dtype="fp32").shape("gla-2")
    cost = measure.plan(shape, "gla-2", RATES, cached=4096)
    read = 4 * (shape.parameters - shape.embedding_parameters)
    assert cost.weights == pytest.approx(read / 15e9)
    assert cost.attention == pytest.approx(shape.layers * 2e-3)
    assert cost.overhead == pytest.approx(4e-3)
    assert cost.total == pytest.approx(cost.weights + cost.attention + cost.overhead)


@pytest.mark.parametrize("label", ["mha", "gqa-8", "gta-8", "mla", "gla-2"])
def test_the_planner_counts_the_parameters_of_the_model_that_runs(label):
    from ridgeline.models import RidgelineForCausalLM

    shape = measure.MeasureOptions(hidden=64, intermediate=96, heads=8, head_dim=16).shape(label)
    model = RidgelineForCausalLM(measure._config(shape, 32))
    norms = sum(p.numel() for name, p in model.named_parameters() if "norm" in name)
    assert sum(p.numel() for p in model.parameters()) - norms == shape.parameters
    spec = model.model.layers[0].self_attn.cache_spec()
    assert spec == shape.spec()


@pytest.mark.usefixtures("_small_probes")
def test_the_command_measures_and_plans(tmp_path):
    out = tmp_path / "x.csv"
    sizes = "--layers 2 --hidden 64 --intermediate 96 --heads 8 --head-dim 16 --vocab 64"
    args = [*sizes.split(), "--length", "20", "--steps", "2", "--dtype", "fp32", "--csv", str(out)]
    result = CliRunner().invoke(app, ["plan", "measure", *args])
    assert result.exit_code == 0, result.output
    lines = [x for x in out.read_text().splitlines() if x[0] != "#"]
    rows = list(csv.DictReader(lines))
    assert [r["variant"] for r in rows] == ["gqa-8", "gta-8", "gla-2"]
    for r in rows:
        parts = ("planned_weights_ms", "planned_attention_ms", "planned_overhead_ms")
        assert sum(float(r[x]) for x in parts) == pytest.approx(float(r["planned_ms"]), abs=1e-3)
        assert float(r["measured_ms"]) > 0


@pytest.mark.usefixtures("_small_probes")
def test_this_machine():
    found = measure.this_machine()
    assert found.bandwidth > 0
    assert found.bf16 > 0
    assert found.memory == machine.memory_bytes()
