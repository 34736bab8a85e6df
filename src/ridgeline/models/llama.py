"""A Llama model's weights in Ridgeline's decoder: the same parameters under the same names."""

from transformers import LlamaConfig

from ridgeline.models.config import RidgelineConfig


def config_from_llama(config: LlamaConfig) -> RidgelineConfig:
    """The configuration under which Ridgeline's decoder computes what the Llama model does.

    Raises:
        ValueError: the model has biases, or another activation than SiLU.
    """
    for name, expected in (("attention_bias", False), ("mlp_bias", False), ("hidden_act", "silu")):
        if getattr(config, name) != expected:
            raise ValueError(f"{name}: expected {expected!r}, got {getattr(config, name)!r}")
    heads, kv_heads = config.num_attention_heads, config.num_key_value_heads
    attention = "mha" if kv_heads == heads else "mqa" if kv_heads == 1 else "gqa"
    same = (
        "vocab_size",
        "hidden_size",
        "intermediate_size",
        "num_hidden_layers",
        "num_attention_heads",
        "num_key_value_heads",
        "head_dim",
        "rms_norm_eps",
        "max_position_embeddings",
        "tie_word_embeddings",
        "initializer_range",
        "bos_token_id",
        "eos_token_id",
        "pad_token_id",
        "dtype",
    )
    return RidgelineConfig(
        attention=attention,
        rope_parameters=dict(config.rope_parameters),
        **{name: getattr(config, name) for name in same},
    )
