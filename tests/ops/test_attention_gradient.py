"""The gradient of ``attention``: by finite differences, by subsets, through odd strides."""

from itertools import product

import pytest
import torch
from torch import Tensor

from ridgeline import attention, subtree_end
from ridgeline.testing import attention_case, run

INT32 = torch.int32
OPTIONS = {
    "full": {},
    "causal": {"causal": True},
    "window": {"window": (2, 1)},
    "softcap": {"softcap": 0.7, "causal": True},
    "scale": {"softmax_scale": -0.4},
    "tree": {"subtree_end": subtree_end.of_pair(3, 1, 2).subtree_end.expand(2, -1)},
    "tree, window and softcap": {
        "subtree_end": subtree_end.of_tree([-1, 0, 1, 0], [2, 1, 2, 2]).subtree_end.expand(2, -1),
        "window": (3, None),
        "softcap": 2.0,
    },
}


def inputs(*lead: tuple[int, ...], dtype=torch.float64, heads=(4, 2), dims=(3, 2)) -> list[Tensor]:
    """q, k and v with ``lead`` dims for queries and for keys."""
    generator = torch.Generator().manual_seed(0)
    shapes = [(*lead[0], heads[0], dims[0]), (*lead[-1], heads[1], dims[0])]
    shapes.append((*lead[-1], heads[1], dims[1]))
    return [torch.randn(s, generator=generator, dtype=dtype).requires_grad_() for s in shapes]


@pytest.mark.parametrize("queries", [7, 4, 9])
@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_finite_differences(options: dict, queries: int) -> None:
    """Through ``out`` and, where a row sees a key, through ``lse``."""

    def function(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        out, lse = attention(q, k, v, **options, return_lse=True)
        return out, lse.masked_fill(lse == -torch.inf, 0.0)

    assert torch.autograd.gradcheck(function, inputs((2, queries), (2, 7)), fast_mode=True)


def test_finite_differences_of_packed_sequences() -> None:
    def function(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        starts = torch.tensor([0, 3, 3, 8], dtype=INT32), torch.tensor([0, 4, 5, 9], dtype=INT32)
        packed = {"cu_seqlens_q": starts[0], "cu_seqlens_k": starts[1]}
        out, lse = attention(q, k, v, causal=True, **packed, return_lse=True)
        return out, lse.masked_fill(lse == -torch.inf, 0.0)

    assert torch.autograd.gradcheck(function, inputs((8,), (9,)))


@pytest.mark.parametrize("through", ["out", "lse", "both"])
@pytest.mark.parametrize("needed", list(product([False, True], repeat=3)), ids=str)
def test_subsets(needed: tuple[bool, ...], through: str, attention_name: str) -> None:
    """A gradient is the same whichever others are asked for; those that are not are ``None``."""

    def gradients(required: tuple[bool, ...]) -> list[Tensor | None]:
        leaves = inputs((2, 5), (2, 7), dtype=torch.float32, dims=(16, 8))
        for x, need in zip(leaves, required, strict=True):
            x.requires_grad_(need)
        out, lse = attention(*leaves, causal=True, return_lse=True, impl=attention_name)
        assert out.requires_grad == lse.requires_grad == any(required)
        loss = {"out": out.sin().sum(), "lse": lse.sin().sum()}
        loss["both"] = loss["out"] + loss["lse"]
        if any(required):
            loss[through].backward()
        return [x.grad for x in leaves]

    every = gradients((True, True, True))
    for got, want, need in zip(gradients(needed), every, needed, strict=True):
        if need:
            assert torch.equal(got, want)
        else:
            assert got is None
    assert through != "lse" or (every[2] == 0).all()


@pytest.mark.parametrize("kind", ["expanded", "every other", "permuted"])
def test_upstream_strides(kind: str, attention_name: str) -> None:
    """``dout`` and ``dlse`` as autograd may hand them over, the last dim not contiguous."""
    results = []
    for odd in (False, True):
        leaves = inputs((2, 5), (2, 7), dtype=torch.float32, dims=(16, 8))
        out, lse = attention(*leaves, return_lse=True, impl=attention_name)
        grads = []
        for x in (out, lse):
            if kind == "expanded":
                grad = torch.tensor(0.7).expand(x.shape)
            elif kind == "every other":
                grad = torch.linspace(-1, 1, 2 * x.numel()).view(*x.shape[:-1], -1)[..., ::2]
            else:
                grad = torch.linspace(-1, 1, x.numel()).view(*x.shape[::-1])
                grad = grad.permute(*reversed(range(x.dim())))
            assert grad.stride(-1) != 1
            grads.append(grad if odd else grad.contiguous())
        results.append(torch.autograd.grad((out, lse), leaves, grads))
    assert all(torch.equal(x, y) for x, y in zip(*results, strict=True))


def test_gradients_are_laid_out_plainly(attention_impl: str) -> None:
    case = attention_case(3, lengths=[(9, 9)] * 2, packed=False, strides=True, dtype=torch.float32)
    for x, grad in zip((case.q, case.k, case.v), run(case, attention_impl)[2:], strict=True):
        assert grad.shape == x.shape
        assert grad.dtype == x.dtype
        assert grad.is_contiguous()


def test_run_to_run_is_bitwise(attention_impl: str) -> None:
    case = attention_case(5, lengths=[(70, 70), (33, 65)], packed=True, dtype=torch.bfloat16)
    first = run(case, attention_impl)
    for _ in range(3):
        again = run(case, attention_impl)
        assert all(torch.equal(x, y) for x, y in zip(again, first, strict=True))


def test_a_second_gradient_is_refused() -> None:
    leaves = inputs((1, 4), (1, 4))
    out = attention(*leaves)
    (dq,) = torch.autograd.grad(out.sum(), leaves[0], create_graph=True)
    with pytest.raises(NotImplementedError, match=r"attention.*not differentiable again"):
        dq.sum().backward()


def test_no_graph_without_a_gradient() -> None:
    leaves = inputs((1, 4), (1, 4))
    with torch.no_grad():
        assert not attention(*leaves).requires_grad
    with torch.inference_mode():
        assert attention(*leaves).shape == (1, 4, 4, 2)


def test_changing_an_input_in_place_is_noticed() -> None:
    leaves = inputs((1, 4), (1, 4))
    q = leaves[0] * 1
    out = attention(q, *leaves[1:])
    q.mul_(2)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        out.sum().backward()
