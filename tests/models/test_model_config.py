"""The configuration: what it fills in, what it refuses, and how it survives a file."""

import pytest
import torch
from model_cases import SIZES, VARIANTS, tiny_config
from transformers import AutoConfig

from ridgeline.models import RidgelineConfig

SIZE_FIELDS = ("num_key_value_heads", "num_latent_heads", "latent_dim", "rope_dim", "q_rank")


@pytest.mark.parametrize(
    ("attention", "sizes"),
    [
        ("mha", (4, None, None, None, None)),
        ("mqa", (1, None, None, None, None)),
        ("gqa", (2, None, None, None, None)),
        ("gta", (2, None, None, 8, None)),
        ("mla", (None, 1, 64, 8, 24)),
        ("gla", (None, 2, 32, 8, None)),
    ],
)
def test_sizes_left_out_are_those_of_the_variant(attention, sizes):
    config = tiny_config(attention)
    assert tuple(getattr(config, name) for name in SIZE_FIELDS) == sizes


def test_head_dim_defaults_to_a_share_of_the_width():
    assert RidgelineConfig(hidden_size=96, num_attention_heads=6).head_dim == 16


@pytest.mark.parametrize("attention", VARIANTS)
def test_round_trip_through_a_file(attention, tmp_path):
    config = tiny_config(
        attention,
        rope_parameters={"rope_type": "linear", "factor": 2.0, "rope_theta": 5e4},
        eos_token_id=[3, 4],
        dtype="bfloat16",
    )
    config.save_pretrained(tmp_path)
    loaded = AutoConfig.from_pretrained(tmp_path)
    assert type(loaded) is RidgelineConfig
    assert loaded.to_diff_dict() == config.to_diff_dict()
    assert loaded.dtype == torch.bfloat16


def test_fields_of_transformers_are_known():
    config = tiny_config(
        output_hidden_states=True,
        architectures=["RidgelineForCausalLM"],
        torch_dtype="float32",
        name_or_path="here",
        rope_theta=5e5,
        attn_implementation="sdpa",
        id2label={0: "a", 1: "b"},
        transformers_version="5.0.0",
    )
    assert config.rope_parameters == {"rope_type": "default", "rope_theta": 5e5}


BAD = {
    "unknown field": ({"num_experts": 8}, "num_experts"),
    "misspelt field": ({"num_latent_head": 2}, "num_latent_head"),
    "generation setting": ({"temperature": 0.5}, "temperature"),
    "other model": ({"model_type": "llama"}, "model_type"),
    "variant": ({"attention": "linear"}, "attention"),
    "zero width": ({"hidden_size": 0}, "hidden_size"),
    "negative layers": ({"num_hidden_layers": -1}, "num_hidden_layers"),
    "text for a number": ({"intermediate_size": "48"}, "intermediate_size"),
    "bool for a number": ({"vocab_size": True}, "vocab_size"),
    "fraction of a head": ({"num_attention_heads": 1.5}, "num_attention_heads"),
    "width not shared": ({"hidden_size": 30, "head_dim": None}, "num_attention_heads"),
    "odd head": ({"head_dim": 15}, "head_dim"),
    "odd rope": ({"rope_dim": 7}, "rope_dim"),
    "latent heads not shared": ({"num_latent_heads": 3}, "num_latent_heads"),
    "no latent": ({"latent_dim": 0}, "latent_dim"),
    "no rank": ({"q_rank": 0}, "q_rank"),
    "kv heads of gla": ({"num_key_value_heads": 2}, "num_key_value_heads"),
    "gqa without heads": (
        {"attention": "gqa", "num_key_value_heads": None},
        "num_key_value_heads",
    ),
    "latent of gqa": ({"attention": "gqa", "latent_dim": 8}, "latent_dim"),
    "rope of mha": ({"attention": "mha", "rope_dim": 8}, "rope_dim"),
    "grouped mha": ({"attention": "mha", "num_key_value_heads": 2}, "num_key_value_heads"),
    "grouped mqa": ({"attention": "mqa", "num_key_value_heads": 2}, "num_key_value_heads"),
    "grouped mla": ({"attention": "mla", "num_latent_heads": 2}, "num_latent_heads"),
    "gta all rope": ({"attention": "gta", "rope_dim": 16}, "rope_dim"),
    "NaN eps": ({"rms_norm_eps": float("nan")}, "rms_norm_eps"),
    "negative init": ({"initializer_range": -0.1}, "initializer_range"),
    "no context": ({"max_position_embeddings": 0}, "max_position_embeddings"),
    "rope as a list": ({"rope_parameters": [1.0]}, "rope_parameters"),
    "rope type": ({"rope_parameters": {"rope_type": "spiral"}}, "rope_type"),
    "rope theta": ({"rope_theta": 0.0}, "rope_theta"),
    "partial rope": ({"partial_rotary_factor": 0.5}, "partial_rotary_factor"),
    "token beyond the vocabulary": ({"eos_token_id": 61}, "eos_token_id"),
    "one of several tokens": ({"eos_token_id": [1, -2]}, "eos_token_id"),
    "encoder": ({"is_encoder_decoder": True}, "is_encoder_decoder"),
    "dtype": ({"dtype": "float7"}, "dtype"),
    "layers that differ": ({"per_layer_config": {0: {}}}, "per_layer_config"),
    "tied as a number": ({"tie_word_embeddings": 1}, "tie_word_embeddings"),
}


@pytest.mark.parametrize(("fields", "culprit"), BAD.values(), ids=BAD.keys())
def test_bad_configuration_names_the_field(fields, culprit):
    with pytest.raises((ValueError, TypeError), match=rf"{culprit}\b"):
        tiny_config(**fields)


def test_a_field_spoilt_after_construction_is_not_saved(tmp_path):
    config = tiny_config()
    config.num_latent_heads = 3
    with pytest.raises(ValueError, match="num_latent_heads"):
        config.save_pretrained(tmp_path)
    assert not list(tmp_path.iterdir())


def test_every_variant_has_a_case():
    assert set(SIZES) == {"mha", "mqa", "gqa", "gta", "mla", "gla"}
