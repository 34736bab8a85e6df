"""What the C++ kernels of attention promise beyond right results."""

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest
import torch
from attention_core_cases import NAMES, core_cases, unseen_rows

from ridgeline.ops.attention import cpu
from ridgeline.testing import AttentionCase, assert_matches, attention_case, run
from ridgeline.testing.generate import KERNEL_DTYPES
from ridgeline.testing.layouts import far_along
from ridgeline.testing.run import threads

PLAIN = {"magnitude": 1.0, "softcap": 0.0, "window": None, "softmax_scale": None, "tree": None}
PLAIN |= {"packed": False, "dtype": torch.float32, "with_dlse": True}
LARGE = core_cases()[-4:]


@pytest.mark.parametrize("case", LARGE, ids=range(len(LARGE)))
def test_threads_change_no_bit(case: AttentionCase, cpu_impl: str) -> None:
    want = run(case, cpu_impl)
    for count in (2, 3, 8):
        with threads(count):
            got = run(case, cpu_impl)
        for name, x, y in zip(NAMES, want, got, strict=True):
            assert torch.equal(x, y), f"{name} with {count} threads"


@pytest.mark.parametrize("case", LARGE, ids=range(len(LARGE)))
def test_concurrent_calls(case: AttentionCase) -> None:
    """Two Python threads in the core at once, each with OpenMP threads of its own."""
    others = [case, LARGE[0]]
    want = [run(x, "cpu") for x in others]
    with threads(2), ThreadPoolExecutor(2) as pool:
        for _ in range(3):
            got = list(pool.map(lambda x: run(x, "cpu"), others))
            for x, y in zip(want, got, strict=True):
                assert all(map(torch.equal, x, y))


@pytest.mark.parametrize("dtype", KERNEL_DTYPES, ids=str)
@pytest.mark.parametrize("dim", [(1, 256), (33, 8), (64, 64), (128, 128), (256, 7)], ids=str)
def test_long_rows_of_any_width(dim: tuple[int, int], dtype: torch.dtype, cpu_impl: str) -> None:
    widths = {"dim": dim[0], "value_dim": dim[1], "kv_heads": 1, "group": 2}
    case = attention_case(
        11, **PLAIN | widths | {"dtype": dtype}, lengths=[(100, 290)], causal=True
    )
    assert_matches(case, *run(case, cpu_impl))


@pytest.mark.parametrize("dtype", KERNEL_DTYPES, ids=str)
def test_rows_that_nobody_sees_may_be_nan(dtype: torch.dtype, cpu_impl: str) -> None:
    for case, garbage in unseen_rows(dtype):
        results = run(case, cpu_impl)
        assert_matches(case, *results)
        for name, x, y in zip(NAMES, results, run(garbage, cpu_impl), strict=True):
            assert torch.equal(x, y), name


@pytest.mark.parametrize("dtype", KERNEL_DTYPES, ids=str)
def test_a_later_key_of_nan_does_not_reach_earlier_queries(dtype: torch.dtype, cpu_impl) -> None:
    """Keys of one packed panel, some seen and some not by the rows of one strip."""
    case = attention_case(
        5, **PLAIN | {"dtype": dtype, "group": 2}, lengths=[(70, 70)], causal=True, strides=False
    )
    want = run(case, cpu_impl)
    for at in (3, 37, 69):
        changed = {name: getattr(case, name).clone() for name in ("k", "v")}
        for x in changed.values():
            x[:, at] = torch.nan
        out, lse, *_ = run(replace(case, **changed), cpu_impl)
        assert torch.equal(out[:, :at], want[0][:, :at])
        assert torch.equal(lse[:, :at], want[1][:, :at])
        assert out[:, at:].isnan().all()


@pytest.mark.parametrize(
    "needed", [(True, False, False), (False, True, False), (False, False, True)]
)
def test_only_the_gradients_asked_for(needed: tuple[bool, ...], cpu_impl: str) -> None:
    case = attention_case(6, **PLAIN, lengths=[(45, 70)], causal=True)
    want = run(case, cpu_impl)
    got = _backward(case, cpu_impl, *want[:2], [x.clone() for x in want[2:]], needed)
    for x, y, need in zip(want[2:], got, needed, strict=True):
        assert torch.equal(x, y) if need else y is None


