"""Attention of queries to cached sequences: which operation runs.

``paged_decode`` reads the pages where they lie. With ``qv`` it is ``tied_decode``: V is the state
and K its RoPE key. What neither can say, a chunked mask, a window or soft cap with ``qv``, a left
pad in a cache of odd strides, is ``attention`` on gathered K and V; so are chunks of a prefill,
which it computes faster (``PREFILL_ROWS``).
"""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ridgeline.flash_attn_interface.arguments import Mask, chunk_ends
from ridgeline.flash_attn_interface.latent import tied_decode_by_head
from ridgeline.flash_attn_interface.pages import CachedSequences
from ridgeline.flash_attn_interface.queries import Queries
from ridgeline.ops.attention import attention
from ridgeline.ops.common import check
from ridgeline.ops.paged_decode import paged_decode

# Query rows of a kv head from which gathering K and V for ``attention`` pays. Time of paged_decode
# over time of both, bfloat16 on AVX2, 4 sequences of 1024: 64 rows 1.4 and 0.8, 256 rows 1.5 and
# 2.2, 512 and more 1.8 to 2.6; 16 and fewer at most 0.5 (2 kv heads of 128, and 8 of 64).
PREFILL_ROWS = 128


@dataclass(frozen=True)
class Options:
    """How to attend; the scales are ``[B, h_q]`` or ``None``, and of FP8 alone."""

    mask: Mask
    softmax_scale: float
    softcap: float
    num_splits: int
    score_scale: Tensor | None  # of q times that of k
    value_scale: Tensor | None


def attend(
    q: Tensor, qv: Tensor | None, queries: Queries, sequences: CachedSequences, options: Options
) -> tuple[Tensor, Tensor]:
    """``out`` in the layout of ``q`` and ``lse [B, h_q, L_q]`` or ``[h_q, total_q]``.

    FP8 computes in float32: its scales multiply queries and results, which is exact.
    """
    dtype = torch.bfloat16 if q.dtype == check.FP8 else q.dtype
    q = _scaled(q, queries, options.score_scale)
    direct = sequences.without_leftpad() if _pages_can(qv, options) else None
    if direct is None:
        out, lse = _gathered(q, qv, queries, sequences, options)
    else:
        out, lse = _paged(q, qv, queries, direct, options)
    out = _scaled(out, queries, options.value_scale).to(dtype)
    return out, lse.transpose(-1, -2).contiguous()


def _pages_can(qv: Tensor | None, options: Options) -> bool:
    mask = options.mask
    plain = mask.window == (None, None) and options.softcap == 0
    return mask.chunk == 0 and (qv is None or plain)


def _is_prefill(q: Tensor, sequences: CachedSequences, options: Options) -> bool:
    """Whether ``q [n, L_q, h_q, d]`` is many rows; given splits are a wish for paged_decode."""
    rows = q.shape[1] * (q.shape[2] // sequences.k_cache.shape[2])
    return rows >= PREFILL_ROWS and options.num_splits == 0


def _scaled(x: Tensor, queries: Queries, scale: Tensor | None) -> Tensor:
    """``x [B, L_q, h_q, d]`` or packed, times ``scale [B, h_q]``; FP8 becomes float32."""
    if x.dtype == check.FP8:
        x = x.float()
    if scale is None:
        return x
    if queries.cu_seqlens is None:
        return x * scale[:, None, :, None]
    return x * scale.repeat_interleave(queries.lengths, dim=0)[..., None]


def _paged(
    q: Tensor, qv: Tensor | None, queries: Queries, sequences: CachedSequences, options: Options
) -> tuple[Tensor, Tensor]:
    """``out`` and ``lse`` in the layout of ``q``, a group of equal lengths at a time."""
    lse_dtype = torch.float64 if q.dtype == torch.float64 else torch.float32
    out = q.new_empty(*q.shape[:-1], sequences.v_cache.shape[-1])
    lse = q.new_empty(q.shape[:-1], dtype=lse_dtype)
    for group in queries.groups():
        table, length = (group.sequences_of(x) for x in (sequences.table, sequences.length))
        rows = group.rows_of(q)
        if qv is None and _is_prefill(rows, sequences, options):
            part = Queries(rows.shape[0], rows.shape[0] * group.length, None, q.device)
            among = replace(sequences, table=table, length=length)
            result = _gathered(rows, None, part, among, options)
        elif qv is None:
            result = paged_decode(
                rows,
                sequences.k_cache,
                sequences.v_cache,
                table,
                length,
                softmax_scale=options.softmax_scale,
                causal=options.mask.causal,
                window=options.mask.window,
                softcap=options.softcap,
                num_splits=options.num_splits,
                return_lse=True,
            )
        else:
            result = tied_decode_by_head(
                group.rows_of(qv),
                rows,
                sequences.v_cache,
                sequences.k_cache,
                table,
                length,
                softmax_scale=options.softmax_scale,
                causal=options.mask.causal,
                num_splits=options.num_splits,
            )
        if group.rows is None:
            return result[0].view(out.shape), result[1].view(lse.shape)
        out[group.rows], lse[group.rows] = result
    return out, lse


def _gathered(
    q: Tensor, qv: Tensor | None, queries: Queries, sequences: CachedSequences, options: Options
) -> tuple[Tensor, Tensor]:
    """``attention`` on K and V gathered from the first token that any query sees."""
    mask = options.mask
    first = sequences.first_read(queries.lengths, mask.left)
    counts = (sequences.length - first).clamp(min=0)
    starts = torch.cat((counts.new_zeros(1), counts.cumsum(0)))
    sequence = torch.arange(queries.batch, device=q.device).repeat_interleave(counts)
    index = torch.arange(sequence.shape[0], device=q.device) - starts[sequence]
    at = sequences.pages_and_offsets(sequence, index + first[sequence])
    k, v = sequences.k_cache[at].to(q.dtype), sequences.v_cache[at].to(q.dtype)
    subtree_end = None
    if mask.chunk:  # chunks are counted from the left pad
        skipped = first if sequences.leftpad is None else first - sequences.leftpad
        skipped = skipped[sequence]
        subtree_end = (chunk_ends(index + skipped, mask.chunk) - skipped).int()
    rows = queries.packed(q)
    if qv is not None:
        rows, k = torch.cat((rows, queries.packed(qv)), dim=-1), torch.cat((k, v), dim=-1)
    out, lse = attention(
        rows,
        k,
        v,
        causal=mask.causal,
        softmax_scale=options.softmax_scale,
        window=mask.window,
        softcap=options.softcap,
        cu_seqlens_q=queries.starts(),
        cu_seqlens_k=starts.int(),
        subtree_end=subtree_end,
        return_lse=True,
    )
    return out.view(*q.shape[:-1], out.shape[-1]), lse.view(q.shape[:-1])
