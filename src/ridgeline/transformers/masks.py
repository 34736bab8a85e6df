"""What stands where transformers would build a mask: a row of numbers, never a square.

Attention gets ``None`` or an int32 tensor of four dims, which transformers hands through untouched:

- ``None``: causal, aligned at the last key;
- ``[B, 1, 1, n]``, real: 1 where a key is a token, 0 where it is padding; keys from n on, the free
  end of a static cache, do not exist. The stride of its rows is the number of all keys that
  transformers counted;
- ``[B, 2, 1, 1]``, span: the first real key of each row of a cache and the end of the last, with
  nothing but real keys between;
- ``[B, 1, L, 1]``, documents: the number of each token's document, by transformers' rule that
  positions which do not step by one begin a document.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedConfig
from transformers.masking_utils import causal_mask_function

from ridgeline.layers.rows import require
from ridgeline.transformers.memo import new_forward

MAX_DECODE = 16  # query tokens a step that still go to the decode kernels
_LAYERS = {"full_attention", "sliding_attention"}


def row_mask(
    batch_size: int,
    q_length: int,
    kv_length: int,
    q_offset: int | Tensor = 0,
    kv_offset: int = 0,
    mask_function: Callable = causal_mask_function,
    attention_mask: Tensor | None = None,
    local_size: int | None = None,
    use_vmap: bool = False,
    device: torch.device | str = "cpu",
    config: PreTrainedConfig | None = None,
    **_: Any,
) -> Tensor | None:
    """The mask function of transformers' ``AttentionMaskInterface``.

    Args:
        batch_size, q_length, kv_length: sizes of the queries and keys that attention will get.
        q_offset, kv_offset: position of the first of each; a static cache gives a tensor.
        mask_function: transformers' rule for one query and key. It is asked about neighbours only.
        attention_mask: ``[B, n]`` bool of the whole sequence, False for padding; n is at least the
            cached and new tokens, and keys past n are the free end of a static cache.
        local_size: keys that a query sees, itself included, where the mask has a window.
        use_vmap: set by transformers where a model brings a rule of its own.
        device: of the result.
        config: of the model.

    Raises:
        NotImplementedError, ValueError: the model or the mask is one that this attention cannot do.
    """
    new_forward()
    if config is not None:
        refuse_model(config)
    if local_size == 1 and (isinstance(q_offset, Tensor) or q_offset > 0):
        raise NotImplementedError(
            "sliding_window: expected at least 2 behind cached tokens, got 1, with which caches of "
            "transformers keep every token but count none"
        )
    if attention_mask is not None:
        _check_length(attention_mask, q_offset + q_length)
    if use_vmap:
        raise NotImplementedError(
            "attn_implementation='ridgeline': expected a causal mask, got a model that combines it "
            "with a mask function of its own; use 'sdpa' or 'eager'"
        )
    # In a window of one token, or the 0 of a model that has windows but uses none, neighbours do
    # not see each other; there the positions alone tell what is a document.
    neighbours = q_length > 1 and (local_size is None or local_size > 1)
    if mask_function is not causal_mask_function and neighbours:
        documents = _documents(mask_function, batch_size, q_length, q_offset, device)
        if documents is not None:
            # transformers reads documents from positions where nothing is padded or cached.
            if attention_mask is None and kv_length == q_length:
                return documents[:, None, :, None]
            require(
                (documents == 0).all(),
                "attn_implementation='ridgeline': expected every token to see the one before it, "
                "got a mask that cuts padded rows or cached ones",
            )
    return _visible(
        batch_size, q_length, kv_length, q_offset, kv_offset, attention_mask, torch.device(device)
    )


def refuse_model(config: PreTrainedConfig) -> None:
    """Raise ``NotImplementedError`` where layers or outputs are not those of plain attention."""
    other = sorted(set(getattr(config, "layer_types", None) or ()) - _LAYERS)
    if other:
        raise NotImplementedError(
            f"attn_implementation='ridgeline': expected layers of full or sliding attention, got "
            f"{', '.join(map(repr, other))} in {type(config).__name__}.layer_types"
        )
    if getattr(config, "output_attentions", False):
        raise ValueError("output_attentions: expected False, no kernel stores probabilities")


def _check_length(attention_mask: Tensor, tokens: int | Tensor) -> None:
    """Whether ``[B, n]`` speaks of all ``tokens``, the cached and the new."""
    message = "attention_mask: expected a value for each cached and each new token"
    got = attention_mask.shape[1]
    if isinstance(tokens, Tensor) and torch.compiler.is_compiling():
        require(tokens <= got, f"{message}, got fewer")
    elif int(tokens) > got:
        raise ValueError(
            f"{message}, [B, {int(tokens)}], got {list(attention_mask.shape)}; in a decode loop it "
            "grows by what the model is given"
        )


def _documents(
    mask_function: Callable, batch: int, length: int, offset: int | Tensor, device: Any
) -> Tensor | None:
    """``[B, L]`` int32 numbers of documents, ``None`` where each row is one.

    A rule that only looks back and never forgets its neighbour is causal, with a window or without;
    the window itself comes to attention with the layer. Where a token does not see the one before
    it a document begins.
    """
    rows = torch.arange(batch, device=device)[:, None]
    first = torch.arange(length - 1, device=device)[None] + offset
    ahead = mask_function(rows, 0, first, first + 1)
    require(
        ~ahead.any(),
        "attn_implementation='ridgeline': expected a causal mask, got one that looks ahead",
    )
    cut = ~mask_function(rows, 0, first + 1, first).expand(batch, length - 1)
    if not torch.compiler.is_compiling() and not cut.any():
        return None
    return torch.nn.functional.pad(cut.cumsum(1, dtype=torch.int32), (1, 0))


def _visible(
    batch: int,
    q_length: int,
    kv_length: int,
    q_offset: int | Tensor,
    kv_offset: int,
    attention_mask: Tensor | None,
    device: torch.device,
) -> Tensor | None:
    """Which keys are real, as ``None``, a span or flags (see the module)."""
    compiling = torch.compiler.is_compiling()
    stop = q_offset + q_length - kv_offset
    tight = not isinstance(stop, Tensor) and stop == kv_length
    past = isinstance(q_offset, Tensor) or q_offset > 0
    real = None
    if attention_mask is not None:
        real = _keys(attention_mask, kv_offset, kv_length)
        if not compiling and real[:, : int(stop)].all():
            real = None
    if real is None and tight:
        return None
    if past and q_length <= MAX_DECODE:
        span = _span(batch, stop, real, device, compiling)
        if span is not None:
            return span
    # Flags end with the last key, which says what a static cache holds.
    stop = kv_length if tight else int(stop)
    if real is None:
        real = torch.ones(batch, kv_length, dtype=torch.int32, device=device)
    return real.to(torch.int32)[:, None, None, :stop]


def _keys(attention_mask: Tensor, offset: int, length: int) -> Tensor:
    """The part of ``attention_mask`` that belongs to the keys, ``[B, length]``."""
    missing = offset + length - attention_mask.shape[1]
    if missing > 0:
        attention_mask = torch.nn.functional.pad(attention_mask, (0, missing))
    return attention_mask[:, offset : offset + length]


def _span(
    batch: int, stop: int | Tensor, real: Tensor | None, device: torch.device, compiling: bool
) -> Tensor | None:
    """``[B, 2, 1, 1]``, or ``None`` where padding stands between real keys."""
    last = torch.as_tensor(stop, device=device).to(torch.int32).reshape(1, 1).expand(batch, 1)
    first = torch.zeros_like(last)
    if real is not None:
        key = torch.arange(real.shape[1], device=device)
        real = real & (key < last)
        first = real.int().argmax(1, keepdim=True).to(torch.int32)
        whole = (real.sum(1, keepdim=True) == last - first).all()
        if compiling:
            require(whole, "attention_mask: expected padding on the left only")
        elif not whole:
            return None
    return torch.stack((first, last), dim=1)[..., None]