@pytest.mark.parametrize("dim", [0, 1, 2], ids=["sequences", "tokens", "heads"])
def test_gradients_far_along(dim: int, cpu_impl: str) -> None:
    """Elements of out, dout, dq, dk and dv more than 2^31 elements from the start."""
    case = attention_case(
        7, **PLAIN | {"kv_heads": 2, "group": 2, "dim": 8, "value_dim": 8}, lengths=[(9, 9)] * 2
    )
    out, lse, *want = run(case, cpu_impl)
    far = replace(case, dout=far_along(case.dout, dim))
    outputs = [far_along(torch.full_like(x, torch.nan), dim) for x in want]
    got = _backward(far, cpu_impl, far_along(out, dim), lse, outputs)
    for x, y in zip(want, got, strict=True):
        assert torch.equal(x, y)


def _backward(
    case: AttentionCase,
    impl: str,
    out: torch.Tensor,
    lse: torch.Tensor,
    outputs: list[torch.Tensor],
    needed: tuple[bool, ...] = (True,) * 3,
) -> list[torch.Tensor | None]:
    for x in outputs:
        x.fill_(torch.nan)
    filled = [x if need else None for x, need in zip(outputs, needed, strict=True)]
    left, right = (-1 if side is None else side for side in case.window or (None, None))
    layout = (case.cu_seqlens_q, case.cu_seqlens_k, case.subtree_end)
    options = (case.scale, case.causal, left, right, case.softcap)
    inputs = (case.dout, case.dlse, case.q, case.k, case.v, out, lse, *layout, *options)
    cpu.backward(*inputs, *filled, isa=impl.removeprefix("cpu-"))
    return filled


def test_what_is_not_for_the_core() -> None:
    q = torch.zeros(1, 2, 1, 8)
    assert cpu.unsupported(q, q, q) is None
    assert "float64" in cpu.unsupported(*[q.double()] * 3)
    wide = torch.zeros(1, 2, 1, 257)
    assert "257 for q" in cpu.unsupported(wide, wide, q)
    assert "257 for v" in cpu.unsupported(q, q, wide)
    assert "meta" in cpu.unsupported(*[q.to("meta")] * 3)


@pytest.mark.parametrize("name", ["cu_seqlens_q", "cu_seqlens_k"])
@pytest.mark.parametrize("values", [[1, 4, 9], [0, 5, 4], [0, 4, 8]], ids=str)
def test_corrupt_lengths(name: str, values: list[int], cpu_impl: str) -> None:
    case = attention_case(
        8, **PLAIN | {"packed": True}, lengths=[(4, 4), (5, 5)], strides=False, causal=True
    )
    with pytest.raises(ValueError, match=name):
        run(replace(case, **{name: torch.tensor(values, dtype=torch.int32)}), cpu_impl)


def test_subtree_end_that_excludes_its_key(cpu_impl: str) -> None:
    case = attention_case(9, **PLAIN | {"tree": "nested"}, lengths=[(9, 9)], strides=False)
    ends = case.subtree_end.clone()
    ends[0, 5] = 5
    with pytest.raises(ValueError, match=r"subtree_end: .* 5, got 5"):
        run(replace(case, subtree_end=ends), cpu_impl)


MEMORY = """
import resource, torch
from ridgeline import attention
torch.set_num_threads(2)
q, k, v = (torch.randn(1, {length}, 1, 64, requires_grad=True) for _ in range(3))
attention(q[:, :8], k[:, :8], v[:, :8], impl="cpu").sum().backward()
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
attention(q, k, v, causal=True, window=(64, None), impl="cpu").sum().backward()
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


def test_memory_is_not_quadratic() -> None:
    """32768 positions squared would be 4 GiB of float32; the five results are 32 MiB or less."""
    done = subprocess.run(
        [sys.executable, "-c", MEMORY.format(length=32768)], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) * 1024 < 200e6 + 5 * 32768 * 64 * 4
