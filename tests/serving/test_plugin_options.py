"""What the plugin refuses, and vLLM's own models with Ridgeline's attention."""

import pickle

import pytest
import torch
import vllm
from checkpoints import tiny_checkpoint
from engines import engine, greedy, random_prompts, reference, set_num_threads
from transformers import LlamaConfig, LlamaForCausalLM, MistralConfig, MistralForCausalLM
from vllm.v1.attention.backends.registry import AttentionBackendEnum

import ridgeline.vllm
from ridgeline.vllm.model import check_files
from ridgeline.vllm.packing import check_threads
from ridgeline.vllm.paired import PairedBackend, PairedImpl

LENGTHS, TOKENS = (90, 17, 40), 24
LLAMA = {
    "vocab_size": 257,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "max_position_embeddings": 256,
    "initializer_range": 0.3,
}


def backends(llm) -> set[str]:
    layers = llm.llm_engine.vllm_config.compilation_config.static_forward_context
    return {layer.attn_backend.get_name() for layer in layers.values()}


def others(folder, name):
    """A checkpoint of one of vLLM's own models; Mistral's window is shorter than the prompts."""
    torch.manual_seed(5)
    if name == "llama":
        model = LlamaForCausalLM(LlamaConfig(**LLAMA))
    else:
        model = MistralForCausalLM(MistralConfig(**LLAMA, sliding_window=24))
    model.save_pretrained(folder)
    return folder


@pytest.mark.parametrize("name", ["llama", "mistral"])
def test_the_engines_own_models_by_one_option(tmp_path, name):
    path, prompts = others(tmp_path, name), random_prompts(LENGTHS, shared=5)
    with engine(
        path,
        attention_backend="RIDGELINE",
        skip_tokenizer_init=True,
        max_model_len=256,
        max_num_batched_tokens=48,
    ) as llm:
        assert backends(llm) == {"RIDGELINE"}
        tokens = greedy(llm, prompts, TOKENS)
        assert tokens == reference(path, prompts, tokens)


def test_our_model_with_the_engines_own_attention(tmp_path):
    path = tiny_checkpoint(tmp_path, "gqa", head_dim=32)
    prompts = random_prompts(LENGTHS, shared=5)
    with engine(path, attention_backend="CPU_ATTN", block_size=32, max_model_len=256) as llm:
        assert backends(llm) == {"CPU_ATTN"}
        tokens = greedy(llm, prompts, TOKENS)
        assert tokens == reference(path, prompts, tokens)


def test_compiled(tmp_path):
    """As served by default: torch.compile's graph, its ops eager to save the compiler's time."""
    path = tiny_checkpoint(
        tmp_path,
        "gla",
        q_rank=24,
        tie_word_embeddings=True,
        rope_parameters={
            "rope_type": "llama3",
            "rope_theta": 10000.0,
            "factor": 4.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 64,
        },
    )
    prompts = random_prompts(LENGTHS, shared=5)
    with (
        pytest.MonkeyPatch.context() as patch,
    ):
        patch.setenv("VLLM_CPU_CI_ENV", "1")
        with engine(path, enforce_eager=False, max_model_len=256) as llm:
            tokens = greedy(llm, prompts, TOKENS)
        assert tokens == reference(path, prompts, tokens)


def test_an_altered_checkpoint_does_not_start(tmp_path):
    path = tiny_checkpoint(tmp_path)
    weights = path / "model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-5] ^= 1
    weights.write_bytes(data)
    with pytest.raises(ValueError, match=r"model\.safetensors: altered, expected SHA-256"):  # noqa: SIM117
        with engine(path, max_model_len=256):
            pass


def test_other_formats_are_refused(tmp_path):
    with pytest.raises(ValueError, match="expected weights as \\*\\.safetensors, found none"):
        check_files(str(tmp_path), "auto")
    with pytest.raises(ValueError, match="load_format: expected 'auto' or 'safetensors', got 'pt'"):
        check_files(str(tmp_path), "pt")


@pytest.mark.parametrize("found", ["0.31.4", "0.33.0", "0.320.1", "1.0"])
def test_another_version_says_what_to_install(monkeypatch, found):
    monkeypatch.setattr(vllm, "__version__", found)
    with pytest.raises(ImportError, match=rf"needs vLLM 0\.32, got {found}; install 'vllm==0\.32"):
        ridgeline.vllm.register()


@pytest.mark.parametrize("found", ["0.32.0", "0.32.1", "0.32", "0.32.0+cpu"])
def test_this_version_is_taken(monkeypatch, found):
    monkeypatch.setattr(vllm, "__version__", found)
    ridgeline.vllm.check_version()


def test_register_may_run_again():
    for _ in range(2):
        ridgeline.vllm.register()
    assert AttentionBackendEnum["RIDGELINE"].get_class() is PairedBackend


def test_an_unpickled_choice_registers_the_plugin():
    """As of a server's ``--attention-backend``: its engine reads it before it loads plugins."""
    ridgeline.vllm.register()
    chosen = AttentionBackendEnum["RIDGELINE"]
    made, arguments = chosen.__reduce_ex__(pickle.HIGHEST_PROTOCOL)
    assert (made.__module__, arguments) == ("ridgeline.vllm", ())
    assert pickle.loads(pickle.dumps(chosen)) is chosen


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("alibi_slopes", [0.5, 0.25]),
        ("attn_type", "encoder_only"),
        ("kv_cache_dtype", "fp8"),
        ("kv_sharing_target_layer_name", "model.layers.0"),
    ],
)
def test_attention_that_is_not_ours_is_refused(option, value):
    with pytest.raises(ValueError, match=f"{option}: RIDGELINE attention expects"):
        PairedImpl(2, 16, 0.25, **{option: value})


def test_weights_packed_with_other_threads_are_refused():
    """In a row, vLLM's CPU linears would multiply by the first one's layout."""
    check_threads()
    threads = torch.get_num_threads()
    set_num_threads(threads + 1)
    try:
        with pytest.raises(RuntimeError, match=f"expected {threads} threads.*got {threads + 1}"):
            check_threads()
    finally:
        set_num_threads(threads)
    check_threads()
