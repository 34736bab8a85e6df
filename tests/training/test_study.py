"""The quality study: equal sizes, runs that are made once and in the same bits, honest spreads."""

import csv
import dataclasses
import json
import math
from pathlib import Path

import pytest
import torch
from training_cases import tiny_config, write_text

from ridgeline.models import RidgelineConfig, RidgelineForCausalLM
from ridgeline.training.checkpoint import replace_file
from ridgeline.training.pretrain import pretrain
from ridgeline.training.study import report, runs
from ridgeline.training.study.runs import Outcome, Study, run_study
from ridgeline.training.study.shapes import StudyShape

VARIANTS = ("mha", "mqa", "gqa", "gta", "mla", "gla")
SHAPE = StudyShape(
    hidden_size=32,
    intermediate_size=48,
    num_hidden_layers=1,
    num_attention_heads=4,
    num_key_value_heads=2,
    q_rank=16,
)
ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "benchmarks" / "results" / "quality_study.csv"


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    text = write_text(tmp_path_factory.mktemp("text") / "text.txt")
    train = tiny_config(text, model={}, steps=4, dtype="fp32", eval_every=4)
    return Study(("gqa", "gla"), seeds=2, shape=SHAPE, train=dataclasses.replace(train, model={}))


@pytest.fixture(scope="module")
def finished(study, tmp_path_factory):
    """A whole study: its folder, and its outcomes as they came."""
    out, seen = tmp_path_factory.mktemp("study"), []
    assert run_study(out, study, on_outcome=seen.append) == seen
    return out, seen


def weights(out: Path, run: str) -> bytes:
    return (out / run / "model" / "model.safetensors").read_bytes()


def forbid(*_: object, **__: object) -> None:
    raise AssertionError("a finished run was trained again")


# --- sizes


@pytest.mark.parametrize("shape", [SHAPE, StudyShape()], ids=["tiny", "default"])
@pytest.mark.parametrize("name", VARIANTS)
def test_every_variant_has_mhas_size(name, shape):
    mha, found = shape.variant("mha", 300), shape.variant(name, 300)
    assert mha.model["intermediate_size"] == shape.intermediate_size
    # One more column of an MLP is a row of gate and up and a column of down, in every layer.
    column = 3 * shape.hidden_size * shape.num_hidden_layers
    assert abs(found.parameters - mha.parameters) <= column / 2
    saved = mha.attention_parameters - found.attention_parameters
    widened = found.model["intermediate_size"] - shape.intermediate_size
    assert abs(widened - saved / column) <= 0.5
    model = RidgelineForCausalLM(RidgelineConfig(vocab_size=300, **found.model))
    assert found.parameters == sum(p.numel() for p in model.parameters())
    layer = model.model.layers[0].self_attn
    size = sum(p.numel() for p in layer.parameters()) * shape.num_hidden_layers
    assert found.attention_parameters == size


def test_cache_bytes_are_those_of_the_definitions():
    """In units of the width of a head, from the paper's tables: 8 heads, groups of two."""
    units = {"mha": 16, "mqa": 2, "gqa": 8, "gta": 4.5, "mla": 4.5, "gla": 4.5}
    found = {name: StudyShape().variant(name, 300).cache_bytes for name in VARIANTS}
    assert found == {name: 2 * 4 * 16 * n for name, n in units.items()}


def test_labels_name_the_heads():
    labels = [StudyShape().variant(name, 300).label for name in VARIANTS]
    assert labels == ["MHA", "MQA", "GQA-4", "GTA-4", "MLA", "GLA-2"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"variants": ("gqa", "rnn")}, "variants: expected some of mha, .*, got 'rnn'"),
        ({"variants": ("gqa", "gqa")}, "variants: gqa is given twice"),
        ({"seeds": 0}, "seeds: expected at least 1"),
        ({"shape": dataclasses.replace(SHAPE, num_key_value_heads=3)}, "num_key_value_heads: "),
        (
            {"variants": ("mla",), "shape": dataclasses.replace(SHAPE, intermediate_size=1)},
            "intermediate_size: mla has .* parameters without an MLP",
        ),
    ],
    ids=["unknown", "twice", "no seeds", "heads", "no room"],
)
def test_impossible_studies_are_named(study, changes, message):
    with pytest.raises(ValueError, match=f"^{message}"):
        dataclasses.replace(study, **changes)


# --- runs


def test_all_variants_of_a_seed_come_before_the_next_seed(finished):
    order = [(outcome.variant, outcome.seed) for outcome in finished[1]]
    assert order == [("gqa", 0), ("gla", 0), ("gqa", 1), ("gla", 1)]


def test_a_run_is_what_train_makes_of_its_settings(study, finished, tmp_path):
    out, outcomes = finished
    model = SHAPE.variant("gla", study.train.vocab_size).model
    alone = pretrain(tmp_path, dataclasses.replace(study.train, model=model, seed=1))
    assert outcomes[3].held_out_loss == alone.held_out_loss
    assert outcomes[3].parameters == alone.parameters
    assert outcomes[3].baseline_loss == alone.baseline_loss
    assert weights(out, "gla-seed1") == (tmp_path / "model" / "model.safetensors").read_bytes()
    assert outcomes[1].held_out_loss != outcomes[3].held_out_loss


def test_finished_runs_are_not_repeated(study, finished, monkeypatch):
    out, outcomes = finished
    monkeypatch.setattr(runs, "pretrain", forbid)
    assert run_study(out, study, on_outcome=lambda _: None) == outcomes


