"""`ridgeline convert` and `train --from`: folders in and out, what they refuse and keep."""

import dataclasses
import json
import sys

import pytest
import torch
from training_cases import tiny_config, weights_of, write_text
from transformers import LlamaConfig, LlamaForCausalLM

from ridgeline.cli import main
from ridgeline.models import RidgelineForCausalLM
from ridgeline.models.manifest import verify_manifest
from ridgeline.training import convert as command
from ridgeline.training.evaluate import held_out_loss
from ridgeline.training.export import export_model
from ridgeline.training.pretrain import pretrain
from ridgeline.training.start import Start, model_fields
from ridgeline.training.study import conversion
from ridgeline.training.study.runs import train_or_resume
from ridgeline.training.text import prepare_text

MODEL = {"attention": "gqa", "num_key_value_heads": 2, "hidden_size": 48, "head_dim": 8}


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    return write_text(tmp_path_factory.mktemp("text") / "text.txt", lines=1200)


@pytest.fixture(scope="module")
def trained(text, tmp_path_factory):
    """A finished run of a GQA model in float32: its config and the folder of its model."""
    out = tmp_path_factory.mktemp("trained")
    config = tiny_config(text, model=MODEL, steps=30, lr=1e-2, dtype="fp32", eval_every=30)
    result = pretrain(out, config)
    prepared = prepare_text(config)
    export_model(result.model, prepared.tokenizer, out / "model", torch.float32)
    return config, out / "model", result


def call(monkeypatch, capsys, *arguments) -> tuple[int, str, str]:
    """Exit status, output and errors of the command line."""
    monkeypatch.setattr(sys, "argv", ["ridgeline", *map(str, arguments)])
    with pytest.raises(SystemExit) as caught:
        main()
    return caught.value.code or 0, *capsys.readouterr()


# --- convert


@pytest.mark.parametrize("to", ["gta", "gla", "mla"])
def test_a_folder_is_converted(to, trained, text, tmp_path, monkeypatch, capsys):
    _, source, _ = trained
    with_text = ["--text", text] if to == "gla" else []
    status, out, _ = call(
        monkeypatch, capsys, "convert", source, tmp_path / "new", "--to", to, *with_text
    )
    assert status == 0
    lines = out.splitlines()
    assert [line.split(":")[0] for line in lines[:2]] == ["layer 0", "layer 1"]
    assert ("output" in lines[0]) == bool(with_text)
    assert f"ridgeline train OUT --from {tmp_path / 'new'}" in lines[-1]
    assert verify_manifest(tmp_path / "new")
    assert (tmp_path / "new" / "tokenizer.json").read_bytes() == (
        source / "tokenizer.json"
    ).read_bytes()
    model = RidgelineForCausalLM.from_pretrained(tmp_path / "new")
    assert model.config.attention == to
    assert model.dtype == torch.float32
    assert not list((tmp_path / "new").glob("*.bin"))


def test_a_llama_checkpoint_is_converted_as_its_own_weights_are(tmp_path):
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2}
    llama = LlamaForCausalLM(
        LlamaConfig(vocab_size=64, num_attention_heads=4, num_key_value_heads=2, **sizes)
    )
    llama.save_pretrained(tmp_path / "llama")
    list(command.run(tmp_path / "llama", tmp_path / "new", "gta", text=None, tokens=1))
    expected, _ = command.convert(RidgelineForCausalLM.from_llama(llama), "gta")
    found = RidgelineForCausalLM.from_pretrained(tmp_path / "new")
    for name, weight in expected.state_dict().items():
        assert torch.equal(found.state_dict()[name], weight), name


def test_only_so_many_tokens_of_the_text_count(trained, text, tmp_path):
    _, source, _ = trained
    content = text.read_text()
    longer = tmp_path / "longer.txt"
    longer.write_text(content + "other words entirely " * 200)
    found = []
    for i, (file, tokens) in enumerate(((text, 512), (longer, 512), (longer, 10**6))):
        list(command.run(source, tmp_path / str(i), "gta", text=file, tokens=tokens))
        found.append((tmp_path / str(i) / "model.safetensors").read_bytes())
    assert found[0] == found[1]
    assert found[1] != found[2]


