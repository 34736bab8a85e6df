"""The shapes of a decode step, with its bytes and FLOPs counted from them."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import product

import torch

from ridgeline.cache import CacheSpec
from ridgeline.ops.common import check

VARIANTS = ("mha", "mqa", "gqa", "gta", "mla", "gla")
QUERY_HEADS = {"mla": (16, 128), "gla": (16, 32, 128)}
DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
CACHE_DTYPES = {**DTYPES, "fp8": check.FP8}


@dataclass(frozen=True)
class DecodeShape:
    """One decode step: ``batch`` sequences of ``length`` cached tokens, ``query_len`` new ones.

    ``kv_heads`` counts the heads of the cache: kv heads, tied heads or latent heads. Widths follow
    from ``head_dim`` d_h: latents of 4 d_h (MLA) and 2 d_h (GLA), a RoPE key of d_h / 2. ``dtype``
    is that of the cache; beside "fp8" (e4m3, a scale a head) queries and RoPE keys are bfloat16.
    """

    variant: str
    heads: int
    kv_heads: int
    head_dim: int
    batch: int
    length: int
    query_len: int = 1
    dtype: str = "bf16"

    def __post_init__(self) -> None:
        _one_of("variant", self.variant, VARIANTS)
        _one_of("dtype", self.dtype, CACHE_DTYPES)
        for name in ("heads", "kv_heads", "batch", "length", "query_len"):
            check.count(name, getattr(self, name), minimum=1)
        check.divides("kv_heads", self.kv_heads, "heads", self.heads)
        if check.count("head_dim", self.head_dim, minimum=2) % 2:
            raise ValueError(f"head_dim: expected an even number, got {self.head_dim}")
        if self.query_len > self.length:
            raise ValueError(f"query_len: expected at most {self.length}, got {self.query_len}")

    @cached_property
    def spec(self) -> CacheSpec:
        d = self.head_dim
        match self.variant:
            case "gta":
                return CacheSpec.gta(self.kv_heads, d)
            case "mla":
                return CacheSpec.mla(4 * d, d // 2)
            case "gla":
                return CacheSpec.gla(self.kv_heads, 2 * d, d // 2)
            case _:
                return CacheSpec.gqa(self.kv_heads, d)

    @property
    def label(self) -> str:
        match self.variant:
            case "mla":
                return f"MLA {self.heads}"
            case "gla":
                return f"GLA-{self.kv_heads} {self.heads}"
            case variant:
                return f"{variant.upper()} {self.heads}/{self.kv_heads}"

    @property
    def torch_dtype(self) -> torch.dtype:
        """Of queries and RoPE keys."""
        return DTYPES.get(self.dtype, torch.bfloat16)

    @property
    def cache_dtype(self) -> torch.dtype:
        return CACHE_DTYPES[self.dtype]

    @property
    def rope_dim(self) -> int:
        return self.spec.rope_dim

    @property
    def nope_dim(self) -> int:
        """Width of the part of a cached head that a query meets unrotated (``d`` where K is K)."""
        return self.head_dim - self.rope_dim if self.variant == "gta" else self.spec.dim

    @property
    def softmax_scale(self) -> float:
        """That of the expanded form: latent heads rotate ``rope_dim`` dims beside ``head_dim``."""
        latent = self.variant in ("mla", "gla")
        return (self.head_dim + (self.rope_dim if latent else 0)) ** -0.5

    @property
    def bytes_per_token(self) -> int:
        """The records alone: FP8's scales, one a head of the whole cache, weigh nothing."""
        wider = self.torch_dtype.itemsize - self.cache_dtype.itemsize
        return self.spec.bytes_per_token(self.cache_dtype) + wider * self.rope_dim

    @property
    def cache_bytes(self) -> int:
        """What a step must read: every cached record once."""
        return self.batch * self.length * self.bytes_per_token

    @property
    def flops(self) -> int:
        """Multiply-adds of scores and values over the tokens each causal query sees, times two."""
        seen = sum(self.length - i for i in range(self.query_len))
        width = self.nope_dim + self.rope_dim + self.spec.dim
        return 2 * self.batch * seen * self.heads * width

    @property
    def intensity(self) -> float:
        """FLOP per byte of cache."""
        return self.flops / self.cache_bytes


def all_shapes(
    variants: Sequence[str],
    sizes: Sequence[tuple[int, int]],
    query_lens: Sequence[int],
    dtypes: Sequence[str],
    heads: tuple[int, ...] | None = None,
    *,
    kv_heads: int = 8,
    latent_heads: int = 2,
    head_dim: int = 128,
) -> list[DecodeShape]:
    """Every combination; those of one size together, so that variants stand beside each other.

    ``sizes`` are ``(batch, length)``; ``heads`` query heads, by default those of each variant.
    """
    return [
        DecodeShape(variant, h, in_cache, head_dim, batch, length, query_len, dtype)
        for dtype, query_len, (batch, length), variant in product(
            dtypes, query_lens, sizes, variants
        )
        for h, in_cache in default_heads(variant, heads, kv_heads, latent_heads)
    ]


def default_heads(
    variant: str, heads: tuple[int, ...] | None, kv_heads: int, latent_heads: int
) -> list[tuple[int, int]]:
    """``(query heads, heads of the cache)`` of the shapes to run for ``variant``."""
    _one_of("variants", variant, VARIANTS)
    in_cache = {"mqa": 1, "mla": 1, "gla": latent_heads, "gqa": kv_heads, "gta": kv_heads}
    chosen = QUERY_HEADS.get(variant, (32,)) if heads is None else heads
    return [(h, in_cache.get(variant, h)) for h in chosen]


def _one_of(name: str, x: str, allowed: object) -> None:
    if x not in allowed:
        raise ValueError(f"{name}: expected one of {', '.join(allowed)}, got {x!r}")
