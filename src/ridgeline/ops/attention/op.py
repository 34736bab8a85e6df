"""The torch.library operation ``ridgeline::attention`` and its gradient: schema, checks, fakes."""

import torch
from torch import Tensor

from ridgeline.ops.attention import cpu, fp8, reference
from ridgeline.ops.attention.hopper import config as hopper_config
from ridgeline.ops.attention.triton import config as triton_config
from ridgeline.ops.common import check, packing
from ridgeline.ops.common.dispatch import empty_outputs, pick

_OPTIONS = (
    "float softmax_scale, bool causal, int window_left, int window_right, float softcap, "
    "bool deterministic, str impl"
)
torch.library.define(
    "ridgeline::attention",
    "(Tensor q, Tensor k, Tensor v, Tensor? cu_seqlens_q, Tensor? cu_seqlens_k, "
    "SymInt? max_seqlen_q, SymInt? max_seqlen_k, Tensor? subtree_end, "
    f"Tensor? q_scale, Tensor? k_scale, Tensor? v_scale, {_OPTIONS}) -> (Tensor, Tensor)",
)
torch.library.define(
    "ridgeline::attention_backward",
    "(Tensor dout, Tensor? dlse, Tensor q, Tensor k, Tensor v, Tensor out, Tensor lse, "
    "Tensor? cu_seqlens_q, Tensor? cu_seqlens_k, Tensor? subtree_end, bool[3] needed, "
    f"{_OPTIONS}) -> (Tensor, Tensor, Tensor)",
)


def check_shapes(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cu_seqlens_q: Tensor | None,
    cu_seqlens_k: Tensor | None,
    subtree_end: Tensor | None,
) -> None:
    packing.check_pair(cu_seqlens_q, cu_seqlens_k)
    if cu_seqlens_q is None:
        check.shape("q", q, ("B", "L_q", "h_q", "d"))
        lead = (q.shape[0], "L_k")
    else:
        check.shape("q", q, ("total_q", "h_q", "d"))
        lead = ("total_k",)
    check.dtype("q", q, (*check.FLOATS, check.FP8))
    heads, dim = q.shape[-2:]
    check.shape("k", k, (*lead, "h_kv", dim))
    check.shape("v", v, (*k.shape[:-1], "d_v"))
    for name, x in (("q", q), ("k", k), ("v", v)):
        check.dtype(name, x, (q.dtype,))
        check.contiguous_last_dim(name, x)
        if min(x.shape[-2:]) == 0:
            raise ValueError(f"{name}: expected at least one head of width 1, got {list(x.shape)}")
    check.divides(f"k.shape[{k.dim() - 2}]", k.shape[-2], f"q.shape[{q.dim() - 2}]", heads)
    if subtree_end is not None:
        check.shape("subtree_end", subtree_end, tuple(k.shape[:-2]))
        check.dtype("subtree_end", subtree_end, (torch.int32,))
    check.same_device(
        q=q,
        k=k,
        v=v,
        cu_seqlens_q=cu_seqlens_q,
        cu_seqlens_k=cu_seqlens_k,
        subtree_end=subtree_end,
    )


def check_values(
    q: Tensor,
    k: Tensor,
    cu_seqlens_q: Tensor | None,
    cu_seqlens_k: Tensor | None,
    max_seqlen_q: int | None,
    max_seqlen_k: int | None,
    subtree_end: Tensor | None,
) -> None:
    """What can only be said with the values at hand, which is on the CPU."""
    if q.device.type != "cpu":
        return
    packing.check_lengths("q", q, cu_seqlens_q, max_seqlen_q)
    packing.check_lengths("k", k, cu_seqlens_k, max_seqlen_k)
    if subtree_end is not None:
        packing.check_ends(subtree_end, cu_seqlens_k)


@torch.library.register_fake("ridgeline::attention")
def _fake(q, k, v, cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k, subtree_end, *_):
    check_shapes(q, k, v, cu_seqlens_q, cu_seqlens_k, subtree_end)
    return empty_outputs(q, v.shape[-1])


@torch.library.register_fake("ridgeline::attention_backward")
def _fake_backward(dout, dlse, q, k, v, out, lse, cu_q, cu_k, subtree_end, needed, *_):
    return _empty_gradients(q, k, v, needed)


def _empty_gradients(
    q: Tensor, k: Tensor, v: Tensor, needed: list[bool]
) -> tuple[Tensor, Tensor, Tensor]:
    """A gradient that is not needed is an empty tensor."""
    dq, dk, dv = (
        x.new_empty(x.shape if need else (0,)) for x, need in zip((q, k, v), needed, strict=True)
    )
    return dq, dk, dv


