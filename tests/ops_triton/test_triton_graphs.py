"""Every operation in a CUDA graph: replayed with other lengths it gives the eager call's bits."""

from collections.abc import Callable
from dataclasses import fields, replace
from typing import TypeVar

import pytest
import torch
from torch import Tensor
from triton_attention import small as small_attention
from triton_cases import MAKERS, small

import ridgeline
from ridgeline.testing import AttentionCase, paged_case

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="CUDA graphs need a GPU")
Case = TypeVar("Case")


def on_gpu(case: Case) -> Case:
    tensors = ((f.name, getattr(case, f.name)) for f in fields(case))
    return replace(case, **{name: x.cuda() for name, x in tensors if isinstance(x, Tensor)})


def assert_replays(call: Callable[[], tuple[Tensor, ...]], change: Callable[[], None]) -> None:
    """Captures ``call``, changes what its tensors hold, replays."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        call()  # compiles
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        results = call()
    for _ in range(2):
        graph.replay()
        for x, y in zip(results, call(), strict=True):
            assert torch.equal(x, y)
        change()


@pytest.mark.parametrize("num_splits", [0, 1, 3])
@pytest.mark.parametrize("make", MAKERS)
def test_decode(make, num_splits: int) -> None:
    case = on_gpu(small(make, 0, lengths=[900, 7, 4000], num_splits=num_splits))
    options = case.options() | {"return_lse": True, "impl": "triton"}
    if make is paged_case:
        inputs = (case.q, case.k_cache, case.v_cache, case.block_table, case.cache_seqlens)
        operation = ridgeline.paged_decode
    else:
        inputs = (case.q_nope, case.q_rope, case.state_cache, case.rope_cache)
        inputs += (case.block_table, case.cache_seqlens)
        operation = ridgeline.tied_decode

    def change() -> None:
        case.cache_seqlens.copy_(torch.tensor([3, 3999, 0], dtype=torch.int32))
        case.block_table.copy_(case.block_table.flip(0))

    assert_replays(lambda: operation(*inputs, **options), change)


@pytest.mark.parametrize("tree", [None, "nested"])
def test_attention(tree: str | None) -> None:
    """Forward and backward, cut into other sequences, with other trees."""
    case, other = (
        on_gpu(small_attention(0, lengths=lengths, tree=tree, strides=False))
        for lengths in ([(300, 300), (7, 93), (93, 7)], [(20, 20), (80, 80), (300, 300)])
    )
    leaves = [x.detach().requires_grad_() for x in (case.q, case.k, case.v)]

    def call() -> tuple[Tensor, ...]:
        ends = ridgeline.attention(*leaves, **case.options(), return_lse=True, impl="triton")
        return (*ends, *torch.autograd.grad(ends, leaves, [case.dout, case.dlse]))

    assert_replays(call, lambda: copy_layout(case, other))


def copy_layout(case: AttentionCase, other: AttentionCase) -> None:
    for name in ("cu_seqlens_q", "cu_seqlens_k", "subtree_end"):
        if getattr(case, name) is not None:
            getattr(case, name).copy_(getattr(other, name))


def test_merge() -> None:
    outs, lses = torch.randn(5, 7, 64, device="cuda"), torch.randn(5, 7, device="cuda")
    assert_replays(lambda: ridgeline.merge(outs, lses), lambda: lses.fill_(-torch.inf))


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
def test_a_device_that_is_not_the_current_one() -> None:
    q = torch.randn(1, 100, 2, 64, device="cuda:1", dtype=torch.bfloat16)
    want = ridgeline.attention(q, q, q, causal=True, impl="reference")
    got = ridgeline.attention(q, q, q, causal=True, impl="triton")
    torch.testing.assert_close(got, want)
