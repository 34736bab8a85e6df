"""What the trainer refuses, counts and keeps apart."""

import json

import pytest
import torch
from datasets import Dataset, IterableDataset
from dpo_cases import preference_data, tiny_model, tokenizer, trainer
from peft import PromptTuningConfig
from torch import nn
from transformers import MambaConfig, MambaForCausalLM, MixtralConfig, MixtralForCausalLM
from transformers.models.nemotron import NemotronConfig, NemotronForCausalLM

from ridgeline.trl import PrefixSharedDPOConfig, PrefixSharedDPOTrainer


def logps(run, examples) -> torch.Tensor:
    """``[2, pairs]``: chosen, then rejected, of one batch that fills one row."""
    batch = run.data_collator(examples)
    assert batch["row_input_ids"].shape[0] == 1
    return torch.stack(run.compute_ref_log_probs(run.model, batch))


@pytest.mark.parametrize("model", ["llama", "mistral", "gla"])
def test_changing_chosen_changes_no_bit_of_anything_else(model, tmp_path):
    run = trainer(True, tmp_path, model)
    examples = list(run.train_dataset)[:3]
    before = logps(run, examples)
    changed = [dict(example) for example in examples]
    changed[1]["chosen_ids"] = [4 + (token + 7) % 40 for token in changed[1]["chosen_ids"]]
    after = logps(run, changed)
    assert before[0, 1] != after[0, 1]
    assert torch.equal(before[1], after[1])
    assert torch.equal(before[0, ::2], after[0, ::2])


def test_layout_metrics(tmp_path):
    data = Dataset.from_dict(
        {"prompt": ["w1 w2 w3 "] * 2, "chosen": ["w4 w5"] * 2, "rejected": ["w6"] * 2}
    )
    run = trainer(True, tmp_path, data=data, per_device_train_batch_size=2, max_steps=1)
    run.train()
    log = run.state.log_history[0]
    # A pair is 3 + 3 and 3 + 2 tokens with its ends; in a row 3 + 3 + 1 + 2.
    assert log["tokens/logical"] == log["num_tokens"] == 22
    assert log["tokens/physical"] == 18
    assert log["packing/shared_fraction"] == pytest.approx(4 / 22)
    assert (log["packing/ratio"], log["packing/row_fill"]) == (2, 1)


def test_a_batch_that_gains_nothing_stays_padded(tmp_path):
    alike = {"prompt": ["w1 "] * 4, "chosen": ["w4 w5"] * 4, "rejected": ["w6 w7"] * 4}
    run = trainer(True, tmp_path, data=Dataset.from_dict(alike), max_steps=1)
    assert "row_input_ids" not in run.data_collator(list(run.train_dataset)[:3])
    run.train()
    log = run.state.log_history[0]
    assert log["packing/shared_fraction"] == 0
    assert log["packing/row_fill"] == 1
    assert log["packing/ratio"] == 0.5


def test_a_pair_longer_than_a_row_gives_up_sharing(tmp_path):
    run = trainer(True, tmp_path, packing_length=20, max_length=20)
    examples = [
        {"prompt_ids": [4] * 9, "chosen_ids": [5] * n, "rejected_ids": [6] * 4} for n in (5, 11)
    ]
    batch = run.data_collator(examples)
    assert batch["row_input_ids"].shape == (3, 20)  # 19 shared; 20 and 13 apart


def test_pairs_are_counted(tmp_path, caplog):
    data = Dataset.from_dict(
        {
            "prompt": ["w1 w2 ", "w1 " * 9, "w3 w4 ", "w5 w6 "],
            "chosen": ["w3", "w3", "w4 " * 8, "w7"],
            "rejected": ["w4", "w4", "w5", "w7"],
        }
    )
    run = trainer(True, tmp_path, data=data, max_length=8)
    counts = run.pair_counts["train"]
    assert (counts.pairs, counts.dropped, counts.truncated, counts.equal) == (3, 1, 1, 1)
    assert "train dataset: 3 pairs, 1 dropped, 1 truncated, 1 equal" in caplog.text


