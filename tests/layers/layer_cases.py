"""Tiny layers of all six variants, an oracle that shares no code with them, and cached runs."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from ridgeline.cache import CacheStep, PagedCache
from ridgeline.layers import (
    GroupedLatentAttention,
    GroupedQueryAttention,
    GroupedTiedAttention,
    RotaryEmbedding,
)
from ridgeline.layers.base import AttentionLayer

HIDDEN, HEADS, HEAD_DIM = 40, 8, 6

VARIANTS: dict[str, Callable[[], AttentionLayer]] = {
    "mha": lambda: GroupedQueryAttention(HIDDEN, HEADS, HEADS, HEAD_DIM),
    "mqa": lambda: GroupedQueryAttention(HIDDEN, HEADS, 1, HEAD_DIM),
    "gqa": lambda: GroupedQueryAttention(HIDDEN, HEADS, 2, HEAD_DIM),
    "gta": lambda: GroupedTiedAttention(HIDDEN, HEADS, 2, HEAD_DIM, rope_dim=2),
    "mla": lambda: GroupedLatentAttention(HIDDEN, HEADS, 1, HEAD_DIM, rope_dim=4, q_rank=20),
    "gla": lambda: GroupedLatentAttention(HIDDEN, HEADS, 2, HEAD_DIM, rope_dim=4),
}


def make(variant: str, dtype: torch.dtype = torch.float64, seed: int = 0) -> AttentionLayer:
    """A layer with logits of order 1, and norm weights that are not 1."""
    torch.manual_seed(seed)
    layer = VARIANTS[variant]()
    with torch.no_grad():
        for name, p in layer.named_parameters():
            if "norm" in name:
                p.uniform_(0.5, 1.5)
            else:
                p.normal_(0, 2 * p.shape[-1] ** -0.5)
    return layer.to(dtype)


def inputs(batch: int, length: int, dtype: torch.dtype = torch.float64, seed: int = 1) -> Tensor:
    return torch.randn(batch, length, HIDDEN, generator=torch.Generator().manual_seed(seed)).to(
        dtype
    )


def tables(layer: AttentionLayer, positions: Tensor) -> tuple[Tensor, Tensor]:
    return RotaryEmbedding(layer.rope_dim, base=50.0)(positions)


def forward(layer: AttentionLayer, x: Tensor) -> Tensor:
    """The forward without a cache, positions from 0."""
    positions = torch.arange(x.shape[1]).expand(x.shape[:2])
    return layer(x, tables(layer, positions))


def oracle(layer: AttentionLayer, x: Tensor) -> Tensor:
    """Multi-head attention of ``x [B, L, D]``, head by head and row by row, differentiable."""
    positions = torch.arange(x.shape[1])[None]
    cos, sin = tables(layer, positions)
    turn = torch.complex(cos[0], sin[0])
    return torch.stack([_one_sequence(layer, tokens, turn) for tokens in x])


def _one_sequence(layer: AttentionLayer, x: Tensor, turn: Tensor) -> Tensor:
    d, out = layer.head_dim, 0
    for head in range(layer.num_heads):
        group = head // (layer.num_heads // layer.num_state_heads)
        match layer:
            case GroupedQueryAttention():
                q, k, v = _query_head(layer, x, turn, head, group)
            case GroupedTiedAttention():
                q, k, v = _tied_head(layer, x, turn, head, group)
            case GroupedLatentAttention():
                q, k, v = _latent_head(layer, x, turn, head, group)
        # The dot product's width is that of the expanded keys, in all variants.
        rows = [
            torch.softmax(k[: i + 1] @ q[i] * k.shape[1] ** -0.5, 0) @ v[: i + 1]
            for i in range(len(x))
        ]
        out = out + torch.stack(rows) @ layer.o_proj.weight[:, head * d : (head + 1) * d].T
    return out


def _head(linear: nn.Linear, x: Tensor, width: int, i: int) -> Tensor:
    return x @ linear.weight[i * width : (i + 1) * width].T


def _rotate(x: Tensor, turn: Tensor) -> Tensor:
    wide = x.to(torch.promote_types(x.dtype, torch.float32))  # there is no complex bfloat16
    z = torch.complex(*wide.chunk(2, 1)) * turn
    return torch.cat((z.real, z.imag), 1).to(x.dtype)


def _rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    return x / (x.pow(2).mean(-1, keepdim=True) + eps).sqrt() * weight


def _query_head(
    layer: GroupedQueryAttention, x: Tensor, turn: Tensor, head: int, group: int
) -> tuple[Tensor, Tensor, Tensor]:
    d = layer.head_dim
    q, k = _head(layer.q_proj, x, d, head), _head(layer.k_proj, x, d, group)
    return _rotate(q, turn), _rotate(k, turn), _head(layer.v_proj, x, d, group)


def _tied_head(
    layer: GroupedTiedAttention, x: Tensor, turn: Tensor, head: int, group: int
) -> tuple[Tensor, Tensor, Tensor]:
    d, kept = layer.head_dim, layer.head_dim - layer.rope_dim
    q, tied = _head(layer.q_proj, x, d, head), _head(layer.kv_proj, x, d, group)
    q = torch.cat((q[:, :kept], _rotate(q[:, kept:], turn)), 1)
    rope = _rotate(x @ layer.k_rope_proj.weight.T, turn)
    return q, torch.cat((tied[:, :kept], rope), 1), tied


def _latent_head(
    layer: GroupedLatentAttention, x: Tensor, turn: Tensor, head: int, group: int
) -> tuple[Tensor, Tensor, Tensor]:
    d, width = layer.head_dim, layer.head_dim + layer.rope_dim
    if layer.q_rank is None:
        q = _head(layer.q_proj, x, width, head)
    else:
        low = _rms_norm(x @ layer.q_down.weight.T, layer.q_norm.weight, layer.eps)
        q = _head(layer.q_up, low, width, head)
    q = torch.cat((q[:, :d], _rotate(q[:, d:], turn)), 1)
    latent = _head(layer.kv_down, x, layer.latent_dim, group)
    latent = _rms_norm(latent, layer.kv_norm.weight[group], layer.eps)
    rope = _rotate(x @ layer.kv_down.weight[-layer.rope_dim :].T, turn)
    return q, torch.cat((latent @ layer.k_up[head].T, rope), 1), latent @ layer.v_up[head].T


class CachedRun:
    """Sequences that grow step by step in a cache of scattered pages, NaN where unwritten."""

    def __init__(
        self, layer: AttentionLayer, batch: int, max_len: int, page_size: int = 4, layers: int = 2
    ) -> None:
        pages = -(-max_len // page_size)
        dtype = layer.o_proj.weight.dtype
        spec = layer.cache_spec()
        self.layer, self.index, self.lengths = layer, layers - 1, [0] * batch
        self.cache = PagedCache(spec, layers, batch * pages + 1, page_size, dtype=dtype)
        for i in range(layers):
            for view in self.cache.layer(i):
                view.fill_(torch.nan)
        shuffled = torch.randperm(batch * pages, generator=torch.Generator().manual_seed(2))
        self.table = shuffled.view(batch, pages).to(torch.int32)

    def step(self, x: Tensor, new_lens: Sequence[int] | None = None, impl: str = "auto") -> Tensor:
        """The outputs of ``x [B, L_q, D]``, of which sequence b's last ``new_lens[b]`` are real."""
        batch, query_len, _ = x.shape
        lens = [query_len] * batch if new_lens is None else list(new_lens)
        before, page_size = self.lengths, self.cache.page_size
        self.lengths = [a + b for a, b in zip(before, lens, strict=True)]
        positions = torch.zeros(batch, query_len, dtype=torch.int64)
        slots = torch.full((batch, query_len), -1, dtype=torch.int64)
        for b, n in enumerate(lens):
            for i in range(n):
                position, column = before[b] + i, query_len - n + i
                positions[b, column] = position
                page = int(self.table[b, position // page_size])
                slots[b, column] = page * page_size + position % page_size
        step = CacheStep(
            self.cache,
            self.table,
            torch.tensor(self.lengths, dtype=torch.int32),
            slots.flatten(),
            None if new_lens is None else lens,
            is_prefill=not any(before),
        )
        with torch.no_grad():
            rotary = tables(self.layer, positions)
            return self.layer(x, rotary, cache=step, layer=self.index, impl=impl)

    def run(self, x: Tensor, schedule: Sequence[int], impl: str = "auto") -> Tensor:
        """The outputs of all of ``x [B, L, D]``, in steps of ``schedule`` tokens."""
        return torch.cat([self.step(part, impl=impl) for part in x.split(list(schedule), 1)], 1)
