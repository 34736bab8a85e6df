import pytest
import torch

from ridgeline.roofline import Roofs, gemm, read


def test_the_slower_roof_binds():
    roofs = Roofs(memory=10e9, gemm=100e9)
    assert roofs.seconds(nbytes=20e9, flops=10e9) == pytest.approx(2.0)
    assert roofs.binding(nbytes=20e9, flops=10e9) == "memory"
    assert roofs.seconds(nbytes=1e9, flops=300e9) == pytest.approx(3.0)
    assert roofs.binding(nbytes=1e9, flops=300e9) == "gemm"


def test_percent_of_the_binding_roof():
    roofs = Roofs(memory=10e9, gemm=100e9)
    assert roofs.percent(20e9, 10e9, seconds=2.5) == pytest.approx(80.0)
    assert roofs.percent(1e9, 300e9, seconds=6.0) == pytest.approx(50.0)


@pytest.mark.parametrize("n", [1, 63, 4096, 10_001])
def test_reading_takes_any_size_and_changes_nothing(n):
    x = torch.arange(n, dtype=torch.float32)
    read(x)
    assert torch.equal(x, torch.arange(n, dtype=torch.float32))


def test_gemm_counts_its_flops():
    call, flops = gemm(torch.bfloat16, size=32)
    assert flops == 2 * 32 * 32 * 32
    assert call().shape == (32, 32)
    assert call().dtype == torch.bfloat16


def test_float16_is_held_against_float32():
    call, _ = gemm(torch.float16, size=8)
    assert call().dtype == torch.float32