LAYOUTS = {
    "shared": {},
    "packed": {"prefix_sharing": False},
    "unpacked": {"packing": False},
    "cut": {"max_length": 9},
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_equal_responses_tie_exactly(layout, tmp_path):
    options, pairs = LAYOUTS[layout], preference_data(8, seed=3).to_list()
    for pair in pairs:
        pair["prompt"] = "w1 w2 w3 "
        pair["chosen"] = pair["rejected"] = "w4 w5 w6 w7 w8 w9 " + pair["chosen"]
        if layout == "cut":  # after the 9 tokens that stay
            pair["rejected"] += "w10"
    data = Dataset.from_list(pairs)
    run = trainer(
        True,
        tmp_path,
        tiny_model("llama").float(),
        data=data,
        per_device_train_batch_size=4,
        **options,
    )
    run.train()
    for log in run.state.log_history[:2]:
        assert (log["rewards/accuracies"], log["rewards/margins"]) == (0, 0)
        assert log["rewards/chosen"] == log["rewards/rejected"] != 0
        assert log["packing/shared_fraction"] == 0.5


@pytest.mark.parametrize("name", ["row_slots", "row_score_index", "row_counts"])
def test_rows_that_were_cut_are_refused(name, tmp_path):
    run = trainer(True, tmp_path)
    batch = run.data_collator(list(run.train_dataset)[:3])
    batch[name] = batch[name][:6]  # what accelerate's dispatch of batches would do
    with pytest.raises(ValueError, match=rf"{name}: expected \[\d+\] entries, .* got \[6\]"):
        run.compute_ref_log_probs(run.model, batch)
    del batch[name]
    with pytest.raises(ValueError, match=f"inputs: expected .* lacks {name}"):
        run.compute_ref_log_probs(run.model, batch)


def test_batches_are_not_dispatched(tmp_path, caplog):
    run = trainer(True, tmp_path, accelerator_config={"dispatch_batches": True}, max_steps=1)
    run.train()
    assert "made with dispatch_batches=False" in caplog.text
    assert run.state.log_history[0]["packing/shared_fraction"] > 0


def test_streams(tmp_path):
    def stream():
        yield from preference_data(6)

    run = trainer(True, tmp_path, data=IterableDataset.from_generator(stream), max_steps=1)
    run.train()
    assert run.state.log_history[0]["packing/shared_fraction"] > 0


def test_collators_of_others_pad_on_the_right(tmp_path):
    run = trainer(True, tmp_path)
    padded = {
        "input_ids": torch.tensor([[0, 4, 5], [4, 5, 6]]),
        "attention_mask": torch.tensor([[0, 1, 1], [1, 1, 1]]),
        "completion_mask": torch.tensor([[0, 0, 1], [0, 1, 1]]),
    }
    run.data_collator.inner = lambda _: padded
    with pytest.raises(ValueError, match="data_collator: expected padding on the right only"):
        run.data_collator([])
    padded["attention_mask"][0, 0] = 1
    padded["completion_mask"][1, 2] = 0
    with pytest.raises(ValueError, match="data_collator: expected completions up to the end"):
        run.data_collator([])
    del padded["completion_mask"]
    with pytest.raises(ValueError, match="expected a batch with the tensor 'completion_mask'"):
        run.data_collator([])


def test_logits_for_metrics_are_of_the_padded_batch(tmp_path):
    seen = []

    def note(prediction) -> dict:
        seen.append(prediction.predictions.shape)
        return {"seen": 1.0}

    run = trainer(True, tmp_path, compute_metrics=note, eval_dataset=preference_data(3))
    with pytest.warns(FutureWarning, match="return_outputs"):
        assert run.evaluate()["eval_seen"] == 1
    length = run.data_collator(list(run.eval_dataset))["input_ids"].shape[1]
    assert seen == [(6, length, 44)]


def test_a_model_by_name(tmp_path):
    tiny_model("llama").float().save_pretrained(tmp_path / "model")
    run = PrefixSharedDPOTrainer(
        str(tmp_path / "model"),
        args=PrefixSharedDPOConfig(str(tmp_path), use_cpu=True, bf16=False, report_to=[]),
        train_dataset=preference_data(),
        processing_class=tokenizer(),
    )
    for model in (run.model, run.ref_model):
        assert model.config._attn_implementation == "ridgeline"
    assert logps(run, list(run.train_dataset)[:2]).shape == (2, 2)


def test_resumes(tmp_path):
    data = preference_data(12)
    whole = trainer(True, tmp_path / "whole", data=data, max_steps=4, optim="adamw_torch")
    whole.train()
    options = {"data": data, "max_steps": 4, "save_strategy": "steps", "save_steps": 2}
    first = trainer(True, tmp_path / "run", optim="adamw_torch", **options)
    first.train()
    second = trainer(True, tmp_path / "run", optim="adamw_torch", **options)
    second.train(resume_from_checkpoint=str(tmp_path / "run" / "checkpoint-2"))
    for p, q in zip(whole.model.parameters(), second.model.parameters(), strict=True):
        assert torch.equal(p, q)


def test_a_plain_config_has_the_defaults(tmp_path):
    run = trainer(False, tmp_path, cls=PrefixSharedDPOTrainer, max_steps=1)
    run.train()
    assert run.state.log_history[0]["packing/shared_fraction"] > 0


CONFIGS = {
    "padding_free": ({"padding_free": True}, "padding_free: expected False with prefix_sharing"),
    "liger": ({"use_liger_kernel": True}, "use_liger_kernel: expected False"),
    "dropout": ({"disable_dropout": False}, "disable_dropout: expected True"),
    "neftune": ({"neftune_noise_alpha": 5.0}, "neftune_noise_alpha: expected None"),
    "unpacked": ({"packing": False, "packing_length": 99}, "expected None without packing"),
    "short": ({"packing_length": 9, "max_length": 10}, r"at least max_length \(10\)"),
    "flag": ({"packing": 1}, "packing: expected"),
    "count": ({"packing_length": 0}, "packing_length: expected"),
}


@pytest.mark.parametrize("case", CONFIGS)
def test_bad_options(case, tmp_path):
    options, message = CONFIGS[case]
    with pytest.raises((ValueError, TypeError), match=message):
        PrefixSharedDPOConfig(str(tmp_path), use_cpu=True, bf16=False, **options)


def test_bad_options_of_a_plain_config(tmp_path):
    with pytest.raises(ValueError, match="padding_free: expected False"):
        trainer(False, tmp_path, cls=PrefixSharedDPOTrainer, padding_free=True)


def with_text(column: str, value, row: int = 1) -> Dataset:
    pairs = preference_data(3).to_list()
    pairs[row][column] = value
    return Dataset.from_list(pairs)


DATASETS = {
    "no-chosen": (
        preference_data(2).remove_columns("chosen"),
        "train dataset: expected the columns prompt, chosen and rejected .* got prompt, rejected",
    ),
    "other-columns": (Dataset.from_dict({"text": ["w1"]}), "expected the columns .* got text"),
    "no-rows": (Dataset.from_dict({"prompt": [], "chosen": [], "rejected": []}), "got none"),
    "numbers": (
        Dataset.from_dict({"prompt": [1], "chosen": [2], "rejected": [3]}),
        "texts or lists of messages in 'prompt', got int",
    ),
    "empty-prompt": (with_text("prompt", ""), "no empty text, got one in 'prompt' of row 1"),
    "empty-chosen": (with_text("chosen", ""), "no empty text, got one in 'chosen' of row 1"),
    "empty-rejected": (with_text("rejected", "", 2), "got one in 'rejected' of row 2"),
    "no-tokens": (with_text("prompt", " "), "one token of 'prompt' .* got none in row 1"),
    "long-prompts": (
        Dataset.from_dict({"prompt": ["w1 " * 30], "chosen": ["w1"], "rejected": ["w2"]}),
        r"prompt is shorter than max_length \(20\), got none among 1",
    ),
}


@pytest.mark.parametrize("case", DATASETS)
def test_bad_datasets(case, tmp_path):
    data, message = DATASETS[case]
    with pytest.raises((ValueError, TypeError), match=message):
        trainer(True, tmp_path, data=data, max_length=20)


def test_empty_message(tmp_path):
    data = preference_data(3, conversational=True).to_list()
    data[0]["chosen"][0]["content"] = ""
    with pytest.raises(ValueError, match="no empty text, got one in 'chosen' of row 0"):
        trainer(True, tmp_path, data=Dataset.from_list(data))


def test_a_tokenizer_needs_an_end(tmp_path):
    with pytest.raises(ValueError, match="processing_class: expected a tokenizer with an eos"):
        trainer(True, tmp_path, processing_class=tokenizer(eos_token=None))


def test_conversations_need_a_template(tmp_path):
    data, plain = preference_data(conversational=True), tokenizer(chat_template=None)
    with pytest.raises(ValueError, match="chat_template"):
        trainer(True, tmp_path, data=data, processing_class=plain)


def tiny_nemotron():
    sizes = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1}
    return NemotronForCausalLM(
        NemotronConfig(vocab_size=44, num_attention_heads=4, num_key_value_heads=2, **sizes)
    )


