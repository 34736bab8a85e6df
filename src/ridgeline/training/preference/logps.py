"""Log-probabilities of labelled tokens from hidden states, with no ``[tokens, vocab]`` tensor.

Only labelled positions are projected through the language-modelling head, some rows at a time; a
backward projects them again, as Liger-Kernel (arXiv 2410.10989) and TRL do.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ridgeline.ops.common import check
from ridgeline.training.preference.trees import IGNORE

METRICS = ("entropy", "mean_logits", "is_top1", "log_sum_sq_probs")
CHUNK_ELEMENTS = 2**24  # of logits at once: 64 MB in float32, 512 rows of a vocabulary of 32,000


@dataclass(frozen=True)
class LogitTransform:
    """What a model does to the head's products y before the softmax.

    ``softcap * tanh(scale * y / softcap) / temperature``, or without a soft cap
    ``scale * y / temperature``.

    Attributes:
        softcap: Gemma's ``final_logit_softcapping``; 0 for none.
        scale: Cohere's ``logit_scale``, the inverse of Granite's ``logits_scaling``.
        temperature: of the policy that sampled, in GRPO.
    """

    softcap: float = 0.0
    scale: float = 1.0
    temperature: float = 1.0

    def __post_init__(self) -> None:
        check.finite("softcap", self.softcap, minimum=0.0)
        check.finite("scale", self.scale)
        if not check.finite("temperature", self.temperature) > 0:
            raise ValueError(f"temperature: expected more than 0, got {self.temperature}")

    def apply(self, y: Tensor) -> Tensor:
        """The logits x of products y."""
        x = y * self.scale
        if self.softcap:
            x = self.softcap * (x / self.softcap).tanh()
        return x / self.temperature

    def slope(self, x: Tensor) -> Tensor | float:
        """dx / dy, as a function of x."""
        found = self.scale / self.temperature
        if self.softcap:
            return found * (1 - (x * (self.temperature / self.softcap)) ** 2)
        return found


@dataclass(frozen=True, eq=False)
class TokenLogps:
    """Per token ``[B, L]``, 0 where there is no label; in float32, of float64 inputs in float64.

    Attributes:
        logps: log-probability of the label in nats; carries the gradient.
        metrics: those asked for, without gradient. ``entropy`` of the prediction in nats;
            ``mean_logits`` over the vocabulary; ``is_top1`` (bool), whether the label is the
            likeliest token; ``log_sum_sq_probs``, the log of the sum of squared probabilities.
    """

    logps: Tensor
    metrics: dict[str, Tensor] = field(default_factory=dict)


def token_logps(
    hidden: Tensor,
    head: Tensor | nn.Module,
    shift_labels: Tensor,
    *,
    bias: Tensor | None = None,
    transform: LogitTransform | None = None,
    metrics: Sequence[str] = (),
    chunk: int | None = None,
) -> TokenLogps:
    """Log-probabilities of labels under ``softmax(transform(head(hidden)))``.

    Products are in hidden's dtype or autocast's; the softmax is in float32 at least.

    Args:
        hidden: ``[B, L, hidden_size]``, what the head takes.
        head: the weight ``[vocab, hidden_size]``, or a module from ``[n, hidden_size]`` to
            ``[n, vocab]``. A plain ``nn.Linear`` is used as its weight and bias; any other module,
            such as one with an adapter or a sharded one, is called on chunks and checkpointed.
        shift_labels: ``[B, L]`` int64 below vocab, -100 where there is none.
        bias: ``[vocab]``, of a head given as a tensor.
        transform: of the products; ``None`` for none.
        metrics: names in ``METRICS``.
        chunk: rows of logits at once; ``None`` for 64 MB of them in float32.

    Raises:
        TypeError, ValueError: an argument does not fit.
    """
    check.shape("hidden", check.tensor("hidden", hidden), ("B", "L", "hidden_size"))
    check.dtype("hidden", hidden, check.FLOATS)
    check.shape("shift_labels", check.tensor("shift_labels", shift_labels), hidden.shape[:2])
    check.dtype("shift_labels", shift_labels, (torch.int64,))
    for name in metrics:
        if name not in METRICS:
            raise ValueError(f"metrics: expected some of {', '.join(METRICS)}, got {name!r}")
    if chunk is not None:
        check.count("chunk", chunk, minimum=1)
    if isinstance(head, nn.Module) and bias is not None:
        raise ValueError("bias: expected None with a module as head, got a tensor")
    if _is_plain_linear(head):
        head, bias = head.weight, head.bias
    if isinstance(head, Tensor):
        check.shape("head", head, ("vocab", hidden.shape[2]))
        if bias is not None:
            check.shape("bias", bias, (head.shape[0],))

    labels = shift_labels.flatten()
    at = (labels != IGNORE).nonzero()[:, 0]
    rows, targets = hidden.flatten(0, 1).index_select(0, at), labels[at]
    transform = LogitTransform() if transform is None else transform
    if isinstance(head, Tensor):
        limit = chunk or max(1, CHUNK_ELEMENTS // head.shape[0])
        found = _Projection.apply(rows, head, bias, targets, transform, limit, tuple(metrics))
    else:
        found = _of_module(rows, head, targets, transform, chunk, tuple(metrics))
    logps, *rest = (_at_positions(x, at, shift_labels) for x in found)
    return TokenLogps(logps, dict(zip(metrics, rest, strict=True)))


class _Projection(torch.autograd.Function):
    """Log-probabilities ``[n]`` of ``targets`` and metrics, of a head that is a matrix."""

    @staticmethod
    def forward(
        ctx: Any,
        rows: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        targets: Tensor,
        transform: LogitTransform,
        chunk: int,
        metrics: tuple[str, ...],
    ) -> tuple[Tensor, ...]:
        device = rows.device.type
        autocast = torch.is_autocast_enabled(device)
        ctx.dtype = torch.get_autocast_dtype(device) if autocast else rows.dtype
        ctx.transform, ctx.chunk = transform, chunk
        wide, narrow = _wide(rows), weight.to(ctx.dtype)
        parts = [
            _statistics(transform.apply(_product(h, narrow, bias).to(wide)), target, metrics)
            for h, target in zip(rows.to(ctx.dtype).split(chunk), targets.split(chunk), strict=True)
        ]
        logps, lse, *rest = (torch.cat(x) for x in zip(*parts, strict=True))
        ctx.save_for_backward(rows, weight, bias, targets, lse)
        ctx.mark_non_differentiable(*rest)
        return logps, *rest

    @staticmethod
    def backward(ctx: Any, grad: Tensor, *_: Any) -> tuple[Tensor | None, ...]:
        rows, weight, bias, targets, lse = ctx.saved_tensors
        for_rows, for_weight, for_bias = ctx.needs_input_grad[:3]
        wide, narrow = _wide(rows), weight.to(ctx.dtype)
        grad_rows = torch.empty_like(rows) if for_rows else None
        grad_weight = torch.zeros_like(weight, dtype=wide) if for_weight else None
        grad_bias = torch.zeros_like(bias, dtype=wide) if for_bias else None
        for start in range(0, len(rows), ctx.chunk):
            some = slice(start, start + ctx.chunk)
            h, target = rows[some].to(ctx.dtype), targets[some, None]
            x = ctx.transform.apply(_product(h, narrow, bias).to(wide))
            slope = ctx.transform.slope(x)
            # d logp / d x = one-hot - softmax
            g = x.sub_(lse[some, None]).exp_().neg_()
            g.scatter_add_(1, target, torch.ones_like(target, dtype=wide))
            g = g.mul_(grad[some, None]).mul_(slope)
            if for_bias:
                grad_bias += g.sum(0)
            g = g.to(ctx.dtype)
            if for_rows:
                grad_rows[some] = g @ narrow
            if for_weight:
                grad_weight += g.T @ h
        grad_weight = None if grad_weight is None else grad_weight.to(weight.dtype)
        grad_bias = None if grad_bias is None else grad_bias.to(bias.dtype)
        return grad_rows, grad_weight, grad_bias, None, None, None, None


def _of_module(
    rows: Tensor,
    head: nn.Module,
    targets: Tensor,
    transform: LogitTransform,
    chunk: int | None,
    metrics: tuple[str, ...],
) -> list[Tensor]:
    """The same of any head, each chunk checkpointed."""
    wide = _wide(rows)

    def of(h: Tensor, target: Tensor) -> tuple[Tensor, ...]:
        logps, _, *rest = _statistics(transform.apply(head(h).to(wide)), target, metrics)
        return logps, *(x.detach() for x in rest)

    if chunk is None:
        vocab = getattr(head, "out_features", None)
        chunk = max(1, CHUNK_ELEMENTS // vocab) if isinstance(vocab, int) else 512
    parts = [
        checkpoint(of, h, target, use_reentrant=False)
        for h, target in zip(rows.split(chunk), targets.split(chunk), strict=True)
    ]
    return [torch.cat(x) for x in zip(*parts, strict=True)]


def _statistics(x: Tensor, targets: Tensor, metrics: Sequence[str]) -> tuple[Tensor, ...]:
    """Of logits ``[n, vocab]``: log-probability and lse ``[n]``, then the metrics."""
    lse = x.logsumexp(1)
    logps = x.gather(1, targets[:, None])[:, 0] - lse
    with torch.no_grad():
        return logps, lse, *(_metric(name, x, lse, targets) for name in metrics)


def _metric(name: str, x: Tensor, lse: Tensor, targets: Tensor) -> Tensor:
    match name:
        case "entropy":
            return lse - ((x - lse[:, None]).exp_() * x).sum(1)
        case "mean_logits":
            return x.mean(1)
        case "is_top1":
            return x.argmax(1) == targets
        case _:
            return (2 * x).logsumexp(1) - 2 * lse


def _product(h: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    return h @ weight.T if bias is None else torch.addmm(bias.to(h.dtype), h, weight.T)


def _wide(x: Tensor) -> torch.dtype:
    return torch.promote_types(x.dtype, torch.float32)


def _at_positions(x: Tensor, at: Tensor, like: Tensor) -> Tensor:
    """``x [n]`` at the flat positions of ``like [B, L]``, 0 elsewhere."""
    return x.new_zeros(like.numel()).index_copy(0, at, x).view(like.shape)


def _is_plain_linear(head: Tensor | nn.Module) -> bool:
    """Whether the head is its weight and bias alone: no subclass, hook or sharded parameter."""
    if type(head) is not nn.Linear or type(head.weight) is not nn.Parameter:
        return False
    return not (head._forward_hooks or head._forward_pre_hooks or "forward" in vars(head))
