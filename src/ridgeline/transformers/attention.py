"""The attention function: one call of one layer, sent to the operation that does it."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ridgeline.layers import rows
from ridgeline.ops.attention import attention
from ridgeline.ops.common import check
from ridgeline.transformers.decode import decode
from ridgeline.transformers.masks import MAX_DECODE
from ridgeline.transformers.memo import Memo
from ridgeline.transformers.windows import segments

MAX_DIM = 256  # of the kernels for whole rows
_REFUSED = {
    "s_aux": "attention sinks",
    "position_bias": "a bias of the scores",
    "cache": "the cache of continuous batching",
}
_flags, _rows, _steps, _pieces = Memo(), Memo(), Memo(), Memo()


def attention_forward(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    is_causal: bool | None = None,
    position_ids: Tensor | None = None,
    subtree_end: Tensor | None = None,
    cu_seq_lens_q: Tensor | None = None,
    cu_seq_lens_k: Tensor | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """The attention function of transformers' ``AttentionInterface``.

    Args:
        module: the layer, for ``is_causal``.
        query: ``[B, h_q, L_q, d]``, rotated.
        key, value: ``[B, h_kv, L_k, d]`` and ``[B, h_kv, L_k, d_v]``, the cached ones first.
        attention_mask: what ``row_mask`` made.
        dropout: 0.
        scaling: factor of the scores, ``d ** -0.5`` if None.
        sliding_window: keys that a query sees, itself included.
        softcap: scores become ``softcap * tanh(score / softcap)``.
        is_causal: True, or None for the layer's own.
        position_ids: ``[B, L_q]``; where they restart at 0, a row holds several documents.
        subtree_end: ``[B, L]`` int32, a keyword of the model: packed rows that share prefixes, as
            ``ridgeline.subtree_end`` makes them.
        cu_seq_lens_q, cu_seq_lens_k: ``[n + 1]``, where packed sequences start, as for
            transformers' flash attention; the batch is one row.

    Returns:
        ``[B, L_q, h_q, d_v]``, and None for the probabilities, which nothing stores.

    Raises:
        ValueError, TypeError, NotImplementedError: an option or input that cannot be done.
    """
    _refuse(module, query, value, dropout, is_causal, kwargs)
    if sliding_window is not None:
        check.count("sliding_window", sliding_window, minimum=1)
    query, key, value = _in_autocast(query, key, value)
    call = Call(
        query.transpose(1, 2),
        key,
        value,
        scale=query.shape[-1] ** -0.5 if scaling is None else scaling,
        window=sliding_window,
        softcap=0.0 if softcap is None else softcap,
    )
    kind = _kind_of(attention_mask, query)
    if cu_seq_lens_q is not None or cu_seq_lens_k is not None:
        if subtree_end is not None or kind in ("real", "span"):
            raise ValueError(
                "cu_seq_lens_q: expected neither subtree_end nor an attention_mask with padding "
                "beside it, each says alone what sees what"
            )
        return call.packed(position_ids, cu_seq_lens_q, cu_seq_lens_k), None
    learns = torch.is_grad_enabled() and any(x.requires_grad for x in (query, key, value))
    few = query.shape[2] <= MAX_DECODE and not learns and subtree_end is None
    if few and (kind == "span" or (kind is None and query.shape[2] < key.shape[2])):
        span = attention_mask if kind == "span" else None
        return call.decode(span), None
    return call.whole(kind, attention_mask, position_ids, subtree_end), None


@dataclass(frozen=True)
class Call:
    """``q [B, L_q, h_q, d]``, ``key`` and ``value [B, h_kv, L_k, d]``, and the layer's options."""

    q: Tensor
    key: Tensor
    value: Tensor
    scale: float
    window: int | None
    softcap: float

    def decode(self, span: Tensor | None) -> Tensor:
        return decode(self.q, self.key, self.value, span, self.scale, self.window, self.softcap)

    def packed(
        self, position_ids: Tensor | None, starts_q: Tensor | None, starts_k: Tensor | None
    ) -> Tensor:
        """One row of sequences that ``cu_seq_lens_*`` tell apart."""
        starts_q, starts_k = (_starts(n, x) for n, x in (("q", starts_q), ("k", starts_k)))
        check.shape("query", self.q, (1, *self.q.shape[1:]))
        if position_ids is not None:
            _steps(rows.check_packed_positions, position_ids, starts_q)
        out = self._attend(
            self.q[0],
            self.key[0].transpose(0, 1),
            self.value[0].transpose(0, 1),
            self.window,
            cu_seqlens_q=starts_q,
            cu_seqlens_k=starts_k,
        )
        return out[None]

    def whole(
        self,
        kind: str | None,
        mask: Tensor | None,
        position_ids: Tensor | None,
        subtree_end: Tensor | None,
    ) -> Tensor:
        """Rows whose keys end with the last query: training, prefill, chunks of a prefill."""
        real, documents = _real(kind, mask), mask[:, 0, :, 0] if kind == "documents" else None
        batch, length = self.q.shape[:2]
        keys = self.key.shape[2] if real is None else real.shape[1]
        k, v = (x[:, :, :keys].transpose(1, 2) for x in (self.key, self.value))
        if position_ids is not None and position_ids.dim() != 2:
            position_ids = None  # of several axes, as of images: the text alone steps by one
        if keys != length:
            if subtree_end is not None:
                raise ValueError("subtree_end: expected no cached tokens before it, got some")
            layout = _rows(rows.behind_cache, length, position_ids, real)
        else:
            if subtree_end is not None:
                rows.check_subtree_end(subtree_end, batch, length)
            layout = _rows(rows.of_rows, position_ids, subtree_end, real, documents)
        window, ends = self.window, layout.subtree_end
        pieces = None
        if window is not None and layout.branches:
            window, pieces = None, _pieces(segments, ends, window)
        if pieces is None:
            ends = None if ends is None else ends.expand(batch, keys)
            return self._attend(self.q, k, v, window, subtree_end=ends)
        out = self._attend(
            self.q.flatten(0, 1),
            k.flatten(0, 1)[pieces.keys],
            v.flatten(0, 1)[pieces.keys],
            self.window,
            cu_seqlens_q=pieces.cu_seqlens_q,
            cu_seqlens_k=pieces.cu_seqlens_k,
        )
        return out.unflatten(0, (batch, length))

    def _attend(
        self, q: Tensor, k: Tensor, v: Tensor, window: int | None, **rows_of: Tensor | None
    ) -> Tensor:
        return attention(
            q,
            k,
            v,
            causal=True,
            softmax_scale=self.scale,
            window=None if window is None else (window - 1, None),
            softcap=self.softcap,
            **rows_of,
        )


