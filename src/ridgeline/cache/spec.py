"""What one token costs in the cache: elements and bytes, per variant and tensor-parallel degree."""

from dataclasses import dataclass
from typing import Literal

import torch

from ridgeline.ops.common import check


@dataclass(frozen=True)
class CacheSpec:
    """The cache of one layer on one tensor-parallel rank.

    The constructors ``gqa``, ``gta``, ``mla`` and ``gla`` give a rank its share of the heads,
    ``ceil(heads / tp)``: heads are replicated once there are more ranks than heads, and the RoPE
    key of the tied variants never shards (Zadouri, Strauss, Dao, arXiv 2505.21487).

    Args:
        kind: "paired" caches K and V apart (MHA, MQA, GQA); "tied" caches one state that is key
            and value at once, and one RoPE key for all heads (GTA, MLA, GLA).
        heads: key/value heads (paired) or state heads (tied) of this rank.
        dim: width of a head's key (paired) or of a state (tied).
        rope_dim: width of the shared RoPE key; tied only.
        value_dim: width of a head's value; paired only, ``None`` means ``dim``.

    Raises:
        TypeError, ValueError: a size is not an integer, is below 1, or belongs to the other kind.
    """

    kind: Literal["paired", "tied"]
    heads: int
    dim: int
    rope_dim: int = 0
    value_dim: int | None = None

    def __post_init__(self) -> None:
        if self.kind not in ("paired", "tied"):
            raise ValueError(f"kind: expected 'paired' or 'tied', got {self.kind!r}")
        check.count("heads", self.heads, minimum=1)
        check.count("dim", self.dim, minimum=1)
        check.count("rope_dim", self.rope_dim)
        if self.kind == "tied":
            if self.value_dim is not None:
                raise ValueError(
                    f"value_dim: expected None for a tied cache (its state is the value), "
                    f"got {self.value_dim}"
                )
            return
        if self.rope_dim:
            raise ValueError(
                f"rope_dim: expected 0 for a paired cache (its keys are rotated whole), "
                f"got {self.rope_dim}"
            )
        if self.value_dim is None:
            object.__setattr__(self, "value_dim", self.dim)
        check.count("value_dim", self.value_dim, minimum=1)

    @classmethod
    def gqa(cls, kv_heads: int, head_dim: int, tp: int = 1) -> "CacheSpec":
        """GQA; MHA with ``kv_heads`` = query heads, MQA with ``kv_heads`` = 1."""
        return cls("paired", _share("kv_heads", kv_heads, tp), head_dim)

    @classmethod
    def gta(
        cls, kv_heads: int, head_dim: int, rope_dim: int | None = None, tp: int = 1
    ) -> "CacheSpec":
        """Grouped-Tied Attention; ``rope_dim`` ``None`` means ``head_dim // 2``."""
        check.count("head_dim", head_dim, minimum=1)
        if rope_dim is None:
            rope_dim = head_dim // 2
        if check.count("rope_dim", rope_dim) > head_dim:
            raise ValueError(f"rope_dim: expected at most head_dim ({head_dim}), got {rope_dim}")
        return cls("tied", _share("kv_heads", kv_heads, tp), head_dim, rope_dim)

    @classmethod
    def mla(cls, latent_dim: int, rope_dim: int, tp: int = 1) -> "CacheSpec":
        """Multi-head Latent Attention: one latent, whole on every rank."""
        return cls.gla(1, latent_dim, rope_dim, tp)

    @classmethod
    def gla(cls, latent_heads: int, latent_dim: int, rope_dim: int, tp: int = 1) -> "CacheSpec":
        """Grouped Latent Attention: ``latent_heads`` latents of width ``latent_dim``."""
        check.count("latent_dim", latent_dim, minimum=1)
        return cls("tied", _share("latent_heads", latent_heads, tp), latent_dim, rope_dim)

    @property
    def elements_per_token(self) -> int:
        if self.kind == "paired":
            return self.heads * (self.dim + self.value_dim)
        return self.heads * self.dim + self.rope_dim

    def bytes_per_token(self, dtype: torch.dtype) -> int:
        """Bytes of one token in this layer on this rank."""
        if not isinstance(dtype, torch.dtype):
            raise TypeError(f"dtype: expected a torch.dtype, got {type(dtype).__name__}")
        return self.elements_per_token * dtype.itemsize


def _share(name: str, heads: int, tp: int) -> int:
    """The heads of one of ``tp`` ranks."""
    check.count(name, heads, minimum=1)
    check.count("tp", tp, minimum=1)
    return -(-heads // tp)
