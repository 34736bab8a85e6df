"""What happens before a kernel runs: nothing waits for the device, nothing depends on lengths.

Tensors are fake ones on a GPU that need not be there: they have shapes and devices but no values,
so whatever asks for one fails. Kernels are recorded in place of being launched.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
import triton
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from triton.runtime.interpreter import InterpretedFunction

import ridgeline
from ridgeline.ops.attention import tiles
from ridgeline.ops.common import device
from ridgeline.ops.common.triton import INTERPRETED

BF16, FP8, INT32 = torch.bfloat16, torch.float8_e4m3fn, torch.int32
GPU = "cuda:1"  # which is not the current one


class NothingWaits(TorchDispatchMode):
    """Fails where a tensor goes from one device to another: the host waits for such a copy."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **kwargs or {})
        moved = {x.device for x in (*args, result) if isinstance(x, Tensor)}
        assert len(moved) < 2, f"{func} copies between devices"
        return result


@pytest.fixture
def launches(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[tuple[str, Any, str]]]:
    """Name, grid and current device of every launch; the test runs on fake tensors."""
    found, current = [], ["cuda:0"]

    @contextmanager
    def made_current(to: torch.device) -> Iterator[None]:
        current.append(str(to))
        yield
        current.pop()

    def launch(self, *args: Any, grid: Any, **options: Any) -> None:
        found.append((self.fn.__name__, grid, current[-1]))

    kernel = InterpretedFunction if INTERPRETED else triton.JITFunction
    monkeypatch.setattr(kernel, "run", launch)
    monkeypatch.setattr(torch.cuda, "device", made_current)
    monkeypatch.setattr(device, "_properties", lambda _: (90, 132))
    with FakeTensorMode(), NothingWaits():
        yield found


def on_gpu(*shape: int, dtype: torch.dtype = BF16) -> Tensor:
    return torch.empty(shape, dtype=dtype, device=GPU)


def on_cuda(name: str, *args: Any) -> Any:
    """What the operation runs for tensors of a GPU; fake ones would stop at its fake kernel."""
    keys = torch._C.DispatchKeySet(torch._C.DispatchKey.CUDA)
    return getattr(torch.ops.ridgeline, name).default.redispatch(keys, *args)


def attention(packed: bool = False, tree: bool = False, tokens: int = 300, **options: Any) -> None:
    """The public function, and its operations as a GPU runs them: forward and backward."""
    lead = (tokens,) if packed else (2, tokens)
    q, k, v = on_gpu(*lead, 8, 128), on_gpu(*lead, 2, 128), on_gpu(*lead, 2, 64)
    starts = on_gpu(3, dtype=INT32) if packed else None
    ends = on_gpu(*lead, dtype=INT32) if tree else None
    ridgeline.attention(
        q, k, v, cu_seqlens_q=starts, cu_seqlens_k=starts, subtree_end=ends, **options
    )
    chosen = (0.1, options.get("causal", False), -1, -1, 0.0, False, "triton")
    none = (None,) * 3
    out, lse = on_cuda("attention", q, k, v, starts, starts, None, None, ends, *none, *chosen)
    upstream = (torch.empty_like(out), torch.empty_like(lse), q, k, v, out, lse)
    on_cuda("attention_backward", *upstream, starts, starts, ends, [True] * 3, *chosen)


def paged(num_splits: int = 0, dtype: torch.dtype = BF16, **options: Any) -> None:
    q, cache = on_gpu(3, 2, 8, 128), on_gpu(40, 16, 2, 128, dtype=dtype)
    table, lengths = on_gpu(3, 12, dtype=INT32), on_gpu(3, dtype=INT32)
    inputs = (q, cache, cache, table, lengths)
    ridgeline.paged_decode(*inputs, num_splits=num_splits, **options)
    scales = (on_gpu(2, dtype=torch.float32),) * 2 if dtype == FP8 else (None, None)
    on_cuda("paged_decode", *inputs, 0.1, True, 64, -1, 0.0, *scales, num_splits, "triton")


