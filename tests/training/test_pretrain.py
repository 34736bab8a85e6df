"""Runs: every variant learns, accumulates, resumes in the same bits and says what is wrong."""

import dataclasses
import errno
import os

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from tokenizers import Tokenizer
from training_cases import assert_same_bits, tiny_config, weights_of, write_text
from transformers import AutoTokenizer

from ridgeline.models import RidgelineForCausalLM
from ridgeline.training.evaluate import held_out_loss
from ridgeline.training.log import read_rows
from ridgeline.training.pretrain import pretrain
from ridgeline.training.schedule import learning_rate
from ridgeline.training.state import TrainState, build_model
from ridgeline.training.text import prepare_text

VARIANTS = {
    "mha": {},
    "mqa": {},
    "gqa": {"num_key_value_heads": 2},
    "gta": {"num_key_value_heads": 2},
    "mla": {},
    "gla": {"q_rank": 16},
}


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    return write_text(tmp_path_factory.mktemp("text") / "text.txt")


@pytest.fixture(scope="module")
def finished(text, tmp_path_factory):
    """An uninterrupted run of six steps: its folder and its result."""
    out = tmp_path_factory.mktemp("finished")
    return out, pretrain(out, tiny_config(text))


class Stop(Exception):
    pass


def stop_at(step):
    def on_step(row):
        if row.step == step:
            raise Stop

    return on_step


@pytest.mark.parametrize("attention", VARIANTS)
@pytest.mark.parametrize("dtype", ["bf16", "fp32"])
def test_every_variant_learns(attention, dtype, text, tmp_path):
    model = {"attention": attention, **VARIANTS[attention]}
    config = tiny_config(text, model=model, dtype=dtype, steps=30, lr=1e-2, eval_every=30)
    result = pretrain(tmp_path, config)
    assert result.rows[0].loss > 5.5  # log 300 is 5.7
    assert result.held_out_loss < 4.5
    assert result.model.config.attention == attention
    assert all(p.dtype == torch.float32 for p in result.model.parameters())


def test_what_a_run_leaves(finished, text):
    out, result = finished
    names = {path.name for path in out.iterdir()}
    assert names == {"checkpoints", "model", "train.csv", "curve.png"}
    assert (out / "curve.png").read_bytes().startswith(b"\x89PNG")
    assert [row.step for row in read_rows(out / "train.csv")] == [1, 2, 3, 4, 5, 6]
    evaluated = [row.step for row in result.rows if row.eval_loss is not None]
    assert evaluated == [3, 6]
    comments = [
        line for line in (out / "train.csv").read_text().splitlines() if line.startswith("#")
    ]
    assert [line.split(":")[0] for line in comments] == [
        "# command",
        "# commit",
        "# machine",
        "# versions",
    ]

    model = RidgelineForCausalLM.from_pretrained(out / "model")
    assert model.dtype == torch.bfloat16
    for name, parameter in result.model.named_parameters():
        assert torch.equal(model.get_parameter(name), parameter.bfloat16()), name
    tokenizer = AutoTokenizer.from_pretrained(out / "model")
    trained = Tokenizer.from_file(str(out / "model" / "tokenizer.json"))
    sample = text.read_text()[:500]
    assert tokenizer(sample)["input_ids"] == trained.encode(sample).ids
    assert tokenizer.decode(tokenizer(sample)["input_ids"]) == sample
    assert tokenizer.eos_token_id == model.config.eos_token_id == 0


@pytest.mark.parametrize("step", [1, 2, 5, 6])
def test_a_stopped_run_resumes_to_the_same_bits(finished, text, tmp_path, step):
    config = tiny_config(text)
    with pytest.raises(Stop):
        pretrain(tmp_path, config, on_step=stop_at(step))
    resumed = pretrain(tmp_path, config, resume=True)
    _, whole = finished
    assert_same_bits(weights_of(resumed.model), weights_of(whole.model))
    assert [r.loss for r in resumed.rows[step:]] == [r.loss for r in whole.rows[step:]]
    assert resumed.held_out_loss == pytest.approx(whole.held_out_loss, rel=1e-8)  # 9 digits


