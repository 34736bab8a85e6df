"""Losses, metrics and gradients are those of TRL's own trainer, to 1e-9 in float64."""

import pytest
from dpo_cases import (
    LOSSES,
    preference_data,
    tiny_model,
    trainer,
    work_in_float64,
)
from peft import LoraConfig
from trl import DPOTrainer

MODELS = ["llama", "qwen3", "mistral", "gemma2", "gta", "gla"]
TOLERANCE = 1e-9
TIMES = ("runtime", "per_second")


@pytest.fixture(autouse=True)
def in_float64(monkeypatch):
    work_in_float64(monkeypatch)


def assert_same_run(ours, theirs) -> None:
    """Two finished runs have the same logs and weights."""
    assert len(ours.state.log_history) == len(theirs.state.log_history)
    for mine, other in zip(ours.state.log_history, theirs.state.log_history, strict=True):
        for name in (name for name in other if not name.endswith(TIMES)):
            assert mine[name] == pytest.approx(other[name], rel=1e-9, abs=TOLERANCE), name
    for (name, p), q in zip(ours.model.named_parameters(), theirs.model.parameters(), strict=True):
        assert (p - q).abs().max() <= TOLERANCE, name


def both(tmp_path, model="llama", *, ours=None, **options) -> tuple:
    runs = (
        trainer(True, tmp_path, model, **options, **(ours or {})),
        trainer(False, tmp_path, model, **options),
    )
    for run in runs:
        run.train()
    return runs


@pytest.mark.parametrize("model", MODELS)
def test_models(model, tmp_path):
    ours, theirs = both(tmp_path, model)
    assert_same_run(ours, theirs)
    recomputed = trainer(True, tmp_path, model, gradient_checkpointing=True)
    recomputed.train()
    assert_same_run(recomputed, theirs)
    moved = [
        (p - q).abs().max()
        for p, q in zip(ours.model.parameters(), tiny_model(model).parameters(), strict=True)
    ]
    assert max(moved) > 1e-4  # the tolerance is that of a gradient, not of nothing
    first = ours.state.log_history[0]
    assert first["packing/row_fill"] == 1
    assert first["tokens/physical"] < first["tokens/logical"]


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    """Both trainers, for losses of one batch."""
    out, options = tmp_path_factory.mktemp("losses"), {"label_smoothing": 0.1}
    return trainer(True, out, **options), trainer(False, out, **options)


def loss_and_gradient(run, examples, loss_types, **attributes):
    """Of one batch, with the loss that is named in place of the trainer's."""
    run.loss_types, run.loss_weights = loss_types, [0.5 + i for i in range(len(loss_types))]
    for name, value in attributes.items():
        setattr(run, name, value)
    batch = run.data_collator([dict(example) for example in examples])
    run.model.zero_grad()
    loss = run.compute_loss(run.model, batch)
    loss.backward()
    return loss, [p.grad.clone() for p in run.model.parameters()], batch


def assert_same_loss(pair, loss_types, **attributes) -> None:
    examples = list(pair[0].train_dataset)[:5]
    before = {name: getattr(pair[0], name) for name in attributes}
    found = [loss_and_gradient(run, examples, loss_types, **attributes) for run in pair]
    for run in pair:
        for name, value in before.items():
            setattr(run, name, value)
    (loss, grads, batch), (expected, expected_grads, padded) = found
    assert batch["row_input_ids"].numel() < padded["input_ids"].numel()
    assert abs(loss - expected) <= TOLERANCE * max(1, abs(expected))
    scale = max(g.abs().max() for g in expected_grads)
    assert scale > 1e-3
    for g, e in zip(grads, expected_grads, strict=True):
        assert (g - e).abs().max() <= TOLERANCE * max(1, scale)


@pytest.mark.parametrize("loss", LOSSES)
def test_losses(loss, pair):
    assert_same_loss(pair, [loss])


def test_mixture_of_losses(pair):
    assert_same_loss(pair, ["sigmoid", "bco_pair", "sft"])


@pytest.mark.parametrize("divergence", ["forward_kl", "js_divergence"])
def test_divergences(divergence, pair):
    assert_same_loss(pair, ["sigmoid"], f_divergence_type=divergence)


def test_ld_dpo(pair):
    assert_same_loss(pair, ["sigmoid"], ld_alpha=0.25)


