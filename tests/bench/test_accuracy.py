"""Errors of FP16 and FP8 on inputs with outliers: who is better than whom, and by how much."""

import matplotlib.image
import pytest
import torch

from ridgeline.bench import table
from ridgeline.bench.attention import accuracy
from ridgeline.bench.attention.accuracy import BASELINE, SAME_KERNEL, AccuracyOptions
from ridgeline.ops.attention import attention

BEST = "fp8, blocks, incoherent"


@pytest.fixture(scope="module")
def rows() -> list[accuracy.Row]:
    options = AccuracyOptions(lengths=(1024,), heads=1, seeds=3, impl="reference")
    return accuracy.measure(1024, options)


@pytest.fixture
def tiny() -> list[accuracy.Row]:
    options = AccuracyOptions(heads=1, head_dim=16, seeds=2, block=8, impl="reference")
    return [row for n in (24, 40) for row in accuracy.measure(n, options)]


def test_block_scales_and_rotation_keep_the_published_gain(rows) -> None:
    """FlashAttention-3's claim: 2.6 times as accurate as standard FP8."""
    gains = {row.method: row.gain(BASELINE) for row in rows}
    assert gains[BEST] >= accuracy.PUBLISHED
    assert gains[BASELINE] == 1


def test_each_step_helps(rows) -> None:
    errors = {row.method: row.error for row in rows}
    assert errors[BEST] < 0.75 * errors["fp8, blocks"]
    assert errors["fp8, per tensor, incoherent"] < 0.75 * errors[SAME_KERNEL]
    assert errors[SAME_KERNEL] < 0.8 * errors[BASELINE]
    assert errors["fp16"] < 0.8 * errors["fp16 standard"] < 0.02 * errors[BEST]


def test_medians_are_over_seeds(rows) -> None:
    for row in rows:
        assert len(row.errors) == 3
        assert len(set(row.errors)) == 3
        assert min(row.errors) < row.error < max(row.errors)


def test_inputs_have_their_outliers() -> None:
    options = AccuracyOptions(heads=4)
    q, k, v = accuracy.inputs(2048, options, seed=1)
    assert q.shape == (1, 2048, 4, 128)
    assert q.dtype == torch.float64
    for x in (q, k, v):
        # Variance 1 + 0.001 * 100; beyond 6 lie the outliers alone, 55% of a thousandth.
        assert x.var().item() == pytest.approx(1.1, rel=0.02)
        assert (x.abs() > 6).double().mean().item() == pytest.approx(0.00055, rel=0.1)
    assert not torch.equal(q, k)
    assert torch.equal(q, accuracy.inputs(2048, options, seed=1)[0])
    assert not torch.equal(q, accuracy.inputs(2048, options, seed=2)[0])


@pytest.mark.parametrize("causal", [False, True])
def test_the_truth_is_attention(causal: bool, monkeypatch) -> None:
    q, k, v = accuracy.inputs(37, AccuracyOptions(head_dim=16), seed=0)
    want = attention(q, k, v, causal=causal, impl="reference")
    monkeypatch.setattr(accuracy, "MAX_SCORES", 37 * 10)
    torch.testing.assert_close(accuracy.exact(q, k, v, causal), want, rtol=1e-12, atol=1e-14)
    assert accuracy.rmse(want + 0.5, want) == pytest.approx(0.5)


@pytest.mark.parametrize("causal", [False, True])
def test_every_method_is_attention(causal: bool) -> None:
    options = AccuracyOptions(heads=2, head_dim=32, seeds=1, block=16, causal=causal)
    q, k, v = accuracy.inputs(50, options, seed=0)
    want = accuracy.exact(q, k, v, causal)
    for name, method in accuracy._methods(options).items():
        budget = 2e-3 if name.startswith("fp16") else 0.15
        assert (method(q, k, v).double() - want).norm() < budget * want.norm(), name


def test_table_files_and_plot(tiny, tmp_path) -> None:
    console = table.console()
    with console.capture() as captured:
        console.print(accuracy.accuracy_table(tiny))
        for line in accuracy.notes(tiny):
            console.print(line, soft_wrap=True)
    text = captured.get()
    for row in tiny:
        assert f"{row.method} " in text
    assert "x at 24 tokens" in text
    found = accuracy.record(tiny[-1])
    assert (found["method"], found["length"], found["block"], found["seeds"]) == (BEST, 40, 8, 2)
    assert found["rmse_min"] <= found["rmse"] <= found["rmse_max"]
    accuracy.plot(tmp_path / "x.png", tiny, "a machine")
    height, width, _ = matplotlib.image.imread(tmp_path / "x.png").shape
    assert width > 600
    assert height > 200


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"seeds": 0}, "seeds: expected at least 1"),
        ({"heads": 0}, "heads: expected at least 1"),
        ({"impl": "fast"}, "impl: expected one of"),
    ],
)
def test_bad_options_name_the_culprit(given, message: str) -> None:
    with pytest.raises(ValueError, match=f"^{message}"):
        AccuracyOptions(**given)
