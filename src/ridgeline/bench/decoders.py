"""Models with filled caches whose decode steps are compared: transformers' Llama, with its own
attention and with ours, and our models.

Weights are random, and the prompt is random K and V written straight into the caches: neither
changes how long a step takes. On the same K and V both models must give the same logits.
"""

import copy
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from transformers import Cache, DynamicCache, LlamaConfig, LlamaForCausalLM, StaticCache

from ridgeline.cache import CacheSpec
from ridgeline.models import RidgelineConfig, RidgelineForCausalLM
from ridgeline.models.cache import RidgelineCache
from ridgeline.ops.common import check
from ridgeline.transformers import NAME, GrowingCache

WATCHED_STEPS = 3
SHORT_PROMPT = 24

Prompt = Sequence[tuple[Tensor, ...]]  # what a cache holds of each layer, [1, N, ...]


@dataclass(frozen=True)
class ModelShape:
    """A Llama-like decoder; the default is Llama 3.2 1B with half the layers, a smaller vocabulary.

    ``variants`` run beside GQA, which transformers runs too.
    """

    layers: int = 8
    hidden: int = 2048
    intermediate: int = 5632
    heads: int = 32
    kv_heads: int = 8
    latent_heads: int = 2
    head_dim: int = 64
    vocab: int = 32000
    length: int = 16384
    reps: int = 7
    variants: tuple[str, ...] = ("gta", "mla", "gla")

    def __post_init__(self) -> None:
        check.count("reps", self.reps, minimum=1)
        check.count("length", self.length, minimum=SHORT_PROMPT)

    @property
    def max_length(self) -> int:
        return self.length + self.reps + WATCHED_STEPS + 2

    def llama(self) -> LlamaConfig:
        return LlamaConfig(
            vocab_size=self.vocab,
            hidden_size=self.hidden,
            intermediate_size=self.intermediate,
            num_hidden_layers=self.layers,
            num_attention_heads=self.heads,
            num_key_value_heads=self.kv_heads,
            head_dim=self.head_dim,
            max_position_embeddings=self.max_length,
        )

    def ridgeline(self, variant: str) -> RidgelineConfig:
        sizes = {"gqa": {"num_key_value_heads": self.kv_heads}}
        sizes["gta"] = sizes["gqa"]
        sizes["gla"] = {"num_latent_heads": self.latent_heads}
        return RidgelineConfig(
            vocab_size=self.vocab,
            hidden_size=self.hidden,
            intermediate_size=self.intermediate,
            num_hidden_layers=self.layers,
            num_attention_heads=self.heads,
            head_dim=self.head_dim,
            attention=variant,
            max_position_embeddings=self.max_length,
            **sizes.get(variant, {}),
        )


@dataclass
class Decoder:
    """A model with a filled cache; each ``step`` decodes one token and caches it."""

    name: str
    model: nn.Module
    cache: Cache

    @torch.inference_mode()
    def step(self) -> Tensor:
        """Logits ``[vocab]`` after a fixed token."""
        token = torch.tensor([[1]])
        return self.model(token, past_key_values=self.cache, use_cache=True).logits[0, -1]

    @property
    def cache_bytes_per_token(self) -> int:
        config = self.model.config
        if isinstance(config, LlamaConfig):
            spec = CacheSpec.gqa(config.num_key_value_heads, config.head_dim)
        else:
            spec = self.model.model.layers[0].self_attn.cache_spec()
        return config.num_hidden_layers * spec.bytes_per_token(self.model.dtype)

    @property
    def linear_bytes(self) -> int:
        """Weights that a step's matrix products read."""
        linears = (m for m in self.model.modules() if isinstance(m, nn.Linear))
        return sum(m.weight.nbytes for m in linears)