def test_what_cannot_be_converted_is_one_line(trained, text, tmp_path, monkeypatch, capsys):
    _, source, _ = trained
    full, empty, short = tmp_path / "full", tmp_path / "empty", tmp_path / "short.txt"
    full.mkdir()
    (full / "file").touch()
    empty.mkdir()
    short.write_text("def")
    other, damaged = tmp_path / "other", tmp_path / "damaged"
    other.mkdir()
    (other / "config.json").write_text(json.dumps({"model_type": "gpt2"}))
    list(command.run(source, damaged, "gta", text=None, tokens=1))
    weights = damaged / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])
    new = tmp_path / "new"
    for arguments, message in (
        ([source, full, "--to", "gla"], "dst: expected a folder that is empty"),
        ([empty, new, "--to", "gla"], "src: expected the folder of a model"),
        ([other, new, "--to", "gla"], "src: expected a model of type ridgeline or llama"),
        ([damaged, new, "--to", "gla"], f"{weights}: truncated"),
        ([source, new, "--to", "gqa"], "to: expected one of gta, mla, gla"),
        ([source, new, "--to", "mla", "--kv-heads", "2"], "num_key_value_heads: expected None"),
        ([source, new, "--to", "gla", "--text", short], "text: expected at least 256 tokens"),
        ([source, new, "--to", "gla", "--text", new], "text: "),
    ):
        status, _, err = call(monkeypatch, capsys, "convert", *arguments)
        assert status == 1, message
        assert err.startswith(f"ridgeline: error: {message}"), err
        assert not new.exists()


# --- train --from


@pytest.fixture(scope="module")
def converted(trained, tmp_path_factory):
    folder = tmp_path_factory.mktemp("converted") / "model"
    list(command.run(trained[1], folder, "gla", text=None, tokens=1, latent_dim=24))
    return folder


def start_config(trained, folder, **changes):
    fields = {"model": Start.read(folder).model, "start": str(folder), "steps": 4, "warmup": 0}
    return dataclasses.replace(trained[0], **fields, **changes)


def test_a_run_begins_with_the_weights(trained, converted, tmp_path):
    """At a rate of nearly nothing, the loss of the first step is that of the given weights."""
    config = start_config(trained, converted, lr=1e-12)
    result = pretrain(tmp_path, config)
    model = RidgelineForCausalLM.from_pretrained(converted)
    prepared = prepare_text(config, (converted / "tokenizer.json").read_text())
    sizes = {"context": config.context, "batch": config.batch, "dtype": "fp32"}
    expected = held_out_loss(model, prepared.held_out.tokens, **sizes)
    assert result.held_out_loss == pytest.approx(expected, rel=1e-6)
    assert result.model.config.rope_parameters == model.config.rope_parameters
    assert model_fields(result.model.config) == config.model
    fresh = pretrain(tmp_path / "fresh", dataclasses.replace(config, start=None))
    assert abs(fresh.held_out_loss - expected) > 0.1


def test_fine_tuning_wins_back_what_the_conversion_lost(trained, converted, tmp_path):
    config = start_config(trained, converted, lr=3e-3)
    config = dataclasses.replace(config, steps=20, eval_every=20)
    before = pretrain(tmp_path / "still", dataclasses.replace(config, steps=1, lr=1e-12))
    after = pretrain(tmp_path / "tuned", config)
    assert after.held_out_loss < before.held_out_loss


def test_a_run_from_weights_resumes_without_them(trained, converted, tmp_path):
    config = start_config(trained, converted)
    whole = pretrain(tmp_path / "whole", config)

    class Stop(Exception):
        pass

    def stop(row):
        if row.step == 3:
            raise Stop

    with pytest.raises(Stop):
        pretrain(tmp_path / "killed", config, on_step=stop)
    gone = converted.rename(converted.with_name("gone"))
    try:
        resumed = train_or_resume(tmp_path / "killed", config, prepare_text(config))
    finally:
        gone.rename(converted)
    for name, weight in weights_of(whole.model).items():
        assert torch.equal(weight, resumed.model.get_parameter(name)), name


