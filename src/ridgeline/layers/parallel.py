"""Tensor parallelism: the part of a layer that one rank holds."""

from typing import TypeVar

import torch.distributed as dist

from ridgeline.layers.base import AttentionLayer, RankHeads
from ridgeline.ops.common import check

Layer = TypeVar("Layer", bound=AttentionLayer)


def shard(layer: Layer, rank: int, world: int, group: dist.ProcessGroup | None = None) -> Layer:
    """The layer of tensor-parallel rank ``rank`` of ``world``, with a copy of its weights.

    Each rank computes a contiguous part of the query heads and of the output projection, and its
    forward sums the output over the ranks. Key/value or latent heads are split contiguously; with
    more ranks than such heads, ``world / heads`` ranks in a row hold the same one. The RoPE key
    projection and its cache, and the down-projection and norm of a low-rank query, are whole on
    every rank. ``shard(...).cache_spec()`` equals ``layer.cache_spec(tp=world)``.

    Args:
        layer: a whole layer. It is not changed.
        rank, world: this rank, and how many there are. ``world`` divides the query heads, and
            divides the key/value or latent heads or is a multiple of them.
        group: the process group that sums the outputs; ``None`` is the default group. It is used
            by the forward only, and only if ``world`` > 1.

    Returns:
        A layer of the same class for inference: its parameters require no gradient.

    Raises:
        TypeError, ValueError: ``rank`` or ``world`` does not fit, or ``layer`` is a shard already.
    """
    if layer.world != 1:
        raise ValueError(f"layer: expected a whole layer, got a shard of {layer.world} ranks")
    check.count("world", world, minimum=1)
    if check.count("rank", rank) >= world:
        raise ValueError(f"rank: expected 0 <= rank < world ({world}), got {rank}")
    check.divides("world", world, "num_heads", layer.num_heads)
    if layer.num_state_heads % world and world % layer.num_state_heads:
        raise ValueError(
            f"world: expected a divisor or a multiple of the layer's {layer.num_state_heads} "
            f"key/value or latent heads, got {world}"
        )
    queries, states = layer.num_heads // world, max(layer.num_state_heads // world, 1)
    first_state = rank * layer.num_state_heads // world
    heads = RankHeads(
        query=slice(rank * queries, (rank + 1) * queries),
        state=slice(first_state, first_state + states),
    )
    sizes, weights = layer.on_rank(heads)
    local = type(layer)(layer.hidden_size, queries, states, layer.head_dim, device="meta", **sizes)
    # Copies: a view would keep the whole weight in memory.
    local.load_state_dict({name: w.detach().clone() for name, w in weights.items()}, assign=True)
    local.requires_grad_(False).train(layer.training)
    local.world, local.group = world, group
    return local
