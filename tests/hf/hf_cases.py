"""Tiny models of transformers, and the attention in float64 with explicit masks they must match.

transformers' own eager attention rounds its probabilities to float32, and its norms their inputs:
here neither does, so that float64 means float64.
"""

from collections.abc import Callable
from types import MethodType

import torch
from torch import Tensor, nn
from transformers import (
    AttentionInterface,
    AttentionMaskInterface,
    Gemma2Config,
    Gemma2ForCausalLM,
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    PreTrainedModel,
    Qwen3Config,
    Qwen3ForCausalLM,
)
from transformers.masking_utils import sdpa_mask

import ridgeline.transformers  # noqa: F401

VOCAB = 61
WINDOW = 7
EXACT = "exact"  # the name of the attention in float64
TOLERANCE = 1e-11

_SIZES = {
    "vocab_size": VOCAB,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 256,
    # Far from uniform logits, so that a wrong mask changes the chosen tokens.
    "initializer_range": 0.3,
}
_GEMMA = {"sliding_window": WINDOW, "query_pre_attn_scalar": 16}
_MIXED = {"layer_types": ["sliding_attention", "full_attention"]}


def _model(kind: type[PreTrainedModel], config: type, **sizes: object) -> Callable:
    return lambda: kind(config(**_SIZES, **sizes))


MODELS = {
    "llama": _model(LlamaForCausalLM, LlamaConfig),
    "qwen3": _model(Qwen3ForCausalLM, Qwen3Config),
    "mistral": _model(MistralForCausalLM, MistralConfig, sliding_window=WINDOW),
    "gemma2": _model(
        Gemma2ForCausalLM, Gemma2Config, attn_logit_softcapping=4.0, **_GEMMA, **_MIXED
    ),
    "gemma3": _model(Gemma3ForCausalLM, Gemma3TextConfig, **_GEMMA, **_MIXED),
}


def tiny(name: str, dtype: torch.dtype = torch.float64) -> PreTrainedModel:
    """The same weights in every call, under ``"ridgeline"``."""
    torch.manual_seed(3)
    model = MODELS[name]().to(dtype).eval()
    model.set_attn_implementation("ridgeline")
    return whole_norms(model) if dtype == torch.float64 else model


def whole_norms(model: PreTrainedModel) -> PreTrainedModel:
    """``model`` with norms that do not round to float32."""
    for module in model.modules():
        if type(module).__name__.endswith("RMSNorm"):
            module.forward = MethodType(_norm, module)
    return model


def exactly(model: PreTrainedModel, *args: object, **kwargs: object) -> Tensor:
    """Logits of ``model`` by the attention in float64; then it is ``"ridgeline"`` again."""
    model.set_attn_implementation(EXACT)
    try:
        return model(*args, **kwargs).logits
    finally:
        model.set_attn_implementation("ridgeline")


def tokens(*shape: int, seed: int = 0) -> Tensor:
    return torch.randint(1, VOCAB, shape, generator=torch.Generator().manual_seed(seed))


def _norm(self: nn.Module, x: Tensor) -> Tensor:
    eps = getattr(self, "variance_epsilon", None) or self.eps
    weight = 1 + self.weight if "Gemma" in type(self).__name__ else self.weight
    return weight * x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + eps)


def _attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor,
    scaling: float,
    softcap: float | None = None,
    **_: object,
) -> tuple[Tensor, None]:
    groups = query.shape[1] // key.shape[1]
    key, value = (x.repeat_interleave(groups, dim=1) for x in (key, value))
    scores = query @ key.transpose(2, 3) * scaling
    if softcap is not None:
        scores = softcap * torch.tanh(scores / softcap)
    scores = scores.masked_fill(~attention_mask, -torch.inf)
    # Padding sees nothing.
    p = torch.softmax(scores, dim=-1).masked_fill(~attention_mask, 0.0)
    return (p @ value).transpose(1, 2), None


def _mask(**kwargs: object) -> Tensor:
    return sdpa_mask(**{**kwargs, "allow_is_causal_skip": False})


AttentionInterface.register(EXACT, _attention)
AttentionMaskInterface.register(EXACT, _mask)