LAYOUTS = {
    "unpacked": {"packing": False},
    "unshared": {"prefix_sharing": False},
    "neither": {"prefix_sharing": False, "packing": False},
    "rows-of-40": {"packing_length": 40},
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts(layout, tmp_path):
    # Six pairs, two micro-batches of four: the second has two pairs, and one step takes both.
    options = {"per_device_train_batch_size": 4, "max_length": 40}
    assert_same_run(*both(tmp_path, ours=LAYOUTS[layout], **options))


OPTIONS = {
    "accumulation": {"gradient_accumulation_steps": 2},
    "keep_start": {"max_length": 12},
    "keep_end": {"max_length": 12, "truncation_mode": "keep_end"},
    "weighting": {"use_weighting": True},
    "synchronised": {"sync_ref_model": True, "ref_model_sync_steps": 1},
}


def test_a_step_is_the_mean_of_all_its_pairs(tmp_path):
    data = preference_data(7)
    ours = trainer(
        True,
        tmp_path,
        data=data,
        per_device_train_batch_size=4,
        gradient_accumulation_steps=2,
        max_steps=1,
    )
    theirs = trainer(False, tmp_path, data=data, per_device_train_batch_size=7, max_steps=1)
    for run in (ours, theirs):
        run.train()
    assert ours.state.log_history[0]["loss"] == pytest.approx(theirs.state.log_history[0]["loss"])
    for p, q in zip(ours.model.parameters(), theirs.model.parameters(), strict=True):
        assert (p - q).abs().max() <= TOLERANCE


@pytest.mark.parametrize("option", OPTIONS)
def test_options(option, tmp_path):
    ours, theirs = both(tmp_path, **OPTIONS[option])
    assert_same_run(ours, theirs)


def test_reference_computed_beforehand(tmp_path, monkeypatch):
    in_rows: dict[str, list[bool]] = {}
    compute = DPOTrainer.compute_ref_log_probs

    def note(self, model, inputs):
        in_rows.setdefault(type(self).__name__, []).append("row_input_ids" in inputs)
        return compute(self, model, inputs)

    monkeypatch.setattr(DPOTrainer, "compute_ref_log_probs", note)
    runs = []
    for shared in (True, False):
        # Another column is another fingerprint, without which TRL's run reads our cache.
        data = preference_data().add_column("shared", [shared] * 12)
        runs.append(trainer(shared, tmp_path, data=data, precompute_ref_log_probs=True))
        runs[-1].train()
    assert_same_run(*runs)
    assert in_rows == {"PrefixSharedDPOTrainer": [True] * 4, "DPOTrainer": [False] * 4}


def test_conversations_and_evaluation(tmp_path):
    data = preference_data(conversational=True)
    held_out = preference_data(5, conversational=True, seed=1)
    ours, theirs = both(
        tmp_path, data=data, eval_dataset=held_out, eval_strategy="steps", eval_steps=1
    )
    assert_same_run(ours, theirs)
    assert any("eval_rewards/accuracies" in log for log in ours.state.log_history)
    assert any("eval_packing/ratio" in log for log in ours.state.log_history)


@pytest.mark.parametrize(("model", "checkpointing"), [("llama", False), ("gla", True)])
def test_lora_with_the_adapter_disabled_as_reference(model, checkpointing, tmp_path):
    targets = {"llama": ["q_proj", "v_proj", "down_proj"], "gla": ["q_proj", "kv_down"]}[model]
    lora = LoraConfig(
        r=4,
        target_modules=targets,
        init_lora_weights=False,
        lora_dropout=0.1,
        task_type="CAUSAL_LM",
    )
    assert_same_run(
        *both(tmp_path, model, ref=None, peft_config=lora, gradient_checkpointing=checkpointing)
    )


@pytest.mark.parametrize("batch", [3, 4])
def test_evaluation_on_streams(batch, tmp_path):
    found = []
    for shared in (True, False):
        stream = preference_data(8, seed=1).to_iterable_dataset()
        run = trainer(shared, tmp_path, eval_dataset=stream, per_device_eval_batch_size=batch)
        other = preference_data(8, seed=2).to_iterable_dataset()
        found.append((run.evaluate(), run.evaluate(other)))
    for mine, other in zip(*found, strict=True):
        for name in (name for name in other if not name.endswith(TIMES)):
            assert mine[name] == pytest.approx(other[name], rel=1e-9, abs=TOLERANCE), name
