"""The torch.library operation ``ridgeline::merge``: schema, checks, fake, autograd."""

import torch
from torch import Tensor

from ridgeline.ops.common import check, device
from ridgeline.ops.common.dispatch import pick
from ridgeline.ops.merge import reference

torch.library.define("ridgeline::merge", "(Tensor outs, Tensor lses) -> (Tensor, Tensor)")
torch.library.define(
    "ridgeline::merge_backward",
    "(Tensor outs, Tensor lses, Tensor grad_out, Tensor grad_lse) -> (Tensor, Tensor)",
)
torch.library.impl("ridgeline::merge_backward", ("cpu", "cuda"), reference.merge_backward)


def check_shapes(outs: Tensor, lses: Tensor) -> None:
    if outs.dim() < 2 or outs.shape[0] == 0:
        raise ValueError(f"outs: expected [S, ..., d] with S >= 1, got {list(outs.shape)}")
    check.shape("lses", lses, tuple(outs.shape[:-1]))
    check.dtype("outs", outs, check.FLOATS)
    check.dtype("lses", lses, (torch.float32, torch.float64))
    check.same_device(outs=outs, lses=lses)


@torch.library.register_fake("ridgeline::merge")
def _fake(outs, lses):
    check_shapes(outs, lses)
    return outs.new_empty(outs.shape[1:]), lses.new_empty(lses.shape[1:])


@torch.library.register_fake("ridgeline::merge_backward")
def _fake_backward(outs, lses, grad_out, grad_lse):
    return outs.new_empty(outs.shape), lses.new_empty(lses.shape)


@torch.library.impl("ridgeline::merge", ("cpu", "cuda"))
def _run(outs: Tensor, lses: Tensor) -> tuple[Tensor, Tensor]:
    reasons = {"triton": lambda: device.merge_unsupported(outs, lses), "reference": lambda: None}
    match pick("auto", reasons):
        case "triton":
            from ridgeline.ops.merge import triton

            return triton.merge(outs, lses)
        case _:
            return reference.merge(outs, lses)


def _setup(ctx, inputs, output):
    ctx.save_for_backward(*inputs)


def _backward(ctx, grad_out, grad_lse):
    return torch.ops.ridgeline.merge_backward(*ctx.saved_tensors, grad_out, grad_lse)


torch.library.register_autograd("ridgeline::merge", _backward, setup_context=_setup)
