"""Llama's weights in our decoder compute what transformers computes with them."""

import pytest
import torch
from model_cases import tokens
from transformers import LlamaConfig, LlamaForCausalLM

from ridgeline.models import RidgelineForCausalLM

ROPE = {
    "default": {"rope_type": "default", "rope_theta": 5e4},
    "llama3": {
        "rope_type": "llama3",
        "rope_theta": 1e4,
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 64,
    },
    "yarn": {"rope_type": "yarn", "rope_theta": 1e4, "factor": 4.0},
}


def llama(**changes) -> LlamaForCausalLM:
    torch.manual_seed(3)
    fields = {
        "vocab_size": 61,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "initializer_range": 0.3,
        "max_position_embeddings": 256,
    }
    return LlamaForCausalLM(LlamaConfig(**(fields | changes))).eval()


CASES = {
    "mqa": ({"num_key_value_heads": 1}, "mqa"),
    "gqa": ({}, "gqa"),
    "mha": ({"num_key_value_heads": 4}, "mha"),
    "tied": ({"tie_word_embeddings": True}, "gqa"),
    "wide heads": ({"head_dim": 24}, "gqa"),
    **{name: ({"rope_parameters": dict(rope)}, "gqa") for name, rope in ROPE.items()},
}


@pytest.mark.parametrize(("changes", "attention"), CASES.values(), ids=CASES.keys())
def test_logits_and_generation_equal_transformers(changes, attention):
    theirs = llama(**changes)
    ours = RidgelineForCausalLM.from_llama(theirs)
    assert ours.config.attention == attention
    ids = tokens(2, 70)
    with torch.no_grad():
        expected, got = theirs(ids).logits, ours(ids).logits
        # The truth: the same weights in float64 by our full forward. transformers' own norm and
        # angles are float32, so the yardstick is its distance from that.
        exact = RidgelineForCausalLM.from_llama(theirs).double()(ids).logits
    error = (got - exact).abs().max()
    budget = 2 * (expected - exact).abs().max() + torch.finfo(torch.float32).eps * exact.abs().max()
    assert error <= budget
    assert (expected - exact).abs().max() < 1e-4 * exact.abs().max()
    options = {"max_new_tokens": 12, "pad_token_id": 0, "attention_mask": torch.ones_like(ids)}
    assert torch.equal(theirs.generate(ids, **options), ours.generate(ids, **options))


def test_the_weights_are_shared_not_copied():
    theirs = llama(tie_word_embeddings=True)
    ours = RidgelineForCausalLM.from_llama(theirs)
    for name, weight in theirs.named_parameters():
        assert ours.get_parameter(name).data_ptr() == weight.data_ptr(), name
    assert ours.lm_head.weight is ours.model.embed_tokens.weight


def test_settings_come_along():
    theirs = llama(eos_token_id=[5, 6], dtype="bfloat16").train()
    theirs.generation_config.temperature = 0.7
    ours = RidgelineForCausalLM.from_llama(theirs)
    assert ours.training
    assert ours.config.eos_token_id == [5, 6]
    assert ours.generation_config.temperature == 0.7


@pytest.mark.parametrize(
    ("changes", "culprit"),
    [
        ({"attention_bias": True}, "attention_bias"),
        ({"mlp_bias": True}, "mlp_bias"),
        ({"hidden_act": "gelu"}, "hidden_act"),
    ],
)
def test_models_that_compute_something_else_are_refused(changes, culprit):
    with pytest.raises(ValueError, match=f"{culprit}: expected"):
        RidgelineForCausalLM.from_llama(llama(**changes))


def test_other_classes_are_refused():
    with pytest.raises(TypeError, match="model: expected a LlamaForCausalLM, got Linear"):
        RidgelineForCausalLM.from_llama(torch.nn.Linear(2, 2))
