"""Tiny models of every variant, and the oracles that the tests compare with."""

import torch
from tokenizers import Tokenizer, decoders, pre_tokenizers, trainers
from tokenizers.models import BPE
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from ridgeline.models import RidgelineConfig, RidgelineForCausalLM

SIZES = {
    "mha": {},
    "mqa": {},
    "gqa": {"num_key_value_heads": 2},
    "gta": {"num_key_value_heads": 2},
    "mla": {"q_rank": 24},
    "gla": {"num_latent_heads": 2},
}
VARIANTS = list(SIZES)
VOCAB = 61
# Rounding of the longest sum of products here, taken as often as a logit depends on one.
FP64_ROUNDING = 2.0**-52 * 4096


def tiny_config(attention: str = "gla", **changes) -> RidgelineConfig:
    fields = {
        "vocab_size": VOCAB,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "head_dim": 16,
        "max_position_embeddings": 256,
        # Far from uniform logits, so that a wrong cache changes the chosen tokens.
        "initializer_range": 0.3,
    }
    return RidgelineConfig(attention=attention, **(fields | SIZES.get(attention, {}) | changes))


def tiny_model(
    attention: str = "gla", dtype: torch.dtype = torch.float64, **changes
) -> RidgelineForCausalLM:
    torch.manual_seed(7)
    return RidgelineForCausalLM(tiny_config(attention, **changes)).to(dtype).eval()


def tokens(*shape: int, seed: int = 0, vocab: int = VOCAB) -> Tensor:
    return torch.randint(1, vocab, shape, generator=torch.Generator().manual_seed(seed))


def left_padded(rows: list[Tensor]) -> tuple[Tensor, Tensor]:
    """Rows of different lengths as ids (padding is token 0) and their attention mask."""
    length = max(map(len, rows))
    ids = torch.zeros(len(rows), length, dtype=torch.int64)
    mask = torch.zeros_like(ids)
    for b, row in enumerate(rows):
        ids[b, length - len(row) :] = row
        mask[b, length - len(row) :] = 1
    return ids, mask


def greedy(model: RidgelineForCausalLM, row: Tensor, new: int) -> Tensor:
    """The row and its ``new`` likeliest next tokens, by full forwards of the row alone."""
    for _ in range(new):
        with torch.no_grad():
            logits = model(row[None], use_cache=False).logits
        row = torch.cat((row, logits[0, -1].argmax()[None]))
    return row


def byte_tokenizer() -> PreTrainedTokenizerFast:
    """Byte-level BPE with a few merges; its end-of-text token is 0."""
    tokenizer = Tokenizer(BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=280,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        special_tokens=["<|end|>"],
        show_progress=False,
    )
    tokenizer.train_from_iterator(["def read(self): return self.read()"] * 4, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|end|>")
