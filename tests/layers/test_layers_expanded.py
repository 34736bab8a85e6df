"""The forward without a cache: definitions, gradients, defaults, Llama's weights."""

import subprocess
import sys

import pytest
import torch
from layer_cases import HEAD_DIM, HEADS, HIDDEN, forward, inputs, make, oracle
from torch.utils._python_dispatch import TorchDispatchMode

from ridgeline.cache import CacheSpec
from ridgeline.layers import (
    GroupedLatentAttention,
    GroupedQueryAttention,
    GroupedTiedAttention,
    RotaryEmbedding,
)


def relative_error(actual: torch.Tensor, exact: torch.Tensor) -> float:
    return float((actual.double() - exact).norm() / exact.norm())


def test_equals_expanded_multi_head_attention(variant):
    layer, x = make(variant), inputs(2, 9)
    torch.testing.assert_close(forward(layer, x), oracle(layer, x), rtol=0, atol=1e-10)


def test_gradients_equal_those_of_the_definition(variant):
    layer, x = make(variant), inputs(2, 7).requires_grad_()
    weights = [x, *layer.parameters()]
    cotangent = inputs(2, 7, seed=5)
    actual = torch.autograd.grad((forward(layer, x) * cotangent).sum(), weights)
    exact = torch.autograd.grad((oracle(layer, x) * cotangent).sum(), weights)
    for a, e in zip(actual, exact, strict=True):
        assert e.abs().max() > 1e-3  # every parameter matters
        torch.testing.assert_close(a, e, rtol=0, atol=1e-10)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
def test_working_precision_costs_no_more_than_plain_pytorch(variant, dtype):
    layer, x = make(variant, dtype), inputs(2, 12, dtype)
    with torch.no_grad():
        out, naive = forward(layer, x), oracle(layer, x)
        exact = oracle(layer.double(), x.double())
    assert out.dtype == dtype
    budget = 2 * relative_error(naive, exact) + torch.finfo(dtype).eps / 2
    assert relative_error(out, exact) <= budget


def test_gqa_equals_mha_with_repeated_heads():
    gqa, x = make("gqa"), inputs(2, 9)
    mha = GroupedQueryAttention(HIDDEN, HEADS, HEADS, HEAD_DIM).double()
    weights = {
        name: w.unflatten(0, (2, HEAD_DIM)).repeat_interleave(HEADS // 2, 0).flatten(0, 1)
        if name in ("k_proj.weight", "v_proj.weight")
        else w
        for name, w in gqa.state_dict().items()
    }
    mha.load_state_dict(weights)
    torch.testing.assert_close(forward(mha, x), forward(gqa, x), rtol=0, atol=1e-12)


def test_llama_attention_weights_load_as_they_are():
    llama = pytest.importorskip("transformers.models.llama.modeling_llama")
    config = llama.LlamaConfig(
        hidden_size=48, num_attention_heads=6, num_key_value_heads=2, head_dim=16
    )
    config._attn_implementation = "eager"
    theirs = llama.LlamaAttention(config, layer_idx=0).double()
    ours = GroupedQueryAttention(48, 6, 2, 16).double()
    ours.load_state_dict(theirs.state_dict())
    x = torch.randn(2, 11, 48, dtype=torch.float64)
    positions = torch.arange(3, 14).expand(2, 11)
    mask = torch.full((11, 11), -torch.inf, dtype=torch.float64).triu(1).expand(2, 1, 11, 11)
    expected, _ = theirs(x, llama.LlamaRotaryEmbedding(config)(x.float(), positions), mask)
    base = config.rope_parameters["rope_theta"]
    actual = ours(x, RotaryEmbedding(16, base)(positions))
    # Llama's softmax is in fp32 whatever its dtype.
    torch.testing.assert_close(actual, expected, rtol=0, atol=1e-6)


def test_no_parameter_is_a_bias_and_names_are_stable():
    names = {
        "gqa": "q_proj k_proj v_proj o_proj",
        "gta": "q_proj kv_proj k_rope_proj o_proj",
        "gla": "q_proj kv_down kv_norm o_proj k_up v_up",
        "mla": "q_down q_norm q_up kv_down kv_norm o_proj k_up v_up",
    }
    for variant, expected in names.items():
        keys = make(variant).state_dict().keys()
        assert not any("bias" in key for key in keys)
        assert {key.removesuffix(".weight") for key in keys} == set(expected.split())


def test_default_sizes_are_those_of_the_definitions():
    gta = GroupedTiedAttention(64, 4, 2)
    assert (gta.head_dim, gta.rope_dim, gta.softmax_scale) == (16, 8, 16**-0.5)
    gla = GroupedLatentAttention(64, 4, 2)
    assert (gla.latent_dim, gla.rope_dim, gla.softmax_scale) == (32, 8, 24**-0.5)
    assert gla.kv_down.weight.shape == (2 * 32 + 8, 64)
    assert gla.kv_norm.weight.shape == (2, 32)
    assert gla.k_up.shape == gla.v_up.shape == (4, 16, 32)
    mla = GroupedLatentAttention(64, 4, 1)
    assert (mla.latent_dim, mla.softmax_scale) == (64, 24**-0.5)
    gqa = GroupedQueryAttention(64, 4, 2)
    assert (gqa.rope_dim, gqa.softmax_scale) == (16, 16**-0.5)


@pytest.mark.parametrize("tp", [1, 2, 4, 8])
def test_cache_spec_is_the_variants(tp):
    gta = GroupedTiedAttention(64, 8, 4, 8, rope_dim=2)
    assert gta.cache_spec(tp) == CacheSpec.gta(4, 8, 2, tp)
    assert GroupedQueryAttention(64, 8, 4).cache_spec(tp) == CacheSpec.gqa(4, 8, tp)
    mla = GroupedLatentAttention(64, 8, 1, 16)
    assert mla.cache_spec(tp) == CacheSpec.mla(64, 8, tp)
    gla = GroupedLatentAttention(64, 8, 2, 16, latent_dim=24)
    assert gla.cache_spec(tp) == CacheSpec.gla(2, 24, 8, tp)


def test_autocast_trains_fp32_weights_in_bf16(variant):
    layer, x = make(variant, torch.float32), inputs(2, 6, torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        out = forward(layer, x)
    out.float().sum().backward()
    assert out.dtype == torch.bfloat16
    assert all(p.grad.isfinite().all() for p in layer.parameters())
    with torch.no_grad():
        exact = oracle(layer.double(), x.double())
        naive = oracle(layer.bfloat16(), x.bfloat16())
        budget = 2 * relative_error(naive, exact) + torch.finfo(torch.bfloat16).eps / 2
        assert relative_error(out, exact) <= budget


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
def test_prefill_is_the_attention_operation(variant, dtype):
    called = set()

    class Record(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            called.add(func)
            return func(*args, **(kwargs or {}))

    with Record(), torch.no_grad():
        forward(make(variant, dtype), inputs(1, 4, dtype))
    assert torch.ops.ridgeline.attention.default in called


def test_import_is_light():
    code = (
        "import sys, ridgeline.layers; "
        "sys.exit(any(m in sys.modules for m in ('transformers', 'triton', 'ridgeline.models')))"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
