"""Settings and schedule."""

import dataclasses

import pytest
from training_cases import tiny_config

from ridgeline.training.config import FOLLOWS, FREE_ON_RESUME, TrainConfig
from ridgeline.training.schedule import learning_rate

RATE = {"peak": 2.0, "warmup": 4, "steps": 24, "floor": 0.1}


def test_warm_up_is_linear_and_the_cosine_ends_at_the_floor():
    rates = [learning_rate(step, **RATE) for step in range(24)]
    assert rates[:4] == [0.5, 1.0, 1.5, 2.0]
    assert rates[4] == 2.0
    assert rates[-1] == pytest.approx(0.2)
    assert rates[4:] == sorted(rates[4:], reverse=True)
    middle = (rates[13] + rates[14]) / 2  # halfway between 4 and 23
    assert middle == pytest.approx(1.1, rel=1e-3)


def test_no_warm_up_and_a_single_step():
    assert learning_rate(0, peak=1.0, warmup=0, steps=1, floor=0.1) == 1.0


@pytest.mark.parametrize(
    ("name", "value", "error"),
    [
        ("steps", 0, ValueError),
        ("batch", -1, ValueError),
        ("batch", 1.5, TypeError),
        ("context", True, TypeError),
        ("grad_accum", 0, ValueError),
        ("eval_every", 0, ValueError),
        ("save_every", 0, ValueError),
        ("threads", 0, ValueError),
        ("warmup", -1, ValueError),
        ("seed", -1, ValueError),
        ("vocab_size", 256, ValueError),
        ("lr", 0.0, ValueError),
        ("lr", float("nan"), ValueError),
        ("clip", -1.0, ValueError),
        ("weight_decay", -0.1, ValueError),
        ("lr_floor", 1.5, ValueError),
        ("eval_fraction", 1.0, ValueError),
        ("dtype", "fp16", ValueError),
        ("device", "tpu", ValueError),
        ("model", [], TypeError),
    ],
)
def test_impossible_settings_are_named(name, value, error):
    with pytest.raises(error, match=f"^{name}: expected"):
        TrainConfig(**{name: value})


@pytest.mark.parametrize("name", FOLLOWS)
def test_what_follows_from_the_text_cannot_be_set(name):
    with pytest.raises(ValueError, match=f"^model: {name} follows from the text"):
        TrainConfig(model={name: 1})


@pytest.mark.parametrize(
    ("name", "value"),
    [("attention", "mamba"), ("num_latent_heads", 5), ("hidden_size", 0), ("experts", 8)],
)
def test_an_impossible_model_is_named(name, value):
    with pytest.raises(ValueError, match=f"^{name}: "):
        TrainConfig(model={name: value})


def test_round_trip_and_unknown_settings():
    config = tiny_config(seed=7)
    assert TrainConfig.from_dict(config.to_dict()) == config
    with pytest.raises(ValueError, match="momentum: unknown setting"):
        TrainConfig.from_dict({"momentum": 0.9})


OTHER = {
    "vocab_size": 301,
    "context": 33,
    "batch": 3,
    "grad_accum": 2,
    "steps": 7,
    "lr": 1e-2,
    "warmup": 3,
    "lr_floor": 0.5,
    "weight_decay": 0.0,
    "clip": 2.0,
    "dtype": "fp32",
    "eval_fraction": 0.2,
    "seed": 1,
    "threads": 2,
    "device": "cuda",
    "start": "elsewhere",
}


def test_every_setting_that_changes_a_weight_must_match():
    fields = {field.name for field in dataclasses.fields(TrainConfig)}
    assert set(OTHER) == fields - FREE_ON_RESUME - {"model"}


@pytest.mark.parametrize("name", OTHER)
def test_another_setting_than_the_checkpoints_is_named(name):
    saved = tiny_config()
    with pytest.raises(ValueError, match=f"^{name}: the checkpoint was trained with"):
        dataclasses.replace(saved, **{name: OTHER[name]}).require_same(saved)


def test_another_model_than_the_checkpoints_is_named():
    message = r"^hidden_size: the checkpoint was trained with 32, got 64$"
    with pytest.raises(ValueError, match=message):
        tiny_config(model={"hidden_size": 64}).require_same(tiny_config())


def test_what_changes_no_weight_may_differ():
    saved = tiny_config()
    dataclasses.replace(saved, eval_every=1, save_every=1, texts=("x",)).require_same(saved)