def tiny_mamba():
    return MambaForCausalLM(MambaConfig(vocab_size=44, hidden_size=16, num_hidden_layers=1))


def with_state_along_the_row():
    model = tiny_model("llama")
    model.model.layers[0].register_forward_hook(lambda _, args, out: out + 0.01 * out.roll(1, 1))
    return model


def with_positions_of_the_row():
    model = tiny_model("llama")

    def count(_, args, kwargs):
        return (args[0], torch.arange(args[0].shape[1])[None]), {}

    model.model.rotary_emb.register_forward_pre_hook(count, with_kwargs=True)
    return model


ARGUMENTS = {
    "no-model": ({"model": None}, "model: expected a name, .* got None"),
    "module": ({"model": nn.Linear(2, 2)}, "model: expected a name, .* got Linear"),
    "named-reference": ({"ref_model": "gpt2"}, "ref_model: expected .* or None .* got 'gpt2'"),
    "reference-module": ({"ref_model": nn.Linear(2, 2)}, "ref_model: expected .* got Linear"),
}


@pytest.mark.parametrize("case", ARGUMENTS)
def test_what_is_no_model(case):
    given, message = ARGUMENTS[case]
    with pytest.raises(TypeError, match=message):
        PrefixSharedDPOTrainer(**({"model": "none"} | given), train_dataset=preference_data(2))


