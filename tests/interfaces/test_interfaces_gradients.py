"""Gradients: against finite differences in float64, and through ``torch.compile`` in one graph."""

import pytest
import torch
from torch import Tensor

from ridgeline.flash_attn_interface import (
    flash_attn_combine,
    flash_attn_func,
    flash_attn_qkvpacked_func,
    flash_attn_varlen_func,
)

INT32 = torch.int32
OPTIONS = [
    {},
    {"causal": True},
    {"causal": True, "attention_chunk": 2},
    {"window_size": (1, 1)},
    {"softcap": 0.7, "softmax_scale": 0.9},
]


def leaf(*shape: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, dtype=torch.float64, generator=generator).requires_grad_()


def packing(*lengths: int) -> Tensor:
    return torch.tensor([0, *torch.tensor(lengths).cumsum(0)], dtype=INT32)


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("with_qv", [False, True])
def test_flash_attn_func(options: dict, with_qv: bool) -> None:
    tensors = [leaf(2, 3, 4, 3), leaf(2, 5, 2, 3, seed=1), leaf(2, 5, 2, 2, seed=2)]
    tensors += [leaf(2, 3, 4, 2, seed=3)] if with_qv else []

    def call(q, k, v, qv=None):
        return flash_attn_func(q, k, v, qv=qv, return_attn_probs=True, **options)

    assert torch.autograd.gradcheck(call, tensors)


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("used", [False, True])
def test_flash_attn_varlen_func(options: dict, used: bool) -> None:
    tensors = [leaf(5, 2, 3), leaf(7, 1, 3, seed=1), leaf(7, 1, 2, seed=2)]
    layout = {"cu_seqlens_q": packing(2, 0, 3), "cu_seqlens_k": packing(3, 1, 3)}
    if used:
        layout["seqused_q"] = torch.tensor([1, 0, 3], dtype=INT32)
        layout["seqused_k"] = torch.tensor([3, 1, 2], dtype=INT32)

    def call(q, k, v):
        result = flash_attn_varlen_func(
            q, k, v, max_seqlen_q=3, max_seqlen_k=3, return_attn_probs=True, **layout, **options
        )
        return result[0], result[1].masked_fill(result[1] == -torch.inf, 0.0)

    assert torch.autograd.gradcheck(call, tensors)


def test_rows_that_are_not_used_have_no_gradient() -> None:
    q, k, v = leaf(3, 1, 2), leaf(4, 1, 2, seed=1), leaf(4, 1, 2, seed=2)
    one = torch.tensor([2], dtype=INT32)
    out = flash_attn_varlen_func(
        q, k, v, packing(3), packing(4), 3, 4, seqused_q=one, seqused_k=one
    )
    out.sum().backward()
    assert q.grad[2].abs().max() == k.grad[2:].abs().max() == v.grad[2:].abs().max() == 0
    assert v.grad[:2].abs().min() > 0


@pytest.mark.parametrize("shape", [(2, 3, 3, 2, 4), (2, 3, 6, 4)], ids=["stacked", "grouped"])
def test_flash_attn_qkvpacked_func(shape: tuple[int, ...]) -> None:
    heads = None if len(shape) == 5 else 4
    qkv = leaf(*shape)
    assert torch.autograd.gradcheck(
        lambda x: flash_attn_qkvpacked_func(x, causal=True, num_heads_q=heads), [qkv]
    )


def test_flash_attn_combine() -> None:
    parts = [leaf(3, 1, 2, 2, 2), leaf(3, 1, 2, 2, seed=1)]
    assert torch.autograd.gradcheck(lambda o, l: flash_attn_combine(o, l), parts)


CALLS = {
    "func, chunked": lambda q, k, v, n: flash_attn_func(
        q,
        k,
        v,
        causal=True,
        window_size=(3, 0),
        attention_chunk=4,
        softcap=2.0,
        num_splits=2,
        return_attn_probs=True,
    ),
    "qkvpacked": lambda q, k, v, n: flash_attn_qkvpacked_func(
        torch.stack((q, k, v), dim=2), window_size=(2, 1)
    ),
    "varlen": lambda q, k, v, n: flash_attn_varlen_func(
        *(x.flatten(0, 1) for x in (q, k, v)), n, n, None, None, causal=True, return_attn_probs=True
    ),
    "varlen, chunked": lambda q, k, v, n: flash_attn_varlen_func(
        *(x.flatten(0, 1) for x in (q, k, v)), n, n, 9, 9, causal=True, attention_chunk=2
    ),
}


@pytest.mark.parametrize(
    ("name", "backend"),
    [(name, "inductor" if name == "varlen" else "aot_eager") for name in CALLS],
)
def test_compiles_as_one_graph(name: str, backend: str) -> None:
    """Forward and backward; two shapes in turn, so that sizes become dynamic."""
    torch._dynamo.reset()
    call = CALLS[name]
    compiled = torch.compile(call, fullgraph=True, backend=backend)
    for batch, length in ((2, 6), (3, 9)):
        results = []
        for function in (call, compiled):
            tensors = [leaf(batch, length, 2, 4, seed=seed) for seed in range(3)]
            result = function(*tensors, packing(*[length] * batch))
            result = result if isinstance(result, tuple) else (result,)
            loss = sum(x.sin().sum() for x in result)
            results.append((*result, *torch.autograd.grad(loss, tensors)))
        for got, want in zip(results[1], results[0], strict=True):
            torch.testing.assert_close(got, want)
