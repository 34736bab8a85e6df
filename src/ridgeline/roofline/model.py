"""A decoder's sizes: parameters, cache and FLOPs of one rank, counted from them."""

from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import torch

from ridgeline.cache import CacheSpec
from ridgeline.ops.common import check
from ridgeline.roofline.hardware import WIDTHS

VARIANTS = ("mha", "mqa", "gqa", "gta", "mla", "gla")
TORCH_DTYPES = {
    "bf16": torch.bfloat16,
    "fp16": torch.float16,
    "fp32": torch.float32,
    "fp8": torch.float8_e4m3fn,
}
LATENT = ("mla", "gla")


@dataclass(frozen=True)
class Experts:
    """A mixture of experts in place of the MLP of all layers but the first ``dense_layers``.

    ``intermediate`` is the width of one expert, ``shared`` of which every token passes through.
    """

    count: int
    per_token: int
    intermediate: int
    shared: int = 0
    dense_layers: int = 0

    def __post_init__(self) -> None:
        check.count("experts.count", self.count, minimum=1)
        check.count("experts.per_token", self.per_token, minimum=1, maximum=self.count)
        check.count("experts.intermediate", self.intermediate, minimum=1)
        check.count("experts.shared", self.shared)
        check.count("experts.dense_layers", self.dense_layers)

    def touched(self, tokens: float) -> float:
        """Routed experts that ``tokens`` evenly routed tokens are expected to reach."""
        return self.count * (1 - (1 - self.per_token / self.count) ** tokens)


