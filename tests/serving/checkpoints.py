"""Tiny random checkpoints of every variant, with a byte-level tokenizer: what a server loads."""

from pathlib import Path

import torch
from transformers import PreTrainedTokenizerFast

from ridgeline.models import RidgelineConfig, RidgelineForCausalLM
from ridgeline.training.tokenizer import END_OF_TEXT, MIN_VOCAB_SIZE, train_tokenizer

SIZES = {
    "mha": {},
    "mqa": {},
    "gqa": {"num_key_value_heads": 2},
    "gta": {"num_key_value_heads": 2},
    "mla": {"q_rank": 24},
    "gla": {"num_latent_heads": 2},
}
VARIANTS = list(SIZES)


def tiny_checkpoint(
    path: Path,
    attention: str = "gla",
    *,
    seed: int = 7,
    dtype: torch.dtype = torch.float32,
    **changes: object,
) -> Path:
    """Saves a model of two layers and its tokenizer to ``path``, which is returned.

    ``changes`` are fields of ``RidgelineConfig``. A token is a byte, or the end of a text.
    """
    fields = {
        "vocab_size": MIN_VOCAB_SIZE,
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "head_dim": 16,
        "max_position_embeddings": 512,
        # Far from uniform logits, so that a wrong cache changes the chosen tokens.
        "initializer_range": 0.3,
        "eos_token_id": 0,
    }
    torch.manual_seed(seed)
    config = RidgelineConfig(attention=attention, **(fields | SIZES[attention] | changes))
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=train_tokenizer([], MIN_VOCAB_SIZE),
        eos_token=END_OF_TEXT,
        pad_token=END_OF_TEXT,
    )
    tokenizer.chat_template = "{% for message in messages %}{{ message['content'] }}\n{% endfor %}"
    tokenizer.save_pretrained(path)
    RidgelineForCausalLM(config).to(dtype).save_pretrained(path)
    return path
