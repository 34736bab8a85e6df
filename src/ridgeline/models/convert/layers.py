"""One attention layer's weights: from a key and a value a head to one tied or latent state.

RoPE turns the dims p and p + d/2 of a head by an angle of their own a token. A target turns only
``rope_dim`` dims, in one key for all heads. It keeps the fastest pairs, ``p < rope_dim / 2``: of
those that stop turning, the slowest change the least over a given distance. The kept dims are in
the order that RoPE of ``rope_dim`` has, at the base ``theta ** (rope_dim / d)``.
"""

from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

from ridgeline.layers import GroupedQueryAttention
from ridgeline.models.config import RidgelineConfig
from ridgeline.models.convert.factor import Root, low_rank, shared_key

Weights = dict[str, Tensor]


@dataclass(frozen=True)
class Converted:
    """The new layer's weights, and the projections ``[h_kv, d, D]`` that they stand for."""

    weights: Weights
    key: Tensor
    value: Tensor


@dataclass(frozen=True)
class Source:
    """A grouped-query layer by heads, float64: q ``[h_q, d, D]``, k and v ``[h_kv, d, D]``, and o
    ``[D, h_q, d]``. ``root`` is of the second moment of its inputs, ``norm [D]`` the weight of the
    RMSNorm that makes them."""

    q: Tensor
    k: Tensor
    v: Tensor
    o: Tensor
    root: Root
    norm: Tensor

    @classmethod
    def of(cls, layer: GroupedQueryAttention, norm: Tensor, moment: Tensor) -> Self:
        def heads(weight: Tensor, dim: int) -> Tensor:
            return weight.detach().double().unflatten(dim, (-1, layer.head_dim))

        q, k, v = (heads(p.weight, 0) for p in (layer.q_proj, layer.k_proj, layer.v_proj))
        return cls(q, k, v, heads(layer.o_proj.weight, 1), Root.of(moment), norm)

    @property
    def kv_head(self) -> list[int]:
        """The kv head of each query head."""
        group = len(self.q) // len(self.k)
        return [h // group for h in range(len(self.q))]

    def blocks(self, states: int) -> list[list[int]]:
        """The kv heads behind each of ``states`` equal blocks of query heads."""
        size = len(self.q) // states
        found = (self.kv_head[b * size : (b + 1) * size] for b in range(states))
        return [sorted(set(heads)) for heads in found]


def convert_layer(source: Source, config: RidgelineConfig) -> Converted:
    """Weights of the layer that ``config`` names."""
    return to_tied(source, config) if config.attention == "gta" else to_latent(source, config)


def to_tied(source: Source, config: RidgelineConfig) -> Converted:
    """Weights of ``GroupedTiedAttention``.

    A tied state of width d holds d directions of a block's keys and values, those of the joint SVD.
    Its basis is free, since query and output projection can undo it, head by head. The state takes
    the singular values, as values and keys had their sizes in the source, so that what query and
    output projection take is about orthogonal: steps of an optimizer then move the function about
    as far as before. The first ``d - rope_dim`` dims are those that the keys use.
    """
    dim, rope = config.head_dim, config.rope_dim
    nope = dim - rope
    q, o = torch.empty_like(source.q), torch.empty_like(source.o)
    key, value = torch.zeros_like(source.k), torch.zeros_like(source.v)
    states = []
    size = len(q) // config.num_key_value_heads
    for b, kv_heads in enumerate(source.blocks(config.num_key_value_heads)):
        ups, down = _joint(source, kv_heads, rope, rank=dim)
        stacked = torch.cat([x for pair in ups.values() for x in pair])
        sizes = stacked.norm(dim=0)
        sizes = sizes.clamp(min=1e-3 * sizes.max())
        # As large as the values were.
        sizes *= source.v[kv_heads].norm() / len(kv_heads) ** 0.5 / (sizes[:, None] * down).norm()
        turn = torch.linalg.svd(torch.cat([k / sizes for k, _ in ups.values()]))[2]  # [dim, dim]
        down = turn @ (sizes[:, None] * down)
        ups = {g: (k / sizes @ turn.T, v / sizes @ turn.T) for g, (k, v) in ups.items()}
        for g, (k_up, v_up) in ups.items():
            key[g, _unturned(dim, rope)] = k_up[:, :nope] @ down[:nope]
            value[g] = v_up @ down
        for h in range(b * size, (b + 1) * size):
            k_up, v_up = ups[source.kv_head[h]]
            q[h, :nope] = k_up[:, :nope].T @ source.q[h, _unturned(dim, rope)]
            o[:, h] = source.o[:, h] @ v_up
        states.append(down)
    q[:, nope:], k_rope, key[:, _turned(dim, rope)] = _rope(source, rope)
    weights = {
        "q_proj.weight": q.flatten(0, 1),
        "kv_proj.weight": torch.cat(states),
        "k_rope_proj.weight": k_rope,
        "o_proj.weight": o.flatten(1),
    }
    return Converted(weights, key, value)


def to_latent(source: Source, config: RidgelineConfig) -> Converted:
    """Weights of ``GroupedLatentAttention`` with a full-rank query.

    The source has no RMSNorm of a latent. It changes little where a latent's size hardly changes
    from token to token, and the inputs of a layer, less their norm's weight, are all of one size:
    so a latent is an orthogonal projection of these, at mean square 1. Of a query's ``d`` unrotated
    dims, the last ``rope_dim`` meet keys of zero: the function does not depend on them, but as
    copies of the rotated dims they give these keys a gradient.
    """
    dim, rope = config.head_dim, config.rope_dim
    nope = dim - rope
    key, value = torch.zeros_like(source.k), torch.zeros_like(source.v)
    up = (len(source.q), dim, config.latent_dim)
    k_up, v_up = source.q.new_zeros(up), source.q.new_zeros(up)
    latents = []
    size = len(source.q) // config.num_latent_heads
    for b, kv_heads in enumerate(source.blocks(config.num_latent_heads)):
        ups, down = _joint(source, kv_heads, rope, rank=config.latent_dim)
        basis = _orthogonal(down, source)
        down = basis @ down
        undo = torch.linalg.inv(basis)
        ups = {g: (k @ undo, v @ undo) for g, (k, v) in ups.items()}
        for g, (k, v) in ups.items():
            key[g, _unturned(dim, rope)], value[g] = k @ down, v @ down
        for h in range(b * size, (b + 1) * size):
            k_up[h, :nope], v_up[h] = ups[source.kv_head[h]]
        latents.append(down)
    q_rope, k_rope, key[:, _turned(dim, rope)] = _rope(source, rope)
    parts = (source.q[:, _unturned(dim, rope)], source.q[:, _turned(dim, rope)], q_rope)
    # The source's scale is d^-1/2, the target's (d + rope_dim)^-1/2.
    q = torch.cat(parts, dim=1) * ((dim + rope) / dim) ** 0.5
    weights = {
        "q_proj.weight": q.flatten(0, 1),
        "kv_down.weight": torch.cat((*latents, k_rope)),
        "kv_norm.weight": q.new_ones(config.num_latent_heads, config.latent_dim),
        "k_up": k_up,
        "v_up": v_up,
        "o_proj.weight": source.o.flatten(1),
    }
    return Converted(weights, key, value)


def _turned(dim: int, rope: int) -> Tensor:
    """The dims of a head that the target rotates."""
    pairs = torch.arange(rope // 2)
    return torch.cat((pairs, pairs + dim // 2))


def _unturned(dim: int, rope: int) -> Tensor:
    pairs = torch.arange(rope // 2, dim // 2)
    return torch.cat((pairs, pairs + dim // 2))


def _orthogonal(down: Tensor, source: Source) -> Tensor:
    """The basis ``[rank, rank]`` in which ``down`` is an orthogonal projection of normed inputs."""
    plain = down * source.norm
    values, vectors = torch.linalg.eigh(plain @ plain.T)
    basis = (vectors * values.rsqrt()) @ vectors.T
    size = (basis @ down @ source.root.half).square().sum().sqrt()
    return basis * (len(down) ** 0.5 / size)


def _joint(
    source: Source, kv_heads: list[int], rope: int, rank: int
) -> tuple[dict[int, tuple[Tensor, Tensor]], Tensor]:
    """Unrotated keys and values of ``kv_heads`` from one state, ``down [rank, D]``.

    Returns each head's ``(k [d - rope_dim, rank], v [d, rank])`` and ``down``. Keys and values
    weigh the same, whatever their sizes.
    """
    dim = source.k.shape[1]
    keys = source.k[kv_heads][:, _unturned(dim, rope)].flatten(0, 1)
    values = source.v[kv_heads].flatten(0, 1)
    sizes = [(x @ source.root.half).norm() for x in (keys, values)]
    balance = sizes[1] / sizes[0] if min(sizes) > 0 else 1.0
    up, down = low_rank(torch.cat((balance * keys, values)), source.root, rank)
    count = len(kv_heads)
    k_up = up[: len(keys)].unflatten(0, (count, dim - rope)) / balance
    v_up = up[len(keys) :].unflatten(0, (count, dim))
    return dict(zip(kv_heads, zip(k_up, v_up, strict=True), strict=True)), down


def _rope(source: Source, rope: int) -> tuple[Tensor, Tensor, Tensor]:
    """The rotated part with one key: queries ``[h_q, rope_dim, D]``, the key ``[rope_dim, D]``, and
    what of each head's key it stands for, ``[h_kv, rope_dim, D]``."""
    dim = source.k.shape[1]
    q, k = (_complex(x[:, _turned(dim, rope)]) for x in (source.q, source.k))
    reach = (q @ source.root.half.to(q.dtype)).abs().square().sum(-1)  # [h_q, pairs]
    energy = reach.unflatten(0, (len(k), -1)).sum(1)
    factor, key = shared_key(k, energy, source.root)
    q = factor.conj()[source.kv_head][..., None] * q
    return _real(q), _real(key), _real(factor[..., None] * key)


def _complex(x: Tensor) -> Tensor:
    """``[..., rope_dim, D]`` as ``[..., rope_dim / 2, D]``, which RoPE turns by multiplying."""
    return torch.complex(*x.chunk(2, dim=-2))


def _real(x: Tensor) -> Tensor:
    return torch.cat((x.real, x.imag), dim=-2)