def test_the_random_state_is_resumed(text, tmp_path):
    config = tiny_config(text)

    def draw(row):
        if row.step == 3:  # as dropout would; the checkpoints after it are those of other bits
            torch.rand(5)

    pretrain(tmp_path, config, on_step=draw)
    after = torch.get_rng_state()
    torch.manual_seed(99)
    pretrain(tmp_path, config, resume=True)
    assert torch.equal(torch.get_rng_state(), after)


def test_a_negative_control_other_seeds_differ(finished, text, tmp_path):
    other = pretrain(tmp_path, tiny_config(text, seed=1))
    ours, theirs = weights_of(other.model), weights_of(finished[1].model)
    assert not torch.equal(ours["model.embed_tokens.weight"], theirs["model.embed_tokens.weight"])


def test_a_torn_last_line_of_the_log_is_dropped(finished, text, tmp_path):
    config = tiny_config(text)
    with pytest.raises(Stop):
        pretrain(tmp_path, config, on_step=stop_at(3))
    with (tmp_path / "train.csv").open("a") as file:
        file.write("4,256,0.00")
    pretrain(tmp_path, config, resume=True)
    rows = read_rows(tmp_path / "train.csv")
    assert [row.step for row in rows] == [1, 2, 3, 4, 5, 6]


def test_a_log_that_lost_rows_is_named(text, tmp_path):
    config = tiny_config(text)
    pretrain(tmp_path, config)
    (tmp_path / "train.csv").unlink()
    with pytest.raises(ValueError, match=r"train\.csv: expected a row for each of the steps 1 to"):
        pretrain(tmp_path, config, resume=True)


def test_going_back_to_an_older_checkpoint_is_explicit(finished, text, tmp_path):
    config = tiny_config(text)
    pretrain(tmp_path, config)
    damaged = tmp_path / "checkpoints" / "step-00000006" / "model.safetensors"
    damaged.write_bytes(damaged.read_bytes()[:-1])
    with pytest.raises(ValueError, match=r"model\.safetensors.*there is also step-00000004"):
        pretrain(tmp_path, config, resume=True)
    resumed = pretrain(tmp_path, config, checkpoint="step-00000004")
    assert_same_bits(weights_of(resumed.model), weights_of(finished[1].model))


def test_resuming_with_another_setting_or_text_is_named(finished, text, tmp_path):
    out, _ = finished
    with pytest.raises(ValueError, match=r"^lr: the checkpoint was trained with 0\.003, got 0\.01"):
        pretrain(out, tiny_config(text, lr=1e-2), resume=True)
    with pytest.raises(ValueError, match=r"^attention: the checkpoint was trained with None"):
        pretrain(out, tiny_config(text, model={"attention": "mha"}), resume=True)
    other = write_text(tmp_path / "other.txt", seed=1)
    with pytest.raises(ValueError, match=r"^texts: their content is not what"):
        pretrain(out, tiny_config(other), resume=True)


def test_a_run_is_extended_only_on_request(text, tmp_path):
    config = tiny_config(text, steps=4)
    pretrain(tmp_path, config)
    longer = dataclasses.replace(config, steps=8)
    with pytest.raises(ValueError, match=r"^steps: the checkpoint was trained with 4, got 8"):
        pretrain(tmp_path, longer, resume=True)
    with pytest.raises(ValueError, match=r"^steps: expected 4 or more to extend, got 3"):
        pretrain(tmp_path, dataclasses.replace(config, steps=3), resume=True, extend=True)
    with pytest.raises(ValueError, match=r"^lr: "):
        pretrain(tmp_path, dataclasses.replace(longer, lr=1.0), resume=True, extend=True)
    rates = [row.lr for row in pretrain(tmp_path, longer, resume=True, extend=True).rows]
    schedule = {"peak": config.lr, "warmup": config.warmup, "floor": config.lr_floor}
    expected = [learning_rate(step, steps=4 if step < 4 else 8, **schedule) for step in range(8)]
    assert rates == pytest.approx(expected, rel=1e-5)  # 6 digits in the log


def test_a_folder_with_a_run_is_not_overwritten(finished, text):
    with pytest.raises(ValueError, match=r"^out_dir: .* already holds a run"):
        pretrain(finished[0], tiny_config(text))