MODELS = {
    "recurrent": (tiny_mamba, "expected layers of full or sliding attention"),
    "drops-keywords": (tiny_nemotron, "got NemotronModel: a row with subtree_end fails"),
    "state-along-the-row": (with_state_along_the_row, "response .* depends on the chosen one"),
    "own-positions": (with_positions_of_the_row, "does not use the positions"),
}


@pytest.mark.parametrize("case", MODELS)
def test_models_that_cannot(case, tmp_path):
    make, message = MODELS[case]
    with pytest.raises((ValueError, NotImplementedError), match=message):
        trainer(True, tmp_path, make())


def test_experts_that_are_balanced(tmp_path):
    model = MixtralForCausalLM(
        MixtralConfig(
            vocab_size=44,
            hidden_size=32,
            intermediate_size=32,
            num_hidden_layers=1,
            num_attention_heads=4,
            num_key_value_heads=2,
            num_local_experts=2,
        )
    )
    with pytest.raises(ValueError, match="router_aux_loss_coef: expected 0"):
        trainer(True, tmp_path, model)


def test_adapters_of_tokens(tmp_path):
    adapter = PromptTuningConfig(num_virtual_tokens=2, task_type="CAUSAL_LM")
    with pytest.raises(ValueError, match="peft_config: expected an adapter of weights"):
        trainer(True, tmp_path, ref=None, peft_config=adapter)


def test_another_attention_is_refused(tmp_path):
    tiny_model("llama").save_pretrained(tmp_path / "model")
    options = PrefixSharedDPOConfig(
        str(tmp_path), use_cpu=True, bf16=False, model_init_kwargs={"attn_implementation": "sdpa"}
    )
    with pytest.raises(ValueError, match="no attn_implementation, or 'ridgeline'"):
        PrefixSharedDPOTrainer(
            str(tmp_path / "model"),
            args=options,
            train_dataset=preference_data(),
            processing_class=tokenizer(),
        )
    config = json.loads((tmp_path / "model" / "config.json").read_text())
    assert "attn_implementation" not in config
