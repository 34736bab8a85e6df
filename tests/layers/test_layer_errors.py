"""Impossible sizes and inputs name the argument."""

import pytest
import torch
from layer_cases import HIDDEN, inputs, make

from ridgeline.layers import (
    GroupedLatentAttention,
    GroupedQueryAttention,
    GroupedTiedAttention,
    RotaryEmbedding,
    shard,
)

SIZES = [
    (GroupedQueryAttention, (0, 4, 2), {}, "hidden_size"),
    (GroupedQueryAttention, (64, 0, 2), {}, "num_heads"),
    (GroupedQueryAttention, (64, 4, 3), {}, "num_kv_heads"),
    (GroupedQueryAttention, (64, 4, 0), {}, "num_kv_heads"),
    (GroupedQueryAttention, (66, 4, 2), {}, "num_heads"),
    (GroupedQueryAttention, (64, 4, 2, 7), {}, "head_dim"),
    (GroupedTiedAttention, (64, 4, 8), {}, "num_kv_heads"),
    (GroupedTiedAttention, (64, 4, 2), {"rope_dim": 5}, "rope_dim"),
    (GroupedTiedAttention, (64, 4, 2), {"rope_dim": 16}, "rope_dim"),
    (GroupedTiedAttention, (64, 4, 2), {"rope_dim": 0}, "rope_dim"),
    (GroupedTiedAttention, (64, 4, 2, 6), {}, "rope_dim"),
    (GroupedLatentAttention, (64, 4, 3), {}, "num_latent_heads"),
    (GroupedLatentAttention, (64, 4, 2), {"latent_dim": 0}, "latent_dim"),
    (GroupedLatentAttention, (64, 4, 2), {"rope_dim": 3}, "rope_dim"),
    (GroupedLatentAttention, (64, 4, 2), {"q_rank": 0}, "q_rank"),
    (GroupedLatentAttention, (64, 4, 2), {"eps": float("nan")}, "eps"),
    (GroupedLatentAttention, (64, 4, 2), {"eps": -1.0}, "eps"),
]


@pytest.mark.parametrize(
    ("cls", "args", "kwargs", "name"),
    SIZES,
    ids=[f"{c.__name__}{a}{k or ''}" for c, a, k, _ in SIZES],
)
def test_impossible_sizes_name_the_argument(cls, args, kwargs, name):
    with pytest.raises(ValueError, match=f"^{name}: "):
        cls(*args, **kwargs)


@pytest.mark.parametrize("value", [2.0, True, "2", None])
def test_sizes_that_are_no_integers_are_type_errors(value):
    with pytest.raises(TypeError, match=r"^num_kv_heads: expected an int"):
        GroupedTiedAttention(64, 4, value)


def test_inputs_of_a_wrong_shape_name_the_argument(variant):
    layer, x = make(variant), inputs(2, 3)
    good = RotaryEmbedding(layer.rope_dim)(torch.arange(3).expand(2, 3))
    wide = RotaryEmbedding(layer.rope_dim + 2)(torch.arange(3).expand(2, 3))
    with pytest.raises(ValueError, match=rf"^x: expected shape \[B, L, {HIDDEN}\]"):
        layer(x[..., 1:], good)
    with pytest.raises(ValueError, match=r"^rotary\[0\]: expected shape"):
        layer(x, (wide[0], good[1]))
    with pytest.raises(ValueError, match=r"^rotary\[1\]: expected shape"):
        layer(x, (good[0], good[1][:, :2]))


@pytest.mark.parametrize(
    ("rank", "world", "match"),
    [
        (0, 3, r"^world: expected a divisor of num_heads \(8\), got 3"),
        (0, 16, r"^world: expected a divisor of num_heads"),
        (0, 0, r"^world: expected .*, got 0"),
        (2, 2, r"^rank: expected 0 <= rank < world \(2\), got 2"),
        (-1, 2, r"^rank: expected .*, got -1"),
    ],
)
def test_impossible_ranks_name_the_argument(variant, rank, world, match):
    with pytest.raises(ValueError, match=match):
        shard(make(variant), rank, world)


def test_heads_that_do_not_split_evenly_over_the_ranks_are_refused():
    with pytest.raises(ValueError, match=r"^world: expected a divisor or a multiple of .* 4 key"):
        shard(GroupedQueryAttention(48, 12, 4, 4), 0, 6)


def test_a_shard_is_not_sharded_again(variant):
    with pytest.raises(ValueError, match=r"^layer: expected a whole layer, got a shard of 2"):
        shard(shard(make(variant), 0, 2), 0, 2)
