"""What a layer hands to its attention: refused, or read."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ridgeline.ops.common import check
from ridgeline.transformers.memo import Memo

MAX_DIM = 256  # of the kernels for whole rows
_REFUSED = {
    "s_aux": "attention sinks",
    "position_bias": "a bias of the scores",
    "cache": "the cache of continuous batching",
}
_made = Memo()


def refuse(
    module: nn.Module,
    query: Tensor,
    value: Tensor,
    dropout: float,
    is_causal: bool | None,
    options: Mapping[str, Any],
) -> None:
    """Raise for what no kernel does, before one starts."""
    name = f"attn_implementation='ridgeline' in {type(module).__name__}"
    if not (getattr(module, "is_causal", True) if is_causal is None else is_causal):
        raise NotImplementedError(f"{name}: expected causal attention, got is_causal=False")
    if dropout:
        raise NotImplementedError(f"dropout: expected 0, got {dropout}; set attention_dropout=0.0")
    if options.get("output_attentions"):
        raise ValueError("output_attentions: expected False, no kernel stores probabilities")
    for option, what in _REFUSED.items():
        if options.get(option) is not None:
            raise NotImplementedError(f"{name}: {option} ({what}) is not supported")
    for x in (query, value):
        if x.shape[-1] > MAX_DIM:
            raise NotImplementedError(f"{name}: head dims are at most {MAX_DIM}, got {x.shape[-1]}")


def kind_of(mask: Tensor | None, query: Tensor, keys: int) -> str | None:
    """Which of ``row_mask``'s results this is, for ``keys`` keys a row."""
    if mask is None:
        return None
    batch, length = query.shape[0], query.shape[2]
    if isinstance(mask, Tensor) and mask.dtype == torch.int32 and mask.dim() == 4:
        if mask.shape[:3] == (batch, 1, 1):
            counted = mask.stride(0)
            # A mask that was moved to another device does not tell.
            if counted not in (keys, mask.shape[3]):
                raise ValueError(
                    f"attention_mask: expected [B, {keys}], a value for each token, got "
                    f"[B, {counted}]"
                )
            return "real"
        if mask.shape == (batch, 2, 1, 1):
            return "span"
        if mask.shape == (batch, 1, length, 1):
            return "documents"
    got = list(mask.shape) if isinstance(mask, Tensor) else type(mask).__name__
    raise ValueError(
        "attention_mask: expected None or a mask [B, L] of padding, got a mask of its own kind "
        f"({got}); describe documents and trees by position_ids or subtree_end"
    )


def real_keys(kind: str | None, mask: Tensor | None) -> Tensor | None:
    """``[B, n]`` bool of the n keys that exist, False for padding; ``None``: all are real."""
    if kind == "real":
        return _made(_is_set, mask)
    return _made(_in_span, mask) if kind == "span" else None


def documents(kind: str | None, mask: Tensor | None) -> Tensor | None:
    """``[B, L]`` int32 numbers of documents; ``None``: not told."""
    return _made(_numbers, mask) if kind == "documents" else None


def _is_set(mask: Tensor) -> Tensor:
    return mask[:, 0, 0] != 0


def _numbers(mask: Tensor) -> Tensor:
    return mask[:, 0, :, 0]


def _in_span(span: Tensor) -> Tensor:
    first, end = span[:, 0, 0], span[:, 1, 0]
    key = torch.arange(int(end.max()), device=span.device)
    return (key >= first) & (key < end)


def starts(name: str, cu_seq_lens: Tensor | None) -> Tensor:
    """``[n + 1]`` int32; the keyword ``name`` of the model."""
    check.tensor(name, cu_seq_lens)
    check.shape(name, cu_seq_lens, ("n + 1",))
    return cu_seq_lens.to(torch.int32)


def in_autocast(*tensors: Tensor) -> list[Tensor]:
    """As autocast would hand them to PyTorch's own attention: the rotation widens q and k."""
    device = tensors[0].device.type
    if not torch.is_autocast_enabled(device):
        return list(tensors)
    dtype = torch.get_autocast_dtype(device)
    return [x.to(dtype) if x.dtype == torch.float32 else x for x in tensors]
