"""Tilings and what is supported: pure functions, checked without a device."""

from itertools import product

import pytest
import torch

import ridgeline
from ridgeline.ops.common.device import tuned
from ridgeline.ops.common.hopper_config import (
    HopperConfig,
    decode_config,
    fixed_bytes,
    load_of,
    tile_bytes,
    unsupported,
)

LIMIT = 227 << 10


@pytest.mark.parametrize("rows", [1, 8, 16, 33, 64, 200])
@pytest.mark.parametrize("tied", [True, False])
def test_every_tiling_fits(rows: int, tied: bool) -> None:
    for kv_heads, dim, rope in product((1, 2, 3, 8), (16, 64, 96, 128, 256), (0, 16, 64)):
        c = decode_config(rows, kv_heads, dim, dim, rope if tied else 0, dim, tied=tied)
        assert fixed_bytes(c) + c.stages * tile_bytes(c, tied) <= LIMIT
        assert c.stages >= 2
        assert c.stages % c.consumers == 0
        assert kv_heads % c.heads == 0
        assert c.heads == 1 or rows <= c.block_m
        assert c.heads * c.v_width * c.block_m <= 128 * 128 * c.warpgroups
        assert c.block_m >= min(rows, 64)
        # Of a thread of the first of two consumers: what is left, more than another's, at most 256.
        first = 504 - c.consumer_regs - c.producer_regs
        assert c.consumer_regs <= first <= 256


def test_scales_and_pieces_of_values_are_counted() -> None:
    plain = decode_config(16, 1, 512, 512, 64, 512, tied=True)
    scaled = decode_config(16, 1, 512, 512, 64, 512, tied=True, k_blocks=4)
    assert (scaled.scales, scaled.pieces) == (4, 4)
    assert tile_bytes(scaled, True) - tile_bytes(plain, True) == 4 * 4 * 64
    apart = decode_config(16, 1, 128, 128, 0, 128, tied=False, k_blocks=1, v_blocks=2)
    assert (apart.scales, apart.pieces) == (3, 2)
    for c, tied in ((scaled, True), (apart, False)):
        assert fixed_bytes(c) + c.stages * tile_bytes(c, tied) <= LIMIT


@pytest.mark.parametrize(
    ("rows", "heads", "dims", "expected"),
    [
        (16, 1, (512, 64, 512), (16, 1, 2)),  # MLA, 16 heads
        (64, 1, (512, 64, 512), (64, 1, 1)),
        (8, 2, (256, 64, 256), (8, 2, 2)),  # GLA-2: both heads share the RoPE key
        (4, 8, (64, 64, 128), (8, 4, 2)),  # GTA 32/8
    ],
)
def test_layouts(rows: int, heads: int, dims: tuple[int, int, int], expected: tuple) -> None:
    nope, rope, state = dims
    c = decode_config(rows, heads, nope, state, rope, state, tied=True)
    assert (c.block_m, c.heads, c.consumers) == expected
    assert c.transposed is (c.block_m < 64)


def test_benchmarks_choose_the_rows_and_with_them_the_side() -> None:
    """What a tiling needs for other rows is chosen anew."""
    shape = (16, 1, 512, 512, 64, 512)
    plain = decode_config(*shape, tied=True)
    with tuned("hopper_decode", block_m=64, prefetch=2):
        c = decode_config(*shape, tied=True)
    assert plain.transposed
    assert not c.transposed
    assert (c.block_m, c.consumers, c.prefetch) == (64, 1, 2)
    assert fixed_bytes(c) + c.stages * tile_bytes(c, True) <= LIMIT
    with tuned("hopper_decode", block_m=128), pytest.raises(ValueError, match="no tiling"):
        decode_config(*shape, tied=True)
    assert decode_config(*shape, tied=True) == plain


def cache(*shape: int) -> torch.Tensor:
    return torch.zeros(shape, dtype=torch.bfloat16)


@pytest.mark.parametrize(
    ("x", "page_size", "expected"),
    [
        (cache(3, 64, 2, 64), 64, "tma"),
        (cache(3, 256, 2, 64), 256, "tma"),
        (cache(3, 16, 2, 64), 16, "tma"),
        (cache(3, 4, 2, 64), 4, "cp.async"),
        (cache(3, 96, 2, 64), 96, "cp.async"),
        (cache(3, 64, 2, 65)[..., :64], 64, "load"),
        (cache(3, 64, 2, 17), 64, "load"),
        (cache(3, 64, 2, 80)[..., 4:68], 64, "load"),
        (cache(1, 64, 2, 64).expand(3, 64, 2, 64), 64, "cp.async"),
    ],
)
def test_how_pages_are_read(x: torch.Tensor, page_size: int, expected: str) -> None:
    assert load_of(page_size, [x]) == (expected, 1 if expected == "load" else 8)


def test_reasons() -> None:
    q = torch.zeros(1, 1, 1, 64, dtype=torch.bfloat16)
    config = HopperConfig(8, 1, 2, 1, 1, 64, 64, 0, 64)
    assert "runs on a Hopper GPU" in unsupported(q, lambda: config)
    with pytest.raises(ValueError, match="no tiling of 8 rows"):
        decode_config(8, 1, 1024, 1024, 0, 1024, tied=False)
    for blocks in ({"k_blocks": 8}, {"v_blocks": 8}):
        with pytest.raises(
            ValueError, match="one for 64 or 128 or 256 of its columns, got one for 16"
        ):
            decode_config(8, 1, 128, 128, 0, 128, tied=False, **blocks)
    table, lengths = torch.zeros(1, 1, dtype=torch.int32), torch.zeros(1, dtype=torch.int32)
    pages = cache(1, 8, 1, 64)
    with pytest.raises(ValueError, match="impl='hopper': tensors are on cpu"):
        ridgeline.paged_decode(q, pages, pages, table, lengths, impl="hopper")
