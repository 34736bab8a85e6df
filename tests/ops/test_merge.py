"""``merge``: its gradient, its edges, its errors. The fuzz against the oracle is in test_fuzz."""

import pytest
import torch

from ridgeline import merge


def parts(*rows: int, dim: int = 4, count: int = 3, dtype=torch.float64):
    generator = torch.Generator().manual_seed(0)
    outs = torch.randn(count, *rows, dim, generator=generator, dtype=dtype)
    return outs, torch.randn(count, *rows, generator=generator, dtype=dtype) * 3


def test_gradient() -> None:
    outs, lses = parts(2, 3)
    assert torch.autograd.gradcheck(merge, (outs.requires_grad_(), lses.requires_grad_()))


def test_gradient_is_finite_where_parts_or_rows_saw_nothing() -> None:
    outs, lses = parts(2, 3)
    lses[0, 0] = -torch.inf
    lses[:, 1, 2] = -torch.inf
    outs[lses == -torch.inf] = torch.nan
    out, lse = merge(outs.requires_grad_(), lses.requires_grad_())
    assert out.isfinite().all()
    assert (out[1, 2] == 0).all()
    assert lse[1, 2] == -torch.inf
    grads = torch.autograd.grad(out.sin().sum() + lse[lse > -torch.inf].sum(), (outs, lses))
    for grad in grads:
        assert grad.isfinite().all()
    assert (grads[0][0, 0] == 0).all()


def test_one_part_is_itself() -> None:
    outs, lses = parts(5, count=1, dtype=torch.float32)
    out, lse = merge(outs, lses * 1e4)
    assert torch.equal(out, outs[0])
    assert torch.equal(lse, lses[0] * 1e4)


def test_takes_sequences_and_any_strides() -> None:
    outs, lses = parts(3, 5, dtype=torch.float32)
    want = merge(outs, lses)
    turned = merge(outs.transpose(1, 2).contiguous().transpose(1, 2), lses)
    for got in (merge(list(outs), tuple(lses)), turned):
        assert all(torch.equal(x, y) for x, y in zip(got, want, strict=True))
    assert turned[0].is_contiguous()


def test_merging_in_two_steps_is_merging_in_one() -> None:
    outs, lses = parts(7, count=4)
    first, second = merge(outs[:2], lses[:2]), merge(outs[2:], lses[2:])
    for got, want in zip(merge(*zip(first, second, strict=True)), merge(outs, lses), strict=True):
        torch.testing.assert_close(got, want, rtol=1e-13, atol=1e-14)


@pytest.mark.parametrize(
    ("outs", "lses", "error", "message"),
    [
        (3, torch.zeros(2), TypeError, "outs: expected a tensor or a sequence"),
        ([], [], ValueError, "outs: expected at least one part"),
        ([1.0], [2.0], TypeError, r"outs\[0\]: expected a torch.Tensor"),
        (torch.zeros(0, 2), torch.zeros(0), ValueError, "outs: expected .* S >= 1"),
        (torch.tensor(1.0), torch.tensor(1.0), ValueError, "outs: expected"),
        (torch.zeros(3), torch.tensor(1.0), ValueError, "outs: expected"),
        (torch.zeros(2, 3), torch.zeros(3), ValueError, r"lses: expected shape \[2\]"),
        (torch.zeros(2, 3), torch.zeros(2, 3), ValueError, r"lses: expected shape \[2\]"),
        (torch.zeros(2, 3).int(), torch.zeros(2), TypeError, "outs: expected dtype"),
        (torch.zeros(2, 3), torch.zeros(2).half(), TypeError, "lses: expected dtype"),
        (torch.zeros(2, 3), torch.zeros(2, device="meta"), ValueError, "lses: expected device"),
        (
            [torch.zeros(3), torch.zeros(4)],
            torch.zeros(2),
            ValueError,
            r"outs\[1\]: expected shape",
        ),
        ([torch.zeros(3), torch.zeros(3).half()], torch.zeros(2), TypeError, r"outs\[1\]: .*dtype"),
    ],
)
def test_bad_input(outs, lses, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        merge(outs, lses)
