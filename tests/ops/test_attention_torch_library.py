"""``attention`` as PyTorch sees it: schemas, fakes, compilation forward and backward."""

import pytest
import torch
from torch._dynamo.testing import CompileCounterWithBackend
from torch._subclasses.fake_tensor import FakeTensorMode

from ridgeline import attention
from ridgeline.testing import AttentionCase, attention_case

OPS = torch.ops.ridgeline
F32 = {
    "dtype": torch.float32,
    "strides": False,
    "dim": 16,
    "value_dim": 8,
    "kv_heads": 2,
    "group": 2,
}
CASES = {
    "batch": {"packed": False, "lengths": [(5, 9)] * 3},
    "packed": {"packed": True, "lengths": [(5, 9), (0, 3), (7, 7)]},
    "one": {"packed": False, "lengths": [(1, 1)]},
    "nothing": {"packed": True, "lengths": []},
}


def arguments(case: AttentionCase, impl: str) -> tuple:
    left, right = (-1 if side is None else side for side in case.window or (None, None))
    layout = (case.cu_seqlens_q, case.cu_seqlens_k, None, None, case.subtree_end)
    options = (case.scale, case.causal, left, right, case.softcap, False, impl)
    return (case.q, case.k, case.v, *layout, None, None, None, *options)


@pytest.mark.parametrize("shape", CASES.values(), ids=CASES)
def test_opcheck(shape: dict, attention_name: str) -> None:
    tree = None if shape["packed"] else "nested"
    case = attention_case(3, **shape, **F32, tree=tree, softcap=0.0)
    q, k, v, *rest = arguments(case, attention_name)
    torch.library.opcheck(OPS.attention.default, (q, k, v, *rest))
    leaves = [x.clone().requires_grad_() for x in (q, k, v)]
    torch.library.opcheck(OPS.attention.default, (*leaves, *rest))


@pytest.mark.parametrize(
    ("shape", "needed"), [("batch", [True] * 3), ("packed", [False, True, False])], ids=str
)
def test_opcheck_of_the_backward(shape: str, needed: list[bool], attention_name: str) -> None:
    case = attention_case(4, **CASES[shape], **F32, tree="nested", with_dlse=True, softcap=0.0)
    inputs = arguments(case, attention_name)
    out, lse = OPS.attention.default(*inputs)
    layout = (case.cu_seqlens_q, case.cu_seqlens_k, case.subtree_end)
    for dlse in (None, case.dlse):
        torch.library.opcheck(
            OPS.attention_backward.default,
            (case.dout, dlse, *inputs[:3], out, lse, *layout, needed, *inputs[11:]),
        )


@pytest.mark.parametrize(
    ("layout", "backend"),
    [("batch", "aot_eager"), ("packed", "aot_eager"), ("packed", "inductor")],
)
def test_compiles_as_one_graph_forward_and_backward(layout: str, backend: str) -> None:
    """Other lengths go through the same graph: sizes are dynamic."""
    torch._dynamo.reset()
    counter = CompileCounterWithBackend(backend)

    def step(q, k, v, **options):
        out, lse = attention(q * 2, k, v, causal=True, **options, return_lse=True)
        return out.sin(), lse

    compiled = torch.compile(step, fullgraph=True, backend=counter, dynamic=True)
    graphs = []
    for n in (9, 33, 70):
        lengths = [(n, n + 3)] * 2 if layout == "batch" else [(n, n), (3, n + 2), (n, 8)]
        case = attention_case(
            n, packed=layout == "packed", lengths=lengths, **F32, tree="nested", window=None
        )
        names = ("subtree_end", "cu_seqlens_q", "cu_seqlens_k")
        options = {name: x for name in names if (x := getattr(case, name)) is not None}
        if layout == "packed":
            options |= {"max_seqlen_q": n, "max_seqlen_k": n + 8}
        results = []
        for function in (step, compiled):
            leaves = [x.clone().requires_grad_() for x in (case.q, case.k, case.v)]
            out, lse = function(*leaves, **options)
            loss = (out * case.dout).sum() + lse.masked_fill(lse == -torch.inf, 0.0).sum()
            results.append((out, lse, *torch.autograd.grad(loss, leaves)))
        for got, want in zip(results[1], results[0], strict=True):
            torch.testing.assert_close(got, want)
        graphs.append(counter.frame_count)
    assert len(set(graphs)) == 1, f"compiled again: {graphs} graphs after each call"


@pytest.mark.parametrize("needed", [(True, False, False), (False, True, True)], ids=str)
def test_compiles_for_some_of_the_gradients(needed: tuple[bool, ...]) -> None:
    torch._dynamo.reset()
    case = attention_case(0, **CASES["batch"], **F32)
    compiled = torch.compile(attention, fullgraph=True, backend="aot_eager")
    results = []
    for function in (attention, compiled):
        leaves = [x.clone() for x in (case.q, case.k, case.v)]
        wanted = [x.requires_grad_() for x, need in zip(leaves, needed, strict=True) if need]
        out = function(*leaves, **case.options())
        results.append(torch.autograd.grad(out, wanted, case.dout))
    for got, want in zip(*results, strict=True):
        torch.testing.assert_close(got, want, rtol=0, atol=0)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64], ids=str)
@pytest.mark.parametrize("shape", CASES.values(), ids=CASES)
def test_fake_results_are_like_the_real_ones(shape: dict, dtype: torch.dtype) -> None:
    case = attention_case(2, **shape, dtype=dtype, strides=True)
    real = attention(case.q, case.k, case.v, **case.options(), return_lse=True)
    with FakeTensorMode() as mode:
        tensors = [mode.from_tensor(x) for x in (case.q, case.k, case.v)]
        options = {
            k: mode.from_tensor(x) if isinstance(x, torch.Tensor) else x
            for k, x in case.options().items()
        }
        fake = attention(*tensors, **options, return_lse=True)
    for have, want in zip(fake, real, strict=True):
        assert (have.shape, have.dtype, have.stride()) == (want.shape, want.dtype, want.stride())


def test_all_on_meta_gives_meta() -> None:
    x = torch.empty(2, 5, 4, 8, device="meta", requires_grad=True)
    out = attention(x, x, x)
    assert out.device.type == "meta"
    (grad,) = torch.autograd.grad(out.sum(), x)
    assert grad.shape == x.shape


def test_checkpointing_gives_the_same_gradients() -> None:
    case = attention_case(1, **CASES["batch"], **F32)
    grads = []
    for keep in (True, False):
        leaves = [x.clone().requires_grad_() for x in (case.q, case.k, case.v)]

        def block(q, k, v):
            return attention(q.sin(), k, v, **case.options())

        if keep:
            out = block(*leaves)
        else:
            out = torch.utils.checkpoint.checkpoint(block, *leaves, use_reentrant=False)
        grads.append(torch.autograd.grad(out, leaves, case.dout))
    assert all(torch.equal(x, y) for x, y in zip(*grads, strict=True))
