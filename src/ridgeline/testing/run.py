"""Running a case on an implementation, or on one instruction set of the CPU core."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from ridgeline.ops.attention import attention
from ridgeline.ops.attention import cpu as attention_cpu
from ridgeline.ops.common import core
from ridgeline.ops.merge import merge
from ridgeline.ops.paged_decode import cpu as paged_cpu
from ridgeline.ops.paged_decode import paged_decode
from ridgeline.ops.tied_decode import cpu as tied_cpu
from ridgeline.ops.tied_decode import tied_decode
from ridgeline.testing.cases import AttentionCase, Case, DecodeCase, MergeCase, PagedCase, TiedCase


def implementations() -> list[str]:
    """``reference``, then ``cpu-<isa>`` for every instruction set that this machine has.

    Without the compiled core the list still holds ``cpu``, which then raises: a missing core is a
    failure of the tests, not a reason to skip them.
    """
    return ["reference", *cpu_implementations()]


def cpu_implementations() -> list[str]:
    return ["cpu"] if core.missing() else [f"cpu-{isa}" for isa in core.isas()]


def attention_implementations() -> list[str]:
    """As ``implementations``, of ``attention``."""
    probe = torch.zeros(1, 1, 1, 8)
    built = core.missing() or attention_cpu.unsupported(probe, probe, probe) is None
    return implementations() if built else ["reference"]


def run(
    case: Case,
    impl: str = "auto",
    *,
    prefetch: int = core.PREFETCH_TILES,
    fill: float = torch.nan,
) -> tuple[Tensor, ...]:
    """``out`` and ``lse`` of a case; of one of ``attention`` also ``dq``, ``dk`` and ``dv``.

    ``impl`` is that of the public functions, or ``cpu-<isa>`` for a direct call of the core into
    outputs filled with ``fill``: an element that is not written shows.
    """
    if isinstance(case, MergeCase):
        return merge(case.outs, case.lses)
    if isinstance(case, AttentionCase):
        return _run_attention(case, impl, fill)
    if impl.startswith("cpu-"):
        return _run_core(case, impl.removeprefix("cpu-"), prefetch, fill)
    if isinstance(case, PagedCase):
        tensors = (case.q, case.k_cache, case.v_cache, case.block_table, case.cache_seqlens)
        return paged_decode(*tensors, **case.options(), return_lse=True, impl=impl)
    return tied_decode(*_tied(case), **case.options(), return_lse=True, impl=impl)


def _run_core(case: DecodeCase, isa: str, prefetch: int, fill: float) -> tuple[Tensor, Tensor]:
    rows = case.q.shape[:3]
    lse = torch.full(rows, fill)
    if isinstance(case, TiedCase):
        out = torch.full((*rows, case.state_cache.shape[-1]), fill, dtype=case.q.dtype)
        tied_cpu.tied_decode(
            *_tied(case),
            case.scale,
            case.causal,
            case.num_splits,
            out,
            lse,
            isa=isa,
            prefetch=prefetch,
        )
        return out, lse
    out = torch.full((*rows, case.v_cache.shape[-1]), fill, dtype=case.q.dtype)
    left, right = (-1 if side is None else side for side in case.window or (None, None))
    paged_cpu.paged_decode(
        case.q,
        case.k_cache,
        case.v_cache,
        case.block_table,
        case.cache_seqlens,
        case.scale,
        case.causal,
        left,
        right,
        case.softcap,
        case.num_splits,
        out,
        lse,
        isa=isa,
        prefetch=prefetch,
    )
    return out, lse


def _run_attention(case: AttentionCase, impl: str, fill: float) -> tuple[Tensor, ...]:
    inputs = (case.q, case.k, case.v)
    if not impl.startswith("cpu-"):
        leaves = [x.detach().requires_grad_() for x in inputs]
        out, lse = attention(*leaves, **case.options(), return_lse=True, impl=impl)
        ends = [out] if case.dlse is None else [out, lse]
        grads = torch.autograd.grad(ends, leaves, [case.dout, case.dlse][: len(ends)])
        return out.detach(), lse.detach(), *grads
    isa = impl.removeprefix("cpu-")
    left, right = (-1 if side is None else side for side in case.window or (None, None))
    layout = (case.cu_seqlens_q, case.cu_seqlens_k, case.subtree_end)
    options = (case.scale, case.causal, left, right, case.softcap)
    out = torch.full(case.dout.shape, fill, dtype=case.q.dtype)
    lse = torch.full(case.q.shape[:-1], fill)
    attention_cpu.forward(*inputs, *layout, *options, out, lse, isa=isa)
    grads = [torch.full(x.shape, fill, dtype=x.dtype) for x in inputs]
    upstream = (case.dout, None if case.dlse is None else case.dlse.contiguous())
    attention_cpu.backward(*upstream, *inputs, out, lse, *layout, *options, *grads, isa=isa)
    return out, lse, *grads


def _tied(case: TiedCase) -> tuple[Tensor, ...]:
    names = ["q_nope", "q_rope", "state_cache", "rope_cache", "block_table", "cache_seqlens"]
    return tuple(getattr(case, name) for name in names)


@contextmanager
def threads(count: int) -> Iterator[None]:
    """Runs the block with ``count`` threads of torch, which the CPU core follows."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