def test_the_command_takes_sizes_and_tokenizer_over(
    trained, converted, text, tmp_path, monkeypatch, capsys
):
    arguments = ["train", tmp_path / "out", text, "--from", converted, "--steps", "2"]
    arguments += ["--context", "32", "--batch", "2", "--dtype", "fp32", "--threads", "1"]
    status, _, err = call(monkeypatch, capsys, *arguments)
    assert status == 0, err
    model = RidgelineForCausalLM.from_pretrained(tmp_path / "out" / "model")
    assert model_fields(model.config) == Start.read(converted).model
    ours, theirs = (
        json.loads((folder / "tokenizer.json").read_text())
        for folder in (tmp_path / "out" / "model", converted)
    )
    assert ours["model"] == theirs["model"]
    status, _, err = call(monkeypatch, capsys, "train", tmp_path / "out", "--resume")
    assert status == 0, err


def test_what_does_not_fit_the_weights_is_named(
    trained, converted, text, tmp_path, monkeypatch, capsys
):
    out = tmp_path / "out"
    foreign = tmp_path / "foreign"
    foreign.mkdir()
    for name in ("config.json", "tokenizer.json"):
        content = (converted / name).read_text().replace("<|endoftext|>", "<|end|>")
        (foreign / name).write_text(content)
    for arguments, message in (
        (["--from", converted, "--attention", "mha"], "attention: expected 'gla' as"),
        (["--from", converted, "--vocab-size", "301"], "vocab_size: expected "),
        (["--from", tmp_path / "absent"], "from: expected the folder of a model"),
        (["--from", tmp_path], "from: "),
        (["--from", foreign], "from: "),
    ):
        status, _, err = call(monkeypatch, capsys, "train", out, text, *arguments)
        assert status == 1, message
        assert err.startswith(f"ridgeline: error: {message}"), err
        assert not out.exists()
    config = start_config(trained, converted)
    with pytest.raises(ValueError, match=r"^latent_dim: expected 24 as .* has it, got 16"):
        pretrain(out, dataclasses.replace(config, model={**config.model, "latent_dim": 16}))


# --- the comparison


def test_the_comparison_of_starts(text, tmp_path):
    base = tiny_config(text, model=MODEL, steps=30, lr=1e-2, dtype="fp32", eval_every=30)
    tune = dataclasses.replace(base, steps=3, lr=1e-3, seed=1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(conversion, "RUNS", (conversion.RUNS[0], *conversion.RUNS[1:3]))
        rows, again = [], []
        conversion.run(tmp_path, base, tune, rows.append)
        patch.setattr("ridgeline.training.study.runs.pretrain", _only_the_source)
        conversion.run(tmp_path, base, tune, again.append)
    assert again == rows
    trained, converted, drawn = rows
    assert (trained.attention, converted.attention, drawn.weights) == ("gqa", "gta", "drawn anew")
    # After so few steps attention does little, and all that counts is that nothing breaks.
    assert converted.loss_before == pytest.approx(trained.loss_before, abs=0.01)
    assert abs(drawn.loss_before - trained.loss_before) > 0.05
    assert trained.output_error is None
    assert converted.output_error < 0.1
    assert drawn.output_error == pytest.approx(1.0)  # its output projection is zero
    for row in rows:
        assert row.loss_after < row.loss_before
    # The optimizer finds the converted weights as large as those it left.
    gained = [row.loss_before - row.loss_after for row in (trained, converted)]
    assert gained[1] == pytest.approx(gained[0], rel=0.3)
    conversion.write_csv(tmp_path / "c.csv", rows)
    lines = (tmp_path / "c.csv").read_text().splitlines()
    assert lines[5].startswith("attention,weights,cache_bytes,parameters,output_error,loss_before")
    assert lines[6].split(",")[:2] == ["gqa", "as trained"]


def _only_the_source(folder, *arguments, **options):
    assert folder.name == "source", "a finished run was trained again"
    return pretrain(folder, *arguments, **options)