def decoders(shape: ModelShape) -> Iterator[Decoder]:
    """transformers with two of its caches; with our attention; our model with the same weights;
    our models of ``variants``.

    Raises:
        RuntimeError: our logits are further from float32 than transformers' by more than twice.
    """
    torch.manual_seed(0)
    llama = LlamaForCausalLM._from_config(
        shape.llama(), attn_implementation="sdpa", dtype=torch.bfloat16
    ).eval()
    adapted = copy.deepcopy(llama, {id(p): p for p in llama.parameters()})  # the same weights
    adapted.set_attn_implementation(NAME)
    ours = RidgelineForCausalLM.from_llama(llama)
    size = (1, shape.length, shape.kv_heads, shape.head_dim)
    prompt = [_random(size, size) for _ in range(shape.layers)]
    _check_logits(llama, adapted, ours, prompt)

    static = StaticCache(config=llama.config, max_cache_len=shape.max_length)
    yield Decoder("transformers sdpa", llama, _fill(DynamicCache(), prompt))
    yield Decoder("transformers sdpa, StaticCache", llama, _fill(static, prompt))
    for cache in (DynamicCache(), GrowingCache(llama.config)):
        name = f"transformers ridgeline, {type(cache).__name__}"
        yield Decoder(name, adapted, _fill(cache, prompt))
    yield Decoder("ridgeline gqa", ours, _fill_paged(ours, prompt, shape.max_length))
    for variant in shape.variants:
        model = RidgelineForCausalLM(shape.ridgeline(variant)).to(torch.bfloat16).eval()
        spec = model.model.layers[0].self_attn.cache_spec()
        if spec.kind == "paired":
            parts = ((spec.heads, spec.dim), (spec.heads, spec.value_dim))
        else:
            parts = ((spec.heads, spec.dim), (spec.rope_dim,))
        sizes = [(1, shape.length, *part) for part in parts]
        new = [_random(*sizes) for _ in range(shape.layers)]
        cache = _fill_paged(model, new, shape.max_length)
        yield Decoder(f"ridgeline {variant}", model, cache)


def _random(*sizes: tuple[int, ...]) -> tuple[Tensor, ...]:
    return tuple(torch.randn(size).bfloat16() for size in sizes)


def _fill(cache: Cache, prompt: Prompt) -> Cache:
    """``cache`` of transformers holding K and V of each layer."""
    for i, (k, v) in enumerate(prompt):
        cache.update(k.transpose(1, 2).contiguous(), v.transpose(1, 2).contiguous(), i)
    return cache


def _fill_paged(model: RidgelineForCausalLM, prompt: Prompt, max_length: int) -> RidgelineCache:
    cache = model.model.new_cache(1, max_length)
    with cache.step(1, prompt[0][0].shape[1], None) as step:
        for i, new in enumerate(prompt):
            step.write(i, *new)
    return cache


def _check_logits(
    llama: LlamaForCausalLM, adapted: LlamaForCausalLM, ours: RidgelineForCausalLM, prompt: Prompt
) -> None:
    """The models in BF16 against transformers in float32: a real prompt, and the random cache."""
    exact = copy.deepcopy(llama).float()
    ids = torch.arange(SHORT_PROMPT + 1)[None] % llama.config.vocab_size
    want = exact(ids).logits[0, -1]
    theirs = llama(ids).logits[0, -1]
    cache = ours.model.new_cache(1, SHORT_PROMPT + 1)
    ours(ids[:, :-1], past_key_values=cache)
    _compare("a prompt", ours(ids[:, -1:], past_key_values=cache).logits[0, -1], theirs, want)

    ids = ids[:, :1]
    wide = [(k.float(), v.float()) for k, v in prompt]
    want = exact(ids, past_key_values=_fill(DynamicCache(), wide)).logits[0, -1]
    theirs, near = (
        model(ids, past_key_values=_fill(DynamicCache(), prompt)).logits[0, -1]
        for model in (llama, adapted)
    )
    _compare("a full cache of transformers", near, theirs, want)
    cache = _fill_paged(ours, prompt, prompt[0][0].shape[1] + 1)
    _compare("a full cache", ours(ids, past_key_values=cache).logits[0, -1], theirs, want)


def _compare(what: str, ours: Tensor, theirs: Tensor, want: Tensor) -> None:
    error, allowed = ((x.float() - want).norm() / want.norm() for x in (ours, theirs))
    if not error <= 2 * allowed:
        raise RuntimeError(
            f"logits after {what}: relative error {error:.1e}, transformers' own {allowed:.1e}"
        )