def test_a_killed_study_goes_on_to_the_same_bits(study, finished, tmp_path):
    """Killed within a run, and again where a run has ended but not yet left its result."""

    class Killed(Exception):
        pass

    def killed_at_step(folder, config, **options):
        def on_step(row):
            if row.step == 3 and folder.name == "gla-seed0":
                raise Killed

        return pretrain(folder, config, on_step=on_step, **options)

    def killed_before_the_result(path, data):
        if path.parent.name == "gqa-seed1":
            raise Killed
        replace_file(path, data)

    for module, name, killer in (
        (runs, "pretrain", killed_at_step),
        (runs.checkpoints, "replace_file", killed_before_the_result),
    ):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(module, name, killer)
            with pytest.raises(Killed):
                run_study(tmp_path, study, on_outcome=lambda _: None)
    found = run_study(tmp_path, study, on_outcome=lambda _: None)
    for ours, theirs in zip(found, finished[1], strict=True):
        assert ours.held_out_loss == pytest.approx(theirs.held_out_loss, rel=1e-8)  # 9 digits
        run = f"{ours.variant}-seed{ours.seed}"
        assert weights(tmp_path, run) == weights(finished[0], run)


def test_other_settings_are_not_taken_for_a_finished_run(study, finished):
    other = dataclasses.replace(study, train=dataclasses.replace(study.train, lr=1e-2))
    with pytest.raises(ValueError, match=r"^lr: the checkpoint was trained with 0\.003, got 0\.01"):
        run_study(finished[0], other, on_outcome=lambda _: None)


def test_another_process_makes_the_same_bits(study, finished, tmp_path):
    one = dataclasses.replace(study, variants=("gqa",), seeds=1)
    (outcome,) = run_study(tmp_path, one, workers=2, on_outcome=lambda _: None)
    assert outcome == dataclasses.replace(finished[1][0], seconds=outcome.seconds)
    assert weights(tmp_path, "gqa-seed0") == weights(finished[0], "gqa-seed0")


# --- report


def outcome(variant: str, seed: int, loss: float) -> Outcome:
    numbers = {field.name: 1 for field in dataclasses.fields(Outcome)}
    named = {"variant": variant, "label": variant.upper(), "seed": seed, "held_out_loss": loss}
    return Outcome(**{**numbers, **named})


def test_means_spreads_and_paired_differences():
    losses = {"gqa": (3.0, 3.5, 4.0), "gla": (2.9, 3.3, 3.7), "mha": (3.1,)}
    outcomes = [outcome(v, i, x) for v, found in losses.items() for i, x in enumerate(found)]
    gqa, gla, mha = report.summaries(outcomes)
    assert gqa.loss == pytest.approx((3.5, 0.5))
    assert gqa.against is None
    assert gla.loss == pytest.approx((3.3, 0.4))
    assert gla.against == pytest.approx((-0.2, 0.1))  # of -0.1, -0.2, -0.3
    assert gla.perplexity == pytest.approx(math.exp(3.3))
    assert mha.seeds == 1
    assert mha.against[0] == pytest.approx(0.1)
    assert math.isnan(mha.loss[1])
    assert report.cells(gla)[6:] == ["3.3000 ± 0.4000", "27.11", "-0.2000 ± 0.1000"]
    assert report.cells(mha)[6:] == ["3.1000", "22.20", "+0.1000"]


def test_differences_are_taken_within_a_seed():
    """GQA has not come to seed 1 yet: its mean must not stand in for it."""
    outcomes = [outcome("gla", 0, 3.0), outcome("gla", 1, 9.0), outcome("gqa", 0, 3.25)]
    assert report.summaries(outcomes)[0].against == pytest.approx((-0.25, math.nan), nan_ok=True)
    assert report.summaries(outcomes[:2])[0].against is None


def test_csv_and_plot_of_a_part_of_a_study(finished, tmp_path):
    outcomes = finished[1][:3]
    report.write_csv(tmp_path / "q.csv", outcomes)
    lines = (tmp_path / "q.csv").read_text().splitlines()
    assert [line.split(":")[0] for line in lines[:5]] == [
        "# command",
        "# commit",
        "# machine",
        "# versions",
        "# date",
    ]
    rows = list(csv.DictReader(lines[5:]))
    assert [(row["variant"], row["seed"]) for row in rows] == [
        ("gqa", "0"),
        ("gla", "0"),
        ("gqa", "1"),
    ]
    for row, found in zip(rows, outcomes, strict=True):
        assert float(row["held_out_loss"]) == pytest.approx(found.held_out_loss, rel=1e-8)
        assert int(row["cache_bytes"]) == found.cache_bytes
    report.plot(tmp_path / "q.png", outcomes)
    assert (tmp_path / "q.png").read_bytes().startswith(b"\x89PNG")


def test_a_result_holds_its_settings(finished):
    saved = json.loads((finished[0] / "gla-seed1" / runs.RESULT).read_text())
    assert saved["config"]["model"]["attention"] == "gla"
    assert saved["config"]["seed"] == 1
    assert Outcome(**saved["outcome"]) == finished[1][3]
    assert torch.get_num_threads() == 1


def test_the_documented_table_is_that_of_the_csv():
    lines = RESULTS.read_text(encoding="utf-8").splitlines()
    types = {field.name: field.type for field in dataclasses.fields(Outcome)}
    outcomes = [
        Outcome(**{name: types[name](value) for name, value in row.items()})
        for row in csv.DictReader(line for line in lines if line[0] != "#")
    ]
    document = (ROOT / "docs" / "quality_study.md").read_text(encoding="utf-8")
    rows = [f"| {' | '.join(report.cells(row))} |" for row in report.summaries(outcomes)]
    assert "\n".join(["|---|---|---|---|---|---|---|---|---|", *rows, "\n"]) in document
