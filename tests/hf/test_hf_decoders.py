"""Other decoders of transformers: dense logits, and greedy tokens of a left-padded batch."""

import pytest
import torch
import transformers
from hf_cases import VOCAB, WINDOW, tokens

import ridgeline.transformers  # noqa: F401

SIZES = {
    "vocab_size": VOCAB,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 64,
    "initializer_range": 0.3,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": None,
}
EXPERTS = {"num_experts_per_tok": 2}
DECODERS = {
    "GPT2": {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64},  # learned positions
    "Phi3": {"sliding_window": WINDOW},
    "Olmo3": {"sliding_window": WINDOW},
    "Cohere2": {"sliding_window": WINDOW},
    "Starcoder2": {"sliding_window": WINDOW},
    "Mixtral": {"num_local_experts": 4, **EXPERTS},
    # Has a window of 0 that no layer uses.
    "Qwen2Moe": {"moe_intermediate_size": 16, "shared_expert_intermediate_size": 16, **EXPERTS}
    | {"num_experts": 4},
    "StableLm": {},
    "Glm4": {},
}


@pytest.mark.parametrize("name", list(DECODERS))
def test_decoder(name: str) -> None:
    torch.manual_seed(0)
    kind = getattr(transformers, f"{name}LMHeadModel", None) or getattr(
        transformers, f"{name}ForCausalLM"
    )
    config = getattr(transformers, f"{name}Config")(**(SIZES | DECODERS[name]))
    model = kind(config).eval()
    ids, mask = tokens(2, 12), torch.ones(2, 12, dtype=torch.int64)
    mask[0, :5] = 0
    logits, chosen = [], []
    for impl in ("eager", "ridgeline"):
        model.set_attn_implementation(impl)
        assert model.config._attn_implementation == impl
        with torch.no_grad():
            logits.append(model(ids).logits)
        chosen.append(
            model.generate(
                ids,
                attention_mask=mask,
                max_new_tokens=6,
                do_sample=False,
                eos_token_id=VOCAB,
                disable_compile=True,
            )
        )
    torch.testing.assert_close(logits[1], logits[0], atol=1e-4, rtol=1e-4)
    assert torch.equal(chosen[1], chosen[0])
