"""Tile sizes: pure functions, checked without a device."""

import itertools

import pytest
import torch

from ridgeline import attention, paged_decode
from ridgeline.ops.attention.triton import backward, forward
from ridgeline.ops.attention.triton.config import INTERPRETED
from ridgeline.ops.attention.triton.config import config_for as attention_config
from ridgeline.ops.common.device import DecodeConfig, decode_config, pieces, tied_pieces, tuned
from ridgeline.ops.paged_decode.triton import config_for
from ridgeline.testing import paged_case


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
    assert decode_config(90, 128, 576, 512, "bfloat16").block_m == 32
    assert isinstance(decode_config(90, 1, 16, 16, "bfloat16"), DecodeConfig)


class TestTuned:
    """What a benchmark replaces of a tiling."""

    def test_decode(self) -> None:
        case = paged_case(0, dtype=torch.float32, lengths=[30])
        inputs = (case.q, case.k_cache, case.v_cache, case.block_table, case.cache_seqlens)
        before = config_for(*inputs[:2], 16)
        with tuned("decode", block_n=16, prefetch=2):
            assert config_for(*inputs[:2], 16).prefetch == 2
            with tuned("decode", prefetch=4):
                inner = config_for(*inputs[:2], 16)
            assert (inner.block_n, inner.prefetch) == (16, 4)
            got = paged_decode(*inputs, **case.options(), impl="triton")
        assert config_for(*inputs[:2], 16) == before
        torch.testing.assert_close(got, paged_decode(*inputs, **case.options(), impl="reference"))

    def test_attention_and_its_gradients(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """The public function and autograd take what is chosen for each kernel."""
        tilings = {}

        def recorded(*args):
            tilings[args[-1]] = attention_config(*args)
            return tilings[args[-1]]

        for module in (forward, backward):
            monkeypatch.setattr(module, "config_for", recorded)
        q = torch.randn(1, 20, 1, 16, requires_grad=True)
        with tuned("forward", block_m=16), tuned("dq", block_n=64):
            attention(q, q, q, impl="triton").sum().backward()
        assert tilings["forward"].block_m == 16
        assert tilings["dq"].block_n == 64
        assert tilings["dkdv"] == INTERPRETED

    def test_it_ends_with_the_block_whatever_happens(self) -> None:
        q = torch.zeros(1, 1, 1, 16)
        with pytest.raises(RuntimeError), tuned("forward", num_warps=2):
            raise RuntimeError
        assert attention_config(q, q, q, "forward") == INTERPRETED

    def test_refused(self) -> None:
        with pytest.raises(ValueError, match="kernel: expected one of decode, hopper_decode"):
            tuned("backward", block_m=16).__enter__()
        with pytest.raises(ValueError, match=r"block_n: expected a power of two .* got 48"):
            tuned("decode", block_n=48).__enter__()
        q = torch.zeros(1, 1, 1, 16)
        with tuned("forward", prefetch=1), pytest.raises(TypeError, match="prefetch"):
            attention(q, q, q, impl="triton")
