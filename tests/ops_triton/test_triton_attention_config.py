"""The tilings of ``attention`` that are chosen, over all they may be asked for."""

from dataclasses import FrozenInstanceError
from itertools import product

import pytest

from ridgeline.ops.attention.triton.config import AttentionConfig, fit_rows, tiling
from ridgeline.ops.common.device import pieces

ARCHS = (80, 86, 89, 90, 100, 120)
DIMS = (1, 16, 64, 80, 96, 128, 192, 256)
# Shared memory of one program, in KiB.
SHARED = {80: 163, 86: 99, 89: 99, 90: 227, 100: 227, 120: 99}


@pytest.mark.parametrize("kernel", ["forward", "dkdv", "dq"])
@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32"])
@pytest.mark.parametrize("arch", ARCHS)
def test_every_tiling_fits(arch: int, dtype: str, kernel: str) -> None:
    for dim, value_dim in product(DIMS, DIMS):
        config = tiling(arch, dim, value_dim, dtype, kernel)
        assert {config.block_m, config.block_n, config.num_warps} <= {4, 8, 16, 32, 64, 128}
        assert min(config.block_m, config.block_n) >= 16
        # What stays, and what each stage loads.
        k, v = sum(pieces(dim)), sum(pieces(value_dim))
        size = 4 if dtype == "float32" else 2
        rows, keys = config.block_m * size, config.block_n * size
        kept = {"forward": rows * k, "dkdv": keys * (k + v), "dq": rows * (k + v)}[kernel]
        loaded = (rows if kernel == "dkdv" else keys) * (k + v)
        assert kept + config.num_stages * loaded <= SHARED[arch] << 10
        # Accumulators leave a thread half its 255 registers.
        columns = {"forward": v, "dkdv": k + v, "dq": k}[kernel]
        height = config.block_n if kernel == "dkdv" else config.block_m
        assert height * columns <= 128 * 32 * config.num_warps


def test_short_sequences_take_short_tiles() -> None:
    config = AttentionConfig(128, 64, 8, 2)
    assert fit_rows(config, 3, "forward") == AttentionConfig(16, 64, 4, 2)
    assert fit_rows(config, 100, "forward") == config
    assert fit_rows(config, 17, "dkdv") == AttentionConfig(32, 64, 8, 2)
    low = AttentionConfig(32, 32, 8, 1)  # by choice: its warps share out columns
    assert fit_rows(low, 40, "dq") == low


def test_a_tiling_is_frozen() -> None:
    with pytest.raises(FrozenInstanceError):
        tiling(90, 128, 128, "bfloat16", "forward").block_m = 64


def test_an_unknown_kernel_is_refused() -> None:
    with pytest.raises(ValueError, match="expected forward, dkdv or dq"):
        tiling(90, 128, 128, "bfloat16", "backward")