def test_nothing_to_resume_is_an_error(text, tmp_path):
    with pytest.raises(FileNotFoundError, match="holds none"):
        pretrain(tmp_path, tiny_config(text), resume=True)


@pytest.mark.parametrize("context", [500, 2000])
def test_too_short_a_text_is_named(text, tmp_path, context):
    with pytest.raises(ValueError, match=r"^text: the .* text is too short: \d+ tokens"):
        pretrain(tmp_path / "out", tiny_config(text, context=context))
    assert not (tmp_path / "out").exists()


def test_divergence_is_named(text, tmp_path):
    with pytest.raises(ValueError, match=r"^lr: the training diverged at step"):
        pretrain(tmp_path, tiny_config(text, lr=1e30, warmup=0))


def test_a_full_disk_stops_the_run_and_it_can_go_on(finished, text, tmp_path):
    config, write, armed = tiny_config(text), os.write, []

    def full(handle, data):
        if armed:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return write(handle, data)

    def on_step(row):
        if row.step == 3:
            armed.append(True)

    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr(os, "write", full)
        with pytest.raises(OSError, match=r"step 4 .*No space left on device.*; step-00000002 is"):
            pretrain(tmp_path, config, on_step=on_step)
    resumed = pretrain(tmp_path, config, resume=True)
    assert_same_bits(weights_of(resumed.model), weights_of(finished[1].model))


def test_accumulated_steps_equal_one_big_batch(text):
    """In float64, where the order of the sums is all that differs."""
    small = tiny_config(text, dtype="fp32", batch=2, grad_accum=3, clip=1e9)
    prepared = prepare_text(small)
    states = [
        TrainState(config, prepared)
        for config in (small, dataclasses.replace(small, batch=6, grad_accum=1))
    ]
    values = []
    for state in states:
        state.model.double()
        values.append([state.advance() for _ in range(3)])
    np.testing.assert_allclose(values[0], values[1], rtol=1e-6)
    a, b = (weights_of(state.model) for state in states)
    for name in a:
        assert (a[name] - b[name]).abs().max() < 1e-9, name


def test_clipping_bounds_the_gradient(text, monkeypatch):
    config = tiny_config(text, clip=1e-3)
    state = TrainState(config, prepare_text(config))
    seen = []

    def record():
        grads = [p.grad.norm() for p in state.model.parameters()]
        seen.append(torch.stack(grads).norm().item())

    monkeypatch.setattr(state.optimizer, "step", record)
    _, norm = state.advance()
    assert norm > 1e-3
    assert seen[0] == pytest.approx(1e-3, rel=1e-2)


def test_blocks_start_as_the_identity(text):
    config = tiny_config(text)
    model = build_model(config, prepare_text(config).tokenizer)
    ids = torch.arange(20)[None]
    hidden = model.model(input_ids=ids, use_cache=False).last_hidden_state
    torch.testing.assert_close(hidden, model.model.norm(model.model.embed_tokens(ids)))


@pytest.mark.parametrize("length", [2, 32, 33, 34, 100])
def test_held_out_loss_is_the_mean_over_windows(finished, length):
    _, result = finished
    tokens = np.random.default_rng(0).integers(0, 270, size=length).astype(np.uint16)
    context, total = 32, 0.0
    for start in range(0, length - 1, context):
        window = torch.from_numpy(tokens[start : start + context + 1].astype(np.int64))[None]
        with torch.no_grad():
            logits = result.model(window[:, :-1]).logits
        total += F.cross_entropy(logits[0], window[0, 1:], reduction="sum").item()
    loss = held_out_loss(result.model, tokens, context=context, batch=2, dtype="fp32")
    assert loss == pytest.approx(total / (length - 1), rel=1e-6)


def test_the_baseline_is_the_4_gram_model_of_the_same_tokens(finished, text):
    config = tiny_config(text)
    prepared = prepare_text(config)
    assert prepared.baseline_loss == finished[1].baseline_loss
    assert finished[1].train_tokens == len(prepared.train.tokens)
    assert 0 < finished[1].baseline_loss < np.log(prepared.tokenizer.get_vocab_size())
