"""The rotation is orthonormal, the same for q and k, and what spreads their outliers."""

import pytest
import torch

from ridgeline.ops.attention import fp8

DIMS = [1, 2, 4, 16, 64, 128, 256, 512]


def normal(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def sylvester(dim: int) -> torch.Tensor:
    """The Hadamard matrix by its definition: the sign of (i, j) is the parity of i & j."""
    return torch.tensor(
        [[(-1.0) ** (i & j).bit_count() for j in range(dim)] for i in range(dim)],
        dtype=torch.float64,
    )


@pytest.mark.parametrize("dim", DIMS)
def test_it_is_signs_times_hadamard(dim: int) -> None:
    matrix = fp8.incoherent(torch.eye(dim, dtype=torch.float64), seed=3)
    signs = matrix[:, 0].sign()
    want = signs[:, None] * sylvester(dim) / dim**0.5
    torch.testing.assert_close(matrix, want, rtol=0, atol=1e-15)


@pytest.mark.parametrize("dim", DIMS)
def test_it_is_orthonormal_and_its_inverse_turns_back(dim: int) -> None:
    matrix = fp8.incoherent(torch.eye(dim, dtype=torch.float64), seed=5)
    eye = torch.eye(dim, dtype=torch.float64)
    torch.testing.assert_close(matrix @ matrix.T, eye, rtol=0, atol=1e-14)
    x = normal(2, 3, dim)
    turned = fp8.incoherent(x, seed=5)
    torch.testing.assert_close(turned.norm(dim=-1), x.norm(dim=-1), rtol=1e-14, atol=0)
    back = fp8.incoherent(turned, seed=5, inverse=True)
    torch.testing.assert_close(back, x, rtol=0, atol=1e-14)


@pytest.mark.parametrize("dim", DIMS)
def test_products_of_q_and_k_stay(dim: int) -> None:
    q, k = normal(7, dim), normal(9, dim, seed=1)
    for seed in (0, 1, 12345):
        turned = fp8.incoherent(q, seed=seed) @ fp8.incoherent(k, seed=seed).T
        torch.testing.assert_close(turned, q @ k.T, rtol=0, atol=1e-13)


def test_slices_of_a_head_stay_too() -> None:
    """What the error message says to do for 192."""
    q, k = normal(7, 192), normal(9, 192, seed=1)
    q2, k2 = (
        torch.cat([fp8.incoherent(part) for part in x.split([128, 64], -1)], -1) for x in (q, k)
    )
    torch.testing.assert_close(q2 @ k2.T, q @ k.T, rtol=0, atol=1e-13)


def test_seeds_draw_other_signs() -> None:
    eye = torch.eye(64, dtype=torch.float64)
    signs = {seed: fp8.incoherent(eye, seed=seed)[:, 0].sign() for seed in range(20)}
    assert len({tuple(s.tolist()) for s in signs.values()}) == 20
    assert torch.equal(fp8.incoherent(eye, seed=7), fp8.incoherent(eye, seed=7))
    mean = torch.stack(list(signs.values())).mean()
    assert abs(mean) < 5 / (20 * 64) ** 0.5


def test_the_state_of_torch_is_left_alone() -> None:
    torch.manual_seed(1)
    before = torch.get_rng_state()
    fp8.incoherent(torch.ones(8), seed=2)
    assert torch.equal(torch.get_rng_state(), before)


def test_different_seeds_change_the_products() -> None:
    q, k = normal(7, 64), normal(9, 64, seed=1)
    assert not torch.allclose(fp8.incoherent(q, seed=0) @ fp8.incoherent(k, seed=1).T, q @ k.T)


@pytest.mark.parametrize("dim", [16, 128])
def test_an_outlier_is_spread_evenly(dim: int) -> None:
    x = torch.zeros(dim, dtype=torch.float64)
    x[dim // 3] = 100.0
    turned = fp8.incoherent(x)
    torch.testing.assert_close(turned.abs(), torch.full_like(x, 100.0 / dim**0.5))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_result_is_rounded_once(dtype: torch.dtype) -> None:
    x = normal(5, 128).to(dtype)
    exact = fp8.incoherent(x.double())
    turned = fp8.incoherent(x)
    assert turned.dtype == dtype
    eps = torch.finfo(dtype).eps
    assert ((turned.double() - exact).abs() <= eps / 2 * exact.abs() + 1e-6).all()
    wide = fp8.incoherent(x, dtype=torch.float32)
    assert wide.dtype == torch.float32
    assert (wide.double() - exact).abs().max() < 1e-5
    assert torch.equal(wide.to(dtype), turned)


def test_gradient() -> None:
    x = normal(3, 8).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: fp8.incoherent(x, seed=4), x)
    assert torch.autograd.gradcheck(lambda x: fp8.incoherent(x, seed=4, inverse=True), x)


def test_any_strides_and_no_rows() -> None:
    x = normal(16, 5, 3).permute(1, 2, 0)
    assert torch.equal(fp8.incoherent(x), fp8.incoherent(x.contiguous()))
    assert fp8.incoherent(torch.zeros(0, 5, 16)).shape == (0, 5, 16)


@pytest.mark.parametrize(
    ("x", "given", "error", "message"),
    [
        (3, {}, TypeError, "x: expected a torch.Tensor"),
        (torch.ones(4).int(), {}, TypeError, "x: expected dtype"),
        (torch.ones(4).to(torch.float8_e4m3fn), {}, TypeError, "x: expected dtype"),
        (torch.tensor(1.0), {}, ValueError, "x: expected a last dim that is a power of two"),
        (torch.ones(3, 0), {}, ValueError, "power of two, got 0"),
        (torch.ones(3, 96), {}, ValueError, "power of two, got 96; rotate slices"),
        (torch.ones(3, 192), {}, ValueError, "such as 128 and 64 of 192"),
        (torch.ones(4), {"seed": 1.0}, TypeError, "seed: expected an int"),
        (torch.ones(4), {"seed": -1}, ValueError, "seed: expected at least 0"),
        (torch.ones(4), {"inverse": 1}, TypeError, "inverse: expected a bool"),
        (torch.ones(4), {"dtype": torch.int8}, TypeError, "dtype: expected one of"),
        (torch.ones(4), {"dtype": torch.float8_e4m3fn}, TypeError, "dtype: expected one of"),
    ],
)
def test_bad_input(x, given, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        fp8.incoherent(x, **given)