@dataclass(frozen=True)
class ModelShape:
    """A decoder with any of the six attentions.

    Args:
        kv_heads: heads of the cache: key/value heads (mha, mqa, gqa), tied heads (gta) or latent
            heads (mla: 1, gla).
        head_dim: width of a head; without its RoPE part for mla and gla.
        latent_dim: width of a latent, mla and gla; 4 (mla) or 2 (gla) ``head_dim`` if None.
        rope_dim: width of the shared RoPE key of gta, mla and gla; ``head_dim // 2`` if None.
        value_dim: width of an expanded value of mla and gla; ``head_dim`` if None.
        q_rank: rank of the query's projection of mla and gla; full if None.
        weight_dtype, cache_dtype: bf16, fp16, fp32 or fp8. With FP8 weights embeddings, and with
            an FP8 cache RoPE keys, stay bf16.

    Raises:
        ValueError, TypeError: a size is impossible, or belongs to another variant.
    """

    name: str
    variant: Literal["mha", "mqa", "gqa", "gta", "mla", "gla"]
    layers: int
    hidden: int
    heads: int
    kv_heads: int
    head_dim: int
    intermediate: int
    vocab: int
    latent_dim: int | None = None
    rope_dim: int | None = None
    value_dim: int | None = None
    q_rank: int | None = None
    tied_embeddings: bool = False
    experts: Experts | None = None
    weight_dtype: str = "bf16"
    cache_dtype: str = "bf16"

    def __post_init__(self) -> None:
        if self.variant not in VARIANTS:
            raise ValueError(
                f"variant: expected one of {', '.join(VARIANTS)}, got {self.variant!r}"
            )
        for name in ("layers", "hidden", "heads", "kv_heads", "head_dim", "intermediate", "vocab"):
            check.count(name, getattr(self, name), minimum=1)
        check.divides("kv_heads", self.kv_heads, "heads", self.heads)
        only = {"mha": self.heads, "mqa": 1, "mla": 1}.get(self.variant, self.kv_heads)
        if self.kv_heads != only:
            raise ValueError(f"kv_heads: {self.variant} has {only}, got {self.kv_heads}")
        for name in ("weight_dtype", "cache_dtype"):
            if getattr(self, name) not in WIDTHS:
                raise ValueError(
                    f"{name}: expected one of {', '.join(WIDTHS)}, got {getattr(self, name)!r}"
                )
        self._fill_in()
        if self.experts is not None and self.experts.dense_layers > self.layers:
            raise ValueError(f"experts.dense_layers: expected at most layers ({self.layers})")

    def _fill_in(self) -> None:
        """Widths that were left at None; those of another variant must be."""
        wide = {"mla": 4, "gla": 2}.get(self.variant, 0) * self.head_dim
        defaults = {"latent_dim": wide, "rope_dim": self.head_dim // 2, "value_dim": self.head_dim}
        has = {"gta": {"rope_dim"}, "mla": {*defaults, "q_rank"}, "gla": {*defaults, "q_rank"}}
        allowed = has.get(self.variant, set())
        for name in (*defaults, "q_rank"):
            given = getattr(self, name)
            if given is not None:
                if name not in allowed:
                    raise ValueError(f"{name}: {self.variant} has none, got {given}")
                check.count(name, given, minimum=1)
            elif name in allowed and name != "q_rank":
                object.__setattr__(self, name, defaults[name])

    @property
    def is_latent(self) -> bool:
        return self.variant in LATENT

    def spec(self, tp: int = 1) -> CacheSpec:
        """The cache of a layer on one of ``tp`` ranks."""
        match self.variant:
            case "gta":
                return CacheSpec.gta(self.kv_heads, self.head_dim, self.rope_dim, tp)
            case "mla" | "gla":
                return CacheSpec.gla(self.kv_heads, self.latent_dim, self.rope_dim, tp)
            case _:
                return CacheSpec.gqa(self.kv_heads, self.head_dim, tp)

    def cache_bytes(self, tp: int = 1) -> int:
        """Bytes of a token in all layers on one of ``tp`` ranks."""
        spec = self.spec(tp)
        wider = 1 if self.cache_dtype == "fp8" else 0
        one = spec.bytes_per_token(TORCH_DTYPES[self.cache_dtype]) + wider * spec.rope_dim
        return self.layers * one

    @cached_property
    def score_width(self) -> int:
        """Multiply-adds of a decode step for a query head and a cached token: score and value."""
        match self.variant:
            case "gta" | "mla" | "gla":
                state = self.head_dim if self.variant == "gta" else self.latent_dim
                unrotated = self.head_dim - self.rope_dim if self.variant == "gta" else state
                return unrotated + self.rope_dim + state
            case _:
                return 2 * self.head_dim

    @cached_property
    def expanded_width(self) -> int:
        """The same for a prompt's attention over K and V of every head."""
        if self.is_latent:
            return self.head_dim + self.rope_dim + self.value_dim
        return 2 * self.head_dim

    def attention_parameters(self, tp: int = 1) -> int:
        """Of one layer on one of ``tp`` ranks."""
        d, heads, spec = self.hidden, self.heads // tp, self.spec(tp)
        match self.variant:
            case "gta":
                inputs = heads * self.head_dim + spec.heads * self.head_dim + self.rope_dim
                return d * (inputs + heads * self.head_dim)
            case "mla" | "gla":
                queries = heads * (self.head_dim + self.rope_dim)
                rank = self.q_rank
                query = d * queries if rank is None else rank * (d + queries)
                up = heads * self.latent_dim * (self.head_dim + self.value_dim)
                return query + d * spec.elements_per_token + up + heads * self.value_dim * d
            case _:
                return d * (2 * heads + 2 * spec.heads) * self.head_dim

    @property
    def embedding_parameters(self) -> int:
        return self.vocab * self.hidden

    @property
    def parameters(self) -> int:
        """Of the whole model, without norms and routers."""
        return self._total(None)

    @property
    def active_parameters(self) -> int:
        """That a token passes through, embeddings and logits included."""
        return self._total(1.0)

    def _total(self, tokens: float | None) -> int:
        embeddings = (1 if self.tied_embeddings else 2) * self.embedding_parameters
        attention = self.layers * self.attention_parameters()
        return round(embeddings + attention + self.ffn_parameters(tokens))

    def ffn_parameters(self, tokens: float | None = None) -> float:
        """Of all layers' MLPs; with experts those that ``tokens`` tokens reach (None: all)."""
        dense = 3 * self.hidden * self.intermediate
        if self.experts is None:
            return self.layers * dense
        x = self.experts
        routed = x.count if tokens is None else x.touched(tokens)
        experts = 3 * self.hidden * x.intermediate * (routed + x.shared)
        return x.dense_layers * dense + (self.layers - x.dense_layers) * experts

    @property
    def weight_width(self) -> int:
        return WIDTHS[self.weight_dtype]

    @property
    def embedding_width(self) -> int:
        return max(2, self.weight_width)