@torch.library.impl("ridgeline::attention", ("cpu", "cuda"))
def _run(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cu_seqlens_q: Tensor | None,
    cu_seqlens_k: Tensor | None,
    max_seqlen_q: int | None,
    max_seqlen_k: int | None,
    subtree_end: Tensor | None,
    q_scale: Tensor | None,
    k_scale: Tensor | None,
    v_scale: Tensor | None,
    softmax_scale: float,
    causal: bool,
    window_left: int,
    window_right: int,
    softcap: float,
    deterministic: bool,
    impl: str,
) -> tuple[Tensor, Tensor]:
    check_values(q, k, cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k, subtree_end)
    out, lse = empty_outputs(q, v.shape[-1])
    tensors = (q, k, v, cu_seqlens_q, cu_seqlens_k, subtree_end)
    options = (softmax_scale, causal, window_left, window_right, softcap)
    match _pick(impl, q, k, v, k_scale, v_scale):
        case "triton":
            from ridgeline.ops.attention.triton import forward as triton

            triton.forward(*tensors, *options, out, lse)
        case "hopper":
            from ridgeline.ops.attention.hopper import forward as hopper

            scales = {"q_scale": q_scale, "k_scale": k_scale, "v_scale": v_scale}
            hopper.forward(*tensors, *options, out, lse, **scales)
        case "cpu":
            cpu.forward(*tensors, *options, out, lse)
        case "reference" if q.dtype == check.FP8:
            fp8.forward(*tensors, q_scale, k_scale, v_scale, *options, out, lse)
        case "reference":
            reference.forward(*tensors, *options, out, lse)
    return out, lse


@torch.library.impl("ridgeline::attention_backward", ("cpu", "cuda"))
def _run_backward(
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
    needed: list[bool],
    softmax_scale: float,
    causal: bool,
    window_left: int,
    window_right: int,
    softcap: float,
    deterministic: bool,
    impl: str,
) -> tuple[Tensor, Tensor, Tensor]:
    gradients = _empty_gradients(q, k, v, needed)
    filled = [x if need else None for x, need in zip(gradients, needed, strict=True)]
    if dout.stride(-1) != 1:
        dout = dout.contiguous()
    tensors = (q, k, v, cu_seqlens_q, cu_seqlens_k, subtree_end)
    options = (softmax_scale, causal, window_left, window_right, softcap)
    match _pick(impl, q, k, v):
        case "triton":
            from ridgeline.ops.attention.triton import backward as triton

            triton.backward(dout, dlse, *tensors[:3], out, lse, *tensors[3:], *options, *filled)
        case "hopper":
            from ridgeline.ops.attention.hopper import backward as hopper

            ordered = deterministic or torch.are_deterministic_algorithms_enabled()
            inputs = (dout, dlse, *tensors[:3], out, lse, *tensors[3:], *options)
            hopper.backward(*inputs, *filled, deterministic=ordered)
        case "cpu":
            dlse = None if dlse is None else dlse.contiguous()
            cpu.backward(dout, dlse, *tensors[:3], out, lse, *tensors[3:], *options, *filled)
        case "reference":
            reference.backward(dout, dlse, *tensors, *options, *filled)
    return gradients


def _pick(
    impl: str,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    k_scale: Tensor | None = None,
    v_scale: Tensor | None = None,
) -> str:
    reasons = {
        "triton": lambda: triton_config.unsupported(q, k, v, interpret=impl == "triton"),
        "hopper": lambda: hopper_config.unsupported(q, k, v, k_scale, v_scale),
        "cpu": lambda: cpu.unsupported(q, k, v),
        "reference": lambda: None,
    }
    return pick(impl, reasons)


def _setup(ctx, inputs, output):
    q, k, v, cu_seqlens_q, cu_seqlens_k, _, _, subtree_end, *_ = inputs
    if q.dtype == check.FP8:
        raise ValueError("q: float8 attention is forward only, got an input that requires grad")
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(q, k, v, *output, cu_seqlens_q, cu_seqlens_k, subtree_end)
    ctx.options = inputs[11:]


def _backward(ctx, dout, dlse):
    if dout is None and dlse is None:
        return (None,) * 18
    q, k, v, out, lse, *layout = ctx.saved_tensors
    if dout is None:
        dout = torch.zeros_like(out)
    needed = ctx.needs_input_grad[:3]
    gradients = torch.ops.ridgeline.attention_backward.default(
        dout, dlse, q, k, v, out, lse, *layout, needed, *ctx.options
    )
    given = (x if need else None for x, need in zip(gradients, needed, strict=True))
    return (*given, *(None,) * 15)


def _no_second_gradient(ctx, *_):
    raise NotImplementedError("ridgeline.attention: its gradient is not differentiable again")


torch.library.register_autograd("ridgeline::attention", _backward, setup_context=_setup)
torch.library.register_autograd("ridgeline::attention_backward", _no_second_gradient)
