"""``attention`` by the compiled CPU core."""

from typing import Any

from torch import Tensor

from ridgeline.ops.common import core

MAX_DIM = 256


def unsupported(q: Tensor, k: Tensor, v: Tensor) -> str | None:
    """Why this implementation cannot run the call, or ``None``."""
    for name, x in (("q", q), ("v", v)):
        if not 1 <= x.shape[-1] <= MAX_DIM:
            return f"head dims are 1 to {MAX_DIM}, got {x.shape[-1]} for {name}"
    return core.unsupported(q, k)


def forward(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cu_seqlens_q: Tensor | None,
    cu_seqlens_k: Tensor | None,
    subtree_end: Tensor | None,
    softmax_scale: float,
    causal: bool,
    window_left: int,
    window_right: int,
    softcap: float,
    out: Tensor,
    lse: Tensor,
    *,
    isa: str = "auto",
) -> None:
    """Fills ``out [B, L_q, h_q, d_v]`` and ``lse [B, L_q, h_q]``, or packed ones.

    ``isa`` forces an instruction set (see ``core.isas()``). The number of threads changes no bit.
    """
    tensors = (q, k, v, out, lse, cu_seqlens_q, cu_seqlens_k, subtree_end)
    options = (softmax_scale, causal, window_left, window_right, softcap)
    core.load().attention_forward(*_problem(tensors, options), isa)


def backward(
    dout: Tensor,
    dlse: Tensor | None,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    lse: Tensor,
    cu_seqlens_q: Tensor | None,
    cu_seqlens_k: Tensor | None,
    subtree_end: Tensor | None,
    softmax_scale: float,
    causal: bool,
    window_left: int,
    window_right: int,
    softcap: float,
    dq: Tensor | None,
    dk: Tensor | None,
    dv: Tensor | None,
    *,
    isa: str = "auto",
) -> None:
    """Fills those of ``dq``, ``dk`` and ``dv`` that are given, shaped as ``q``, ``k`` and ``v``.

    ``dout`` and ``dlse`` (None: zeros) are the gradients of ``out`` and ``lse``, which are those of
    ``forward``. Deterministic, whatever the number of threads.
    """
    tensors = (q, k, v, out, lse, cu_seqlens_q, cu_seqlens_k, subtree_end)
    options = (softmax_scale, causal, window_left, window_right, softcap)
    gradients = (_view(x) for x in (dlse, dq, dk, dv))
    core.load().attention_backward(*_problem(tensors, options), _view(dout), *gradients, isa)


def _problem(tensors: tuple[Tensor | None, ...], options: tuple[float | bool, ...]) -> Any:
    """What forward and backward share, as the core takes it."""
    views = tuple(_view(x) for x in tensors)
    return views, (core.dtype_name(tensors[0]), *options, core.num_threads())


def _view(x: Tensor | None) -> Any:
    return None if x is None else core.view(x)
