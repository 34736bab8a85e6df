"""Running a case on an implementation, or on one instruction set of the CPU core."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import fields, replace
from importlib import import_module

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


def triton_implementations() -> list[str]:
    """``triton`` as the public functions run it, and with tiles of 16 tokens: many to a sequence.

    They run on the GPU, or by Triton's interpreter where it is active. Tiles of ``attention`` may
    have a number of rows of their own: ``triton-32x16`` has 32 rows.
    """
    return ["triton", "triton-16"]


def run(
    case: Case,
    impl: str = "auto",
    *,
    prefetch: int = core.PREFETCH_TILES,
    fill: float = torch.nan,
    gradients: bool = True,
) -> tuple[Tensor, ...]:
    """``out`` and ``lse`` of a case; of ``attention`` with ``gradients`` also dq, dk and dv.

    ``impl`` is that of the public functions, or ``cpu-<isa>`` or ``triton-<tokens of a tile>`` for
    a direct call of the kernels into outputs filled with ``fill``: an element that is not written
    shows.
    """
    name, _, detail = impl.partition("-")
    if name == "triton":
        case = on_device("cuda" if torch.cuda.is_available() else "cpu", case)
    if isinstance(case, MergeCase):
        result = _run_triton_merge(case) if name == "triton" else merge(case.outs, case.lses)
    elif isinstance(case, AttentionCase):
        made = {"": _run_attention, "cpu": _run_attention_core, "triton": _run_attention_triton}
        result = made[name if detail else ""](case, detail or impl, fill, gradients)
    else:
        made = {"": _run_public, "cpu": _run_core, "triton": _run_triton}
        result = made[name if detail else ""](case, detail or impl, prefetch, fill)
    return tuple(x.cpu() for x in result)


def _run_triton_merge(case: MergeCase) -> tuple[Tensor, Tensor]:
    from ridgeline.ops.merge import triton

    return triton.merge(case.outs, case.lses)


def _run_public(case: DecodeCase, impl: str, *_: float) -> tuple[Tensor, Tensor]:
    if isinstance(case, PagedCase):
        tensors = (case.q, case.k_cache, case.v_cache, case.block_table, case.cache_seqlens)
        return paged_decode(*tensors, **case.options(), return_lse=True, impl=impl)
    return tied_decode(*_tied(case), **case.options(), return_lse=True, impl=impl)


def _run_triton(case: DecodeCase, tile: str, prefetch: int, fill: float) -> tuple[Tensor, Tensor]:
    return launch_decode(case, "triton", fill, block_n=int(tile), prefetch=prefetch)


def launch_decode(
    case: DecodeCase,
    impl: str,
    fill: float = torch.nan,
    config: object | None = None,
    **changes: int,
) -> tuple[Tensor, Tensor]:
    """``out`` and ``lse`` of a direct call of a GPU's kernel, where the tensors of the case are.

    Args:
        case: of a decode operation.
        impl: "triton" or "hopper".
        fill: what the outputs hold before.
        config: a tiling in the place of the decode kernel's for the case.
        changes: fields of the tiling to replace.
    """
    rows = case.q.shape[:3]
    lse = torch.full(rows, fill, device=case.q.device)
    if isinstance(case, TiedCase):
        name, value_dim = "tied_decode", case.state_cache.shape[-1]
        inputs, tiled_by = _tied(case), _tied(case)[:3]
        options = (case.scale, case.causal)
        scales = (_scale(case, "state_scale"),)
    else:
        name, value_dim = "paged_decode", case.v_cache.shape[-1]
        inputs = (case.q, case.k_cache, case.v_cache, case.block_table, case.cache_seqlens)
        tiled_by = (case.q, case.k_cache, value_dim)
        left, right = (-1 if side is None else side for side in case.window or (None, None))
        options = (case.scale, case.causal, left, right, case.softcap)
        scales = (_scale(case, "k_scale"), _scale(case, "v_scale"))
    module = import_module(f"ridgeline.ops.{name}.{impl}")
    out = case.q.new_full((*rows, value_dim), fill)
    config = replace(config or module.config_for(*tiled_by, *scales), **changes)
    getattr(module, name)(*inputs, *options, *scales, case.num_splits, out, lse, config=config)
    return out, lse


def _scale(case: DecodeCase, name: str) -> Tensor | None:
    value = getattr(case, name)
    if value is None or isinstance(value, Tensor):
        return value
    return torch.tensor(value, dtype=torch.float32, device=case.q.device)


def on_device(device: str, case: Case) -> Case:
    """The case with its tensors on ``device``: the same strides in the same memory around them."""
    moved = {}
    for field in fields(case):
        x = getattr(case, field.name)
        if isinstance(x, Tensor) and x.device.type != device:
            storage = x.untyped_storage().to(device=device)
            like = torch.empty(0, dtype=x.dtype, device=device)
            moved[field.name] = like.set_(storage, x.storage_offset(), x.shape, x.stride())
    return replace(case, **moved) if moved else case


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


def _run_attention(
    case: AttentionCase, impl: str, fill: float, gradients: bool
) -> tuple[Tensor, ...]:
    leaves = [x.detach().requires_grad_(gradients) for x in (case.q, case.k, case.v)]
    out, lse = attention(*leaves, **case.options(), return_lse=True, impl=impl)
    if not gradients:
        return out, lse
    ends = [out] if case.dlse is None else [out, lse]
    grads = torch.autograd.grad(ends, leaves, [case.dout, case.dlse][: len(ends)])
    return out.detach(), lse.detach(), *grads


def _run_attention_core(
    case: AttentionCase, isa: str, fill: float, gradients: bool
) -> tuple[Tensor, ...]:
    return launch_attention(
        attention_cpu.forward, attention_cpu.backward, case, fill, gradients, isa=isa
    )


def _run_attention_triton(
    case: AttentionCase, tile: str, fill: float, gradients: bool
) -> tuple[Tensor, ...]:
    from ridgeline.ops.attention.triton import backward, forward
    from ridgeline.ops.attention.triton.config import AttentionConfig

    rows, _, tokens = tile.rpartition("x")
    config = AttentionConfig(int(rows or tokens), int(tokens), num_warps=4, num_stages=1)
    return launch_attention(
        forward.forward, backward.backward, case, fill, gradients, config=config
    )


def launch_attention(
    forward: Callable[..., None],
    backward: Callable[..., None],
    case: AttentionCase,
    fill: float,
    gradients: bool,
    **chosen: object,
) -> tuple[Tensor, ...]:
    """The launchers of an implementation, into outputs filled with ``fill``.

    Args:
        forward, backward: launchers of ``attention`` and of its gradient.
        case: of ``attention``.
        fill: what the outputs hold before.
        gradients: whether to run ``backward`` too.
        chosen: keyword arguments of both launchers.
    """
    inputs = (case.q, case.k, case.v)
    left, right = (-1 if side is None else side for side in case.window or (None, None))
    layout = (case.cu_seqlens_q, case.cu_seqlens_k, case.subtree_end)
    options = (case.scale, case.causal, left, right, case.softcap)
    out = case.q.new_full(case.dout.shape, fill)
    lse = case.q.new_full(case.q.shape[:-1], fill, dtype=torch.float32)
    forward(*inputs, *layout, *options, out, lse, **chosen)
    if not gradients:
        return out, lse
    grads = [torch.full_like(x, fill, memory_format=torch.contiguous_format) for x in inputs]
    upstream = (case.dout, None if case.dlse is None else case.dlse.contiguous())
    backward(*upstream, *inputs, out, lse, *layout, *options, *grads, **chosen)
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
