"""DeepSeek's models over their latents: the stock model's tokens, the cache of the spec."""

import copy

import pytest
import torch
from hf_cases import EXACT, TOLERANCE, VOCAB, tokens, whole_norms
from torch import Tensor, nn
from transformers import (
    DeepseekV2Config,
    DeepseekV2ForCausalLM,
    DeepseekV3Config,
    DeepseekV3ForCausalLM,
    DynamicCache,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
)

from ridgeline import CacheSpec, subtree_end
from ridgeline.transformers import GrowingCache, latent, use_latent_cache

LATENT, ROPE, LAYERS = 24, 8, 2
SIZES = {
    "vocab_size": VOCAB,
    "hidden_size": 32,
    "intermediate_size": 48,
    "moe_intermediate_size": 16,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "kv_lora_rank": LATENT,
    "qk_rope_head_dim": ROPE,
    "qk_nope_head_dim": 12,
    "v_head_dim": 20,
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
    "n_group": 1,
    "topk_group": 1,
    "n_shared_experts": 1,
    "initializer_range": 0.3,
    "max_position_embeddings": 256,
}
MODELS = {
    "v2": lambda dense: DeepseekV2ForCausalLM(
        DeepseekV2Config(**SIZES, q_lora_rank=None, first_k_dense_replace=dense)
    ),
    "v3": lambda dense: DeepseekV3ForCausalLM(
        DeepseekV3Config(**SIZES, q_lora_rank=16, first_k_dense_replace=dense)
    ),
}
GREEDY = {"do_sample": False, "pad_token_id": 0, "eos_token_id": VOCAB, "disable_compile": True}


@pytest.fixture(scope="module", params=list(MODELS))
def models(request: pytest.FixtureRequest) -> tuple[PreTrainedModel, PreTrainedModel]:
    """The stock model, and the same over its latents."""
    torch.manual_seed(5)
    stock = MODELS[request.param](1).eval()
    ours = use_latent_cache(copy.deepcopy(stock))
    stock.set_attn_implementation("eager")
    return stock, ours


@pytest.fixture
def decoded(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Query tokens of every call of the decode kernel."""
    calls = []
    kernel = latent.tied_decode

    def count(q: Tensor, *args: object, **kwargs: object) -> Tensor:
        calls.append(q.shape[1])
        return kernel(q, *args, **kwargs)

    monkeypatch.setattr(latent, "tied_decode", count)
    return calls


def padded() -> dict[str, Tensor]:
    mask = torch.ones(2, 14, dtype=torch.int64)
    mask[0, :6] = 0
    return {"input_ids": tokens(2, 14), "attention_mask": mask}


CASES = {
    "greedy": {},
    "static": {"cache_implementation": "static"},
    "beams": {"num_beams": 3},
    "uncached": {"use_cache": False},
}


@pytest.mark.parametrize("case", list(CASES))
def test_generate(models, case: str, decoded: list[int]) -> None:
    want, got = (m.generate(**padded(), max_new_tokens=7, **CASES[case], **GREEDY) for m in models)
    assert torch.equal(got, want)
    assert len(decoded) == (0 if case == "uncached" else 6 * LAYERS)


def test_generate_with_a_growing_cache_and_speculation(models, decoded: list[int]) -> None:
    stock, ours = models
    ids = tokens(1, 12)
    want = stock.generate(ids, max_new_tokens=8, **GREEDY)
    cache = GrowingCache(ours.config)
    got = ours.generate(
        ids, max_new_tokens=8, prompt_lookup_num_tokens=3, past_key_values=cache, **GREEDY
    )
    assert torch.equal(got, want)
    assert max(decoded) > 1


def test_cache_bytes_are_those_of_the_spec(models) -> None:
    _, ours = models
    cache = DynamicCache(config=ours.config)
    with torch.no_grad():
        ours(tokens(2, 9), past_key_values=cache)
        ours(tokens(2, 1), past_key_values=cache)
    spec = CacheSpec.mla(LATENT, ROPE)
    stored = sum(layer.keys.nbytes + layer.values.nbytes for layer in cache.layers)
    assert stored == 2 * 10 * LAYERS * spec.bytes_per_token(torch.float32)


@pytest.mark.parametrize("name", list(MODELS))
def test_steps_in_float64(name: str) -> None:
    """Logits of one and several tokens a step are those of the model's own expansion."""
    torch.manual_seed(5)
    stock = whole_norms(MODELS[name](LAYERS).double().eval())
    stock.set_attn_implementation(EXACT)
    ours = use_latent_cache(copy.deepcopy(stock))
    ids = tokens(2, 16)
    with torch.no_grad():
        want = stock(ids, use_cache=False).logits
        cache = DynamicCache(config=ours.config)
        parts = [ours(x, past_key_values=cache).logits for x in ids.split([8, 1, 3, 4], dim=1)]
    tolerance = {"v2": 1e-5, "v3": TOLERANCE}[name]  # V2 rotates in float32
    torch.testing.assert_close(torch.cat(parts, dim=1), want, atol=tolerance, rtol=tolerance)


def test_training_expands_as_before(models) -> None:
    stock, ours = models
    layout = subtree_end.of_pair(5, 2, 3)
    tree = {"position_ids": layout.position_ids[None], "subtree_end": layout.subtree_end[None]}
    ids = tokens(1, 11)
    got = ours(ids, **tree, use_cache=False).logits[0, 7:]
    want = stock(ids[:, [0, 1, 2, 3, 7, 8, 9, 10]], use_cache=False).logits[0, 4:]
    torch.testing.assert_close(got, want, atol=1e-5, rtol=1e-5)
    ours.zero_grad()
    got.square().sum().backward()
    assert all(layer.self_attn.kv_b_proj.weight.grad.norm() > 0 for layer in ours.model.layers)


def test_an_adapter_is_not_decoded_without_its_weights(models) -> None:
    class Adapted(nn.Linear):
        """As PEFT's layers show the weight of the layer they wrap."""

    ours = copy.deepcopy(models[1])
    attention = ours.model.layers[0].self_attn
    adapted = Adapted(1, 1, bias=False)
    adapted.weight = attention.kv_b_proj.weight
    attention.kv_b_proj = adapted
    with torch.no_grad(), pytest.raises(NotImplementedError, match="merge adapters"):
        ours.generate(tokens(1, 5), max_new_tokens=2, **GREEDY)


def test_other_models_have_no_latents() -> None:
    model = LlamaForCausalLM(
        LlamaConfig(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, vocab_size=8)
    )
    with pytest.raises(TypeError, match=r"^model: expected one with .*, got LlamaForCausalLM$"):
        use_latent_cache(model)
