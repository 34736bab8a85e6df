"""Tile sizes: pure functions, checked without a device."""

import itertools

import pytest

from ridgeline.ops.common.device import DecodeConfig, decode_config, pieces, tied_pieces


@pytest.mark.parametrize(
    ("width", "tiles"),
    [
        *((1, (16, 0)), (16, (16, 0)), (17, (32, 0)), (40, (32, 16)), (64, (64, 0))),
        *((80, (64, 16)), (100, (128, 0)), (192, (128, 64)), (576, (512, 64)), (1024, (1024, 0))),
    ],
)
def test_pieces(width: int, tiles: tuple[int, int]) -> None:
    assert pieces(width) == tiles


def test_pieces_cover_every_width_with_little_padding() -> None:
    for width in range(1, 1025):
        first, rest = pieces(width)
        assert width <= first + rest <= max(16, 2 * width)
        assert all(n == 0 or (n >= 16 and n & (n - 1) == 0) for n in (first, rest))


@pytest.mark.parametrize(
    ("nope", "state", "tiles"),
    [
        *((64, 128, (64, 64)), (512, 512, (512, 0)), (32, 64, (32, 32))),
        *((16, 128, (128, 0)), (20, 40, (32, 16)), (1, 17, (32, 0))),
    ],
)
def test_a_state_is_cut_after_its_key(nope: int, state: int, tiles: tuple[int, int]) -> None:
    assert tied_pieces(nope, state) == tiles


def test_configs_hold_what_a_kernel_needs() -> None:
    widths, dtypes = (16, 128, 320, 576, 1088), ("bfloat16", "float32", "float8_e4m3")
    for arch, rows, width, dtype in itertools.product(
        (80, 86, 90, 100), (1, 16, 200), widths, dtypes
    ):
        config = decode_config(arch, rows, width, width, dtype)
        assert 16 <= config.block_m <= 64
        assert 16 <= config.block_n <= 128
        assert config.num_warps in (4, 8)
        assert config.prefetch == 0


def test_rows_of_one_head_fill_the_tile() -> None:
    assert decode_config(90, 4, 256, 128, "bfloat16").block_m == 16
    assert decode_config(90, 33, 256, 128, "bfloat16").block_m == 64
    assert isinstance(decode_config(90, 1, 16, 16, "bfloat16"), DecodeConfig)
