import pytest
import torch

from ridgeline.roofline import Roofs, copy, gemm, gemm_dtype, read, roofs


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


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_gemm_counts_its_flops(dtype):
    call, flops = gemm(dtype, size=32)
    assert flops == 2 * 32 * 32 * 32
    assert call().shape == (32, 32)
    assert call().dtype == gemm_dtype(dtype)


def test_a_copy_counts_what_it_reads_and_writes():
    call, moved = copy("cpu", nbytes=4096)
    assert moved == 2 * 4096
    target = call()
    assert target.nbytes == 4096
    assert target.unique().numel() > 500  # random: what a GPU moves may depend on the data


def test_a_gpu_multiplies_large_matrices_in_the_dtype_itself(monkeypatch):
    monkeypatch.setattr(roofs, "GPU_GEMM_SIZE", 48)
    monkeypatch.setattr(torch, "randn", lambda *size, device: torch.ones(*size))
    call, flops = gemm(torch.float16, where="cuda")
    assert flops == 2 * 48**3
    assert call().dtype == torch.float16


@pytest.mark.parametrize(("half", "expected"), [(0.01, torch.float32), (0.001, torch.bfloat16)])
def test_the_roof_is_the_dtype_that_torch_multiplies_faster(half, expected, monkeypatch):
    seconds = iter([half, half, half, 0.005, 0.005, 0.005])
    monkeypatch.setattr(roofs, "_seconds", lambda call: next(seconds))
    assert gemm_dtype.__wrapped__(torch.bfloat16) == expected


def test_float32_is_held_against_itself():
    assert gemm_dtype(torch.float32) == torch.float32