def tied(num_splits: int = 0, dtype: torch.dtype = BF16, **options: Any) -> None:
    q_nope, q_rope = on_gpu(3, 1, 16, 512), on_gpu(3, 1, 16, 64)
    cache, rope = on_gpu(40, 64, 1, 512, dtype=dtype), on_gpu(40, 64, 64)
    table, lengths = on_gpu(3, 12, dtype=INT32), on_gpu(3, dtype=INT32)
    inputs = (q_nope, q_rope, cache, rope, table, lengths)
    ridgeline.tied_decode(*inputs, softmax_scale=0.1, num_splits=num_splits, **options)
    scale = on_gpu(40, 64, 1, 4, dtype=torch.float32) if dtype == FP8 else None
    on_cuda("tied_decode", *inputs, 0.1, True, scale, num_splits, "triton")


def merge() -> None:
    ridgeline.merge([on_gpu(5, 64)] * 3, [on_gpu(5, dtype=torch.float32)] * 3)
    on_cuda("merge", on_gpu(3, 5, 64), on_gpu(3, 5, dtype=torch.float32))


BACKWARD = ["forward_kernel", "delta_kernel", "dkdv_kernel", "dq_kernel"]
LISTED = ["ends_kernel", "lists_kernel"]
CALLS = {
    "attention": (lambda: attention(causal=True), BACKWARD),
    "attention-packed": (lambda: attention(packed=True), BACKWARD),
    "attention-tree": (
        lambda: attention(packed=True, tree=True),
        [*LISTED, *BACKWARD[:-1], *LISTED, BACKWARD[-1]],
    ),
    "paged": (paged, ["paged_decode_kernel", "combine_kernel"]),
    "paged-whole": (lambda: paged(num_splits=1), ["paged_decode_kernel"]),
    "paged-fp8": (
        lambda: paged(dtype=FP8, k_scale=0.5, v_scale=2.0),
        ["paged_decode_kernel", "combine_kernel"],
    ),
    "tied": (tied, ["tied_decode_kernel", "combine_kernel"]),
    "tied-fp8": (
        lambda: tied(dtype=FP8, state_scale=0.5, num_splits=3),
        ["tied_decode_kernel", "combine_kernel"],
    ),
    "merge": (merge, ["merge_kernel"]),
}


@pytest.mark.parametrize("name", CALLS)
def test_nothing_waits_for_the_device(name: str, launches: list) -> None:
    """Nor may a shape, or a grid, depend on lengths: the values of fake tensors do not exist."""
    call, kernels = CALLS[name]
    call()
    assert [kernel for kernel, *_ in launches] == kernels
    assert {where for *_, where in launches} == {GPU}


@pytest.mark.parametrize(
    "wait",
    [lambda x: x.sum().item(), Tensor.tolist, lambda x: bool(x.any()), Tensor.cpu, Tensor.nonzero],
    ids=["item", "tolist", "bool", "cpu", "nonzero"],
)
def test_the_check_finds_what_waits(wait: Callable[[Tensor], Any], launches: list) -> None:
    with pytest.raises((AssertionError, RuntimeError)):
        wait(on_gpu(4, dtype=INT32))


def test_lists_of_a_tree_are_bounded(launches: list, monkeypatch: pytest.MonkeyPatch) -> None:
    """A row of a million tokens takes 16 MiB of lists, where all of them would be 8 GiB."""
    made, new_empty = [], Tensor.new_empty

    def recorded(x: Tensor, *shape: int, **options: Any) -> Tensor:
        made.append(new_empty(x, *shape, **options))
        return made[-1]

    monkeypatch.setattr(Tensor, "new_empty", recorded)
    attention(packed=True, tree=True, tokens=1 << 20)
    listed = [x for x in made if x.dtype == INT32]
    assert listed
    assert max(x.nbytes for x in listed) <= 4 * tiles.BAND
    assert len([name for name, *_ in launches if name == "forward_kernel"]) > 100
