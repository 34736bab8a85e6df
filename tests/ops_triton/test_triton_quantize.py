"""``fp8.quantize`` by Triton gives the reference's scales and values, bit for bit."""

import pytest
import torch

from ridgeline.ops.attention import fp8

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
STARTS = torch.tensor([0, 5, 5, 39], dtype=torch.int32, device=DEVICE)


def rows(*shape: int, dtype: torch.dtype = torch.float16, seed: int = 0) -> torch.Tensor:
    """Magnitudes that differ between rows by orders, with gaps between heads."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(*shape[:-1], shape[-1] + 3, generator=generator)
    size = torch.randn(*shape[:-1], 1, generator=generator)
    return (x * 4**size).to(dtype)[..., : shape[-1]].to(DEVICE)


def angles(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    turns = torch.arange(x[..., 0, ::2].numel(), device=DEVICE).float().view(x[..., 0, ::2].shape)
    return turns.cos(), turns.sin()


def both(x: torch.Tensor, per, **options) -> None:
    want, want_scale = fp8.quantize(x, per, **options, impl="reference")
    got, scale = fp8.quantize(x, per, **options, impl="triton")
    assert got.dtype == want.dtype
    if DEVICE == "cpu":
        assert torch.equal(scale, want_scale)
        assert torch.equal(got.view(torch.uint8), want.view(torch.uint8))
    else:  # fused multiply-adds: within one rounding
        torch.testing.assert_close(scale, want_scale, rtol=1e-6, atol=0)
        torch.testing.assert_close(got.float(), want.float(), rtol=2**-3, atol=2**-9)


@pytest.mark.parametrize("turned", [False, True], ids=["", "rope"])
@pytest.mark.parametrize("seed", [None, 3], ids=["", "rotated"])
@pytest.mark.parametrize("per", [16, 64, "tensor", "head", "sequence"])
def test_batches(per, seed: int | None, turned: bool) -> None:
    x = rows(2, 39, 3, 32)
    both(x, per, seed=seed, rope=angles(x) if turned else None)


@pytest.mark.parametrize("per", ["tensor", "head", "sequence"])
def test_packed(per) -> None:
    x = rows(39, 2, 16, dtype=torch.float32)
    both(x, per, seed=1, rope=angles(x), cu_seqlens=STARTS)


@pytest.mark.parametrize("dim", [1, 2, 128, 256])
def test_every_power_of_two(dim: int) -> None:
    both(rows(1, 20, 1, dim), 32, seed=5)


def test_widths_that_are_none_and_blocks_beyond_registers() -> None:
    both(rows(1, 9, 2, 24), 8)
    both(rows(1, 300, 1, 128), 512, seed=0)


def test_zeros_extremes_and_nothing() -> None:
    x = torch.zeros(1, 20, 1, 16, device=DEVICE)
    x[0, 9] = 1e38
    x[0, 18, 0, 3] = 1e-44
    both(x, 8)
    both(rows(2, 0, 3, 16), 16)
    both(rows(0, 2, 16), "head")


def test_what_is_not_finite_is_told() -> None:
    for value in (torch.nan, torch.inf):
        x = rows(1, 20, 1, 16)
        x[0, 9, 0, 3] = value
        if DEVICE == "cpu":
            with pytest.raises(ValueError, match="x: expected finite values"):
                fp8.quantize(x, 8, impl="triton")
        else:
            values, scale = fp8.quantize(x, 8, impl="triton")
            lost = fp8.dequantize(values, scale).isnan()
            assert lost[0, 8:16].all()
            assert not lost[0, :8].any()


def test_reasons() -> None:
    x = torch.zeros(1, 4, 1, 8, dtype=torch.float64, device=DEVICE)
    with pytest.raises(ValueError, match="impl='triton': x is bfloat16, float16 or float32"):
        fp8.quantize(x, 4, impl="triton")
    with pytest.raises(ValueError, match="impl='hopper': not built"):
        fp8.quantize(x, 4, impl="hopper")
    with pytest.raises(ValueError, match=r"rope\[0\]: expected shape"):
        fp8.quantize(x.float(), 4, rope=(x[0, 0], x[0, 0]))
    with pytest.raises(TypeError, match="rope: expected a pair"):
        fp8.quantize(x.float(), 4, rope=x)
