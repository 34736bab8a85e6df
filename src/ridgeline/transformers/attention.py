"""The attention function: one call of one layer, sent to the operation that does it."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ridgeline.layers import rows
from ridgeline.ops.attention import attention
from ridgeline.ops.common import check
from ridgeline.transformers import inputs, latent
from ridgeline.transformers.decode import decode
from ridgeline.transformers.masks import MAX_DECODE
from ridgeline.transformers.memo import Memo
from ridgeline.transformers.windows import segments

_rows, _steps, _pieces = Memo(), Memo(), Memo()


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
    inputs.refuse(module, query, value, dropout, is_causal, kwargs)
    if sliding_window is not None:
        check.count("sliding_window", sliding_window, minimum=1)
    query, key, value = inputs.in_autocast(query, key, value)
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    softcap = 0.0 if softcap is None else softcap
    kind = inputs.kind_of(attention_mask, query, key.shape[2])
    packed = cu_seq_lens_q is not None or cu_seq_lens_k is not None
    learns = torch.is_grad_enabled() and any(x.requires_grad for x in (query, key, value))
    few = query.shape[2] <= MAX_DECODE and not (learns or packed or subtree_end is not None)
    if few and (kind == "span" or (kind is None and query.shape[2] < key.shape[2])):
        span = attention_mask if kind == "span" else None
        if span is None and query.shape[2] > 1:
            _rows(rows.behind_cache, query.shape[2], _of_text(position_ids), None)
        if latent.keeps_latents(module):
            return latent.absorbed_decode(module, query, key, value, span, scale), None
        return decode(query.transpose(1, 2), key, value, span, scale, sliding_window, softcap), None

    if latent.keeps_latents(module):
        key, value = latent.expand(module, key, value)
    call = WholeRows(query.transpose(1, 2), key, value, scale, sliding_window, softcap)
    if not packed:
        real = inputs.real_keys(kind, attention_mask)
        documents = inputs.documents(kind, attention_mask)
        return call.attend(_of_text(position_ids), subtree_end, real, documents), None
    if subtree_end is not None or kind in ("real", "span"):
        raise ValueError(
            "cu_seq_lens_q: expected neither subtree_end nor an attention_mask with padding beside "
            "it, each says alone what sees what"
        )
    starts_q = inputs.starts("cu_seq_lens_q", cu_seq_lens_q)
    starts_k = inputs.starts("cu_seq_lens_k", cu_seq_lens_k)
    return call.attend_packed(_of_text(position_ids), starts_q, starts_k), None


def _of_text(position_ids: Tensor | None) -> Tensor | None:
    """Positions with one axis; those with more, as of images, say nothing of documents."""
    return position_ids if position_ids is not None and position_ids.dim() == 2 else None


@dataclass(frozen=True)
class WholeRows:
    """``q [B, L_q, h_q, d]``, ``key`` and ``value [B, h_kv, L_k, d]``, and the layer's options."""

    q: Tensor
    key: Tensor
    value: Tensor
    scale: float
    window: int | None
    softcap: float

    def attend(
        self,
        position_ids: Tensor | None,
        subtree_end: Tensor | None,
        real: Tensor | None,
        documents: Tensor | None,
    ) -> Tensor:
        """Training, prefill, chunks of a prefill: ``[B, L_q, h_q, d_v]``."""
        batch, length = self.q.shape[:2]
        keys = self.key.shape[2] if real is None else real.shape[1]
        k, v = (x[:, :, :keys].transpose(1, 2) for x in (self.key, self.value))
        if keys != length:
            if subtree_end is not None:
                raise ValueError("subtree_end: expected no cached tokens before it, got some")
            layout = _rows(rows.behind_cache, length, position_ids, real)
        else:
            if subtree_end is not None:
                rows.check_subtree_end(subtree_end, batch, length)
            layout = _rows(rows.of_rows, position_ids, subtree_end, real, documents)
        ends, window, pieces = layout.subtree_end, self.window, None
        if window is not None and layout.branches:
            window, pieces = None, _pieces(segments, ends, window)
        if pieces is None:
            ends = None if ends is None else ends.expand(batch, keys)
            return self._call(self.q, k, v, window, subtree_end=ends)
        out = self._call(
            self.q.flatten(0, 1),
            k.flatten(0, 1)[pieces.keys],
            v.flatten(0, 1)[pieces.keys],
            self.window,
            cu_seqlens_q=pieces.cu_seqlens_q,
            cu_seqlens_k=pieces.cu_seqlens_k,
        )
        return out.unflatten(0, (batch, length))

    def attend_packed(
        self, position_ids: Tensor | None, starts_q: Tensor, starts_k: Tensor
    ) -> Tensor:
        """One row of sequences that begin at ``starts_q`` and ``starts_k [n + 1]`` int32."""
        check.shape("query", self.q, (1, *self.q.shape[1:]))
        if position_ids is not None:
            _steps(rows.check_packed_positions, position_ids, starts_q)
        k, v = (x[0].transpose(0, 1) for x in (self.key, self.value))
        return self._call(
            self.q[0], k, v, self.window, cu_seqlens_q=starts_q, cu_seqlens_k=starts_k
        )[None]

    def _call(
        self, q: Tensor, k: Tensor, v: Tensor, window: int | None, **row_layout: Tensor | None
    ) -> Tensor:
        return attention(
            q,
            k,
            v,
            causal=True,
            softmax_scale=self.scale,
            window=None if window is None else (window - 1, None),
            softcap=self.softcap,
            **row_layout,
        )