def _refuse(
    module: nn.Module,
    query: Tensor,
    value: Tensor,
    dropout: float,
    is_causal: bool | None,
    options: dict[str, Any],
) -> None:
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


def _kind_of(mask: Tensor | None, query: Tensor) -> str | None:
    """Which of ``row_mask``'s results this is."""
    if mask is None:
        return None
    batch, length = query.shape[0], query.shape[2]
    if isinstance(mask, Tensor) and mask.dtype == torch.int32 and mask.dim() == 4:
        if mask.shape[:3] == (batch, 1, 1):
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


def _real(kind: str | None, mask: Tensor | None) -> Tensor | None:
    """``[B, n]`` bool of the n keys that exist, False for padding; ``None``: all are real."""
    if kind == "real":
        return _flags(_is_set, mask)
    return _flags(_in_span, mask) if kind == "span" else None


def _is_set(mask: Tensor) -> Tensor:
    return mask[:, 0, 0] != 0


def _in_span(span: Tensor) -> Tensor:
    first, end = span[:, 0, 0], span[:, 1, 0]
    key = torch.arange(int(end.max()), device=span.device)
    return (key >= first) & (key < end)


def _starts(side: str, starts: Tensor | None) -> Tensor:
    check.tensor(f"cu_seq_lens_{side}", starts)
    check.shape(f"cu_seq_lens_{side}", starts, ("n + 1",))
    return starts.to(torch.int32)


def _in_autocast(*tensors: Tensor) -> list[Tensor]:
    """As autocast would hand them to PyTorch's own attention: the rotation widens q and k."""
    device = tensors[0].device.type
    if not torch.is_autocast_enabled(device):
        return list(tensors)
    dtype = torch.get_autocast_dtype(device)
    return [x.to(dtype) if x.dtype == torch.float32 else x for x in tensors]
