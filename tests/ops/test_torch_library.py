"""The operations as PyTorch sees them: schemas, fakes, compilation."""

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

import ridgeline
from ridgeline.testing import merge_case, paged_case, tied_case
from ridgeline.testing.generate import FP8

OPS = torch.ops.ridgeline
DECODES = [ridgeline.paged_decode, ridgeline.tied_decode]
SHAPES = [
    {"lengths": [5, 33, 0], "query_len": 1, "dim": 16},
    {"lengths": [17, 3], "query_len": 3, "dim": 17},
    {"lengths": [1], "query_len": 1, "dim": 8},
    {"lengths": [], "query_len": 2, "dim": 8},
]


def paged_arguments(case, impl: str) -> tuple:
    left, right = (-1 if side is None else side for side in case.window or (None, None))
    inputs = (case.q, case.k_cache, case.v_cache, case.block_table, case.cache_seqlens)
    options = (case.scale, case.causal, left, right, case.softcap, case.k_scale, case.v_scale)
    return (*inputs, *options, case.num_splits, impl)


def tied_arguments(case, impl: str) -> tuple:
    queries = (case.q_nope, case.q_rope)
    inputs = (case.state_cache, case.rope_cache, case.block_table, case.cache_seqlens)
    return (*queries, *inputs, case.scale, case.causal, case.state_scale, case.num_splits, impl)


def call(case, **options) -> tuple:
    """The arguments of the public function for a case."""
    if hasattr(case, "k_cache"):
        tensors = (case.q, case.k_cache, case.v_cache, case.block_table, case.cache_seqlens)
    else:
        queries, caches = (case.q_nope, case.q_rope), (case.state_cache, case.rope_cache)
        tensors = (*queries, *caches, case.block_table, case.cache_seqlens)
    return tensors, case.options() | options


@pytest.mark.parametrize("name", ["reference", "cpu", "auto"])
@pytest.mark.parametrize("shape", SHAPES, ids=lambda s: f"lengths={s['lengths']}")
def test_opcheck_of_decodes(shape: dict, name: str) -> None:
    paged = paged_case(3, **shape, num_splits=2, window=(9, None))
    torch.library.opcheck(OPS.paged_decode.default, paged_arguments(paged, name))
    torch.library.opcheck(OPS.tied_decode.default, tied_arguments(tied_case(3, **shape), name))


@pytest.mark.parametrize("kind", ["head", "block"])
def test_opcheck_of_fp8_caches(kind: str) -> None:
    """All checks but ``test_schema``, whose own comparison lacks float8."""
    utils = ("test_autograd_registration", "test_faketensor", "test_aot_dispatch_dynamic")
    fp8 = {"lengths": [9, 3], "cache_dtype": FP8, "scale_kind": kind}
    paged, tied = paged_case(0, **fp8), tied_case(0, **fp8)
    torch.library.opcheck(
        OPS.paged_decode.default, paged_arguments(paged, "reference"), test_utils=utils
    )
    torch.library.opcheck(
        OPS.tied_decode.default, tied_arguments(tied, "reference"), test_utils=utils
    )


@pytest.mark.parametrize("rows", [(), (3, 5), (0, 4)], ids=str)
def test_opcheck_of_merge(rows: tuple[int, ...]) -> None:
    case = merge_case(0, rows=rows, dtype=torch.float32, dim=8)
    inputs = (case.outs.requires_grad_(), case.lses.requires_grad_())
    torch.library.opcheck(OPS.merge.default, inputs)
    backward = (case.outs.detach(), case.lses.detach(), torch.ones(*rows, 8), torch.ones(rows))
    torch.library.opcheck(OPS.merge_backward.default, backward)


@pytest.mark.parametrize(
    ("name", "backend"), [("reference", "aot_eager"), ("cpu", "aot_eager"), ("cpu", "inductor")]
)
@pytest.mark.parametrize("make", [paged_case, tied_case])
def test_compiles_as_one_graph(make, name: str, backend: str) -> None:
    """Each shape in turn through one compiled function, so that sizes become dynamic."""
    torch._dynamo.reset()
    decode = ridgeline.paged_decode if make is paged_case else ridgeline.tied_decode

    @torch.compile(fullgraph=True, backend=backend)
    def step(tensors, options):
        out, lse = decode(*tensors, **options, return_lse=True, impl=name)
        return out * 2, lse + 1

    for n, shape in enumerate(SHAPES[:3]):
        tensors, options = call(make(n, **shape, dtype=torch.float32, strides=False))
        out, lse = decode(*tensors, **options, return_lse=True, impl=name)
        got_out, got_lse = step(tensors, options)
        torch.testing.assert_close(got_out, out * 2, rtol=0, atol=0)
        torch.testing.assert_close(got_lse, lse + 1, rtol=0, atol=0)


@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
def test_merge_compiles_with_its_gradient(backend: str) -> None:
    torch._dynamo.reset()
    case = merge_case(1, parts=3, rows=(3, 5), dim=8, dtype=torch.float32)
    grads = []
    for function in (
        ridgeline.merge,
        torch.compile(ridgeline.merge, fullgraph=True, backend=backend),
    ):
        outs = torch.nan_to_num(case.outs, posinf=0.0).requires_grad_()
        lses = torch.nan_to_num(case.lses, neginf=-50.0).requires_grad_()
        out, lse = function(outs, lses)
        grads.append(torch.autograd.grad(out.sin().sum() + lse.cos().sum(), (outs, lses)))
    for got, want in zip(grads[1], grads[0], strict=True):
        torch.testing.assert_close(got, want)


@pytest.mark.parametrize("make", [paged_case, tied_case])
def test_fake_result_is_like_the_real_one(make) -> None:
    decode = ridgeline.paged_decode if make is paged_case else ridgeline.tied_decode
    tensors, options = call(make(2, lengths=[9, 4], strides=False), return_lse=True)
    real = decode(*tensors, **options)
    with FakeTensorMode() as mode:
        fake = decode(*(mode.from_tensor(x) for x in tensors), **options)
    for have, want in zip(fake, real, strict=True):
        assert (have.shape, have.dtype, have.stride()) == (want.shape, want.dtype, want.stride())
