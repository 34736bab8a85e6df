"""One call of an operation, with everything that decides its result."""

from dataclasses import dataclass
from typing import Any

from torch import Tensor

Window = tuple[int | None, int | None]


@dataclass(frozen=True, eq=False)
class PagedCase:
    """A call of ``paged_decode``; shapes as there."""

    q: Tensor
    k_cache: Tensor
    v_cache: Tensor
    block_table: Tensor
    cache_seqlens: Tensor
    softmax_scale: float | None = None
    causal: bool = True
    window: Window | None = None
    softcap: float = 0.0
    k_scale: Tensor | float | None = None
    v_scale: Tensor | float | None = None
    num_splits: int = 0

    @property
    def caches(self) -> tuple[str, ...]:
        return ("k_cache", "v_cache")

    @property
    def scale(self) -> float:
        """The softmax scale that holds, the default resolved."""
        return self.q.shape[-1] ** -0.5 if self.softmax_scale is None else self.softmax_scale

    def options(self) -> dict[str, Any]:
        """The keyword arguments of ``ridgeline.paged_decode``."""
        names = ["softmax_scale", "causal", "window", "softcap", "k_scale", "v_scale", "num_splits"]
        return {name: getattr(self, name) for name in names}

    def __repr__(self) -> str:
        return _describe(self, ("q", "k_cache", "v_cache"))


@dataclass(frozen=True, eq=False)
class TiedCase:
    """A call of ``tied_decode``; shapes as there."""

    q_nope: Tensor
    q_rope: Tensor
    state_cache: Tensor
    rope_cache: Tensor
    block_table: Tensor
    cache_seqlens: Tensor
    softmax_scale: float
    causal: bool = True
    state_scale: Tensor | float | None = None
    num_splits: int = 0

    @property
    def q(self) -> Tensor:
        return self.q_nope

    @property
    def caches(self) -> tuple[str, ...]:
        return ("state_cache", "rope_cache")

    @property
    def scale(self) -> float:
        return self.softmax_scale

    @property
    def window(self) -> None:
        return None

    def options(self) -> dict[str, Any]:
        """The keyword arguments of ``ridgeline.tied_decode``."""
        names = ["softmax_scale", "causal", "state_scale", "num_splits"]
        return {name: getattr(self, name) for name in names}

    def __repr__(self) -> str:
        return _describe(self, ("q_nope", "q_rope", "state_cache", "rope_cache"))


@dataclass(frozen=True, eq=False)
class MergeCase:
    """A call of ``merge``: ``outs [S, ..., d]``, ``lses [S, ...]``."""

    outs: Tensor
    lses: Tensor

    def __repr__(self) -> str:
        return f"MergeCase(outs={_shape(self.outs)}, lses={_shape(self.lses)})"


@dataclass(frozen=True, eq=False)
class AttentionCase:
    """A call of ``attention`` and the gradients that come back; shapes as there.

    ``dout`` and ``dlse`` have the shapes of ``out`` and ``lse``; ``dlse`` may be ``None``.
    """

    q: Tensor
    k: Tensor
    v: Tensor
    dout: Tensor
    dlse: Tensor | None = None
    causal: bool = False
    softmax_scale: float | None = None
    window: Window | None = None
    softcap: float = 0.0
    cu_seqlens_q: Tensor | None = None
    cu_seqlens_k: Tensor | None = None
    subtree_end: Tensor | None = None

    @property
    def scale(self) -> float:
        """The softmax scale that holds, the default resolved."""
        return self.q.shape[-1] ** -0.5 if self.softmax_scale is None else self.softmax_scale

    def options(self) -> dict[str, Any]:
        """The keyword arguments of ``ridgeline.attention``."""
        names = ["causal", "softmax_scale", "window", "softcap"]
        names += ["cu_seqlens_q", "cu_seqlens_k", "subtree_end"]
        return {name: getattr(self, name) for name in names}

    def sequences(self) -> list[tuple[int | slice, int | slice]]:
        """What to index the queries and the keys of each sequence with."""
        if self.cu_seqlens_q is None:
            return [(b, b) for b in range(self.q.shape[0])]
        q, k = self.cu_seqlens_q.tolist(), self.cu_seqlens_k.tolist()
        return [(slice(*q[b : b + 2]), slice(*k[b : b + 2])) for b in range(len(q) - 1)]

    def __repr__(self) -> str:
        return _describe(self, ("q", "k", "v", "dout", "dlse"))


DecodeCase = PagedCase | TiedCase
Case = DecodeCase | MergeCase | AttentionCase


def visible(case: DecodeCase, b: int, i: int) -> range:
    """The cached tokens that query ``i`` of sequence ``b`` sees: always one run of tokens.

    The query stands at ``length - L_q + i``; causal and the window bound the run on its two sides.
    """
    length = int(case.cache_seqlens[b])
    position = length - case.q.shape[1] + i
    left, right = case.window or (None, None)
    first = 0 if left is None else max(0, position - left)
    last = length - 1 if right is None else min(length - 1, position + right)
    return range(first, (min(last, position) if case.causal else last) + 1)


def read_by(case: DecodeCase, b: int) -> range:
    """The cached tokens that some query of sequence ``b`` sees."""
    runs = [run for i in range(case.q.shape[1]) if (run := visible(case, b, i))]
    return range(min(r.start for r in runs), max(r.stop for r in runs)) if runs else range(0)


def _describe(case: DecodeCase | AttentionCase, tensors: tuple[str, ...]) -> str:
    parts = [f"{name}={_shape(getattr(case, name))}" for name in tensors]
    if not isinstance(case, AttentionCase):
        parts.append(f"lengths={case.cache_seqlens.tolist()}")
        parts.append(f"max_pages={case.block_table.shape[1]}")
    for name, value in case.options().items():
        if isinstance(value, Tensor):
            value = value.tolist() if name.startswith("cu_seqlens") else _shape(value)
        parts.append(f"{name}={value}")
    return f"{type(case).__name__}({', '.join(parts)})"


def _shape(x: Tensor | None) -> str:
    if x is None:
        return "None"
    strides = "" if x.is_contiguous() else f"/{list(x.stride())}"
    return f"{str(x.dtype).removeprefix('torch.')}{list(x.shape)}{strides}"
