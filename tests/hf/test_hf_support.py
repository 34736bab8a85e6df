"""A model that would not keep sequences apart is named before it computes something wrong."""

from collections.abc import Callable

import pytest
import torch
from hf_cases import MODELS, VOCAB, tiny
from torch import nn
from transformers import (
    BloomConfig,
    BloomForCausalLM,
    FalconConfig,
    FalconForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    Mamba2Config,
    Mamba2ForCausalLM,
    MambaConfig,
    MambaForCausalLM,
    MptConfig,
    MptForCausalLM,
    PreTrainedModel,
    RwkvConfig,
    RwkvForCausalLM,
    StableLmConfig,
    StableLmForCausalLM,
    XGLMConfig,
    XGLMForCausalLM,
)

from ridgeline.transformers import check_model

SIZES = {"vocab_size": VOCAB, "hidden_size": 32, "num_hidden_layers": 1}
HEADS = {"num_attention_heads": 2}
WIDTH = {"vocab_size": VOCAB, "d_model": 32}


def bloom() -> PreTrainedModel:
    return BloomForCausalLM(BloomConfig(vocab_size=VOCAB, hidden_size=32, n_layer=1, n_head=2))


def mamba2() -> PreTrainedModel:
    return Mamba2ForCausalLM(Mamba2Config(**SIZES, num_heads=4, head_dim=16, n_groups=1))


def mpt() -> PreTrainedModel:
    return MptForCausalLM(MptConfig(**WIDTH, n_layers=1, n_heads=2))


def xglm() -> PreTrainedModel:
    return XGLMForCausalLM(XGLMConfig(**WIDTH, num_layers=1, attention_heads=2, ffn_dim=48))


def rwkv() -> PreTrainedModel:
    return RwkvForCausalLM(RwkvConfig(**SIZES | {"num_hidden_layers": 2}))


def stablelm() -> PreTrainedModel:
    sizes = SIZES | HEADS | {"intermediate_size": 32, "num_key_value_heads": 1}
    return StableLmForCausalLM(StableLmConfig(**sizes))


REFUSED: dict[str, tuple[Callable, type[Exception], str]] = {
    "bloom": (bloom, TypeError, "AttentionInterface, got BloomForCausalLM"),
    "falcon": (lambda: FalconForCausalLM(FalconConfig(**SIZES, **HEADS)), TypeError, "got Falcon"),
    "mpt": (mpt, TypeError, "got MptForCausalLM"),
    "xglm": (xglm, TypeError, "got XGLMForCausalLM"),
    "rwkv": (rwkv, NotImplementedError, "carry state"),
    "mamba": (lambda: MambaForCausalLM(MambaConfig(**SIZES)), NotImplementedError, "'linear_atten"),
    "mamba2": (mamba2, NotImplementedError, "'linear_attention' in Mamba2Config"),
    "drops-the-keyword": (stablelm, NotImplementedError, "need subtree_end"),
}


@pytest.mark.parametrize("name", list(REFUSED))
def test_models_that_never_reach_our_attention(name: str) -> None:
    make, error, message = REFUSED[name]
    model = make()
    model.set_attn_implementation("ridgeline")
    with pytest.raises(error, match=message):
        check_model(model)


def test_a_name_in_the_config_is_no_proof() -> None:
    """``from_pretrained`` writes the name for a class that never reads it."""
    model = bloom()
    model.config._attn_implementation_internal = "ridgeline"
    with pytest.raises(TypeError, match="which ignores attn_implementation"):
        check_model(model)


class Runs(nn.Module):
    """State beside attention: each token takes something of the one before it."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out = self.inner(x)
        return out + 0.1 * out.cumsum(1)


class Ignores(nn.Module):
    """Angles of the place in the row, whatever the position is."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: torch.Tensor, position_ids: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return self.inner(x, position_ids=3 * torch.arange(x.shape[1])[None])


def test_what_only_a_forward_tells() -> None:
    model = tiny("llama", torch.float32)
    mlp = model.model.layers[0].mlp
    model.model.layers[0].mlp = Runs(mlp)
    with pytest.raises(NotImplementedError, match="depends on the chosen one"):
        check_model(model)
    model.model.layers[0].mlp = mlp
    model.model.rotary_emb = Ignores(model.model.rotary_emb)
    with pytest.raises(NotImplementedError, match="does not use the positions"):
        check_model(model)


@pytest.mark.parametrize("name", list(MODELS))
def test_models_that_pass_stay_as_they_are(name: str) -> None:
    model = tiny(name, torch.float32)
    model.train()
    model.model.layers[0].eval()
    before = [module.training for module in model.modules()]
    check_model(model)
    check_model(model.model)
    assert [module.training for module in model.modules()] == before
    assert all(p.grad is None for p in model.parameters())


def test_learned_positions_pass() -> None:
    model = GPT2LMHeadModel(GPT2Config(vocab_size=VOCAB, n_embd=32, n_layer=1, n_head=2))
    model.set_attn_implementation("ridgeline")
    check_model(model)


def test_another_implementation_is_named() -> None:
    model = tiny("llama", torch.float32)
    model.set_attn_implementation("sdpa")
    with pytest.raises(TypeError, match="got 'sdpa' in LlamaForCausalLM"):
        check_model(model)
    with pytest.raises(TypeError, match="expected a PreTrainedModel, got Linear"):
        check_model(nn.Linear(1, 1))
