"""Attention to a cache, after appending to it."""

import torch
from torch import Tensor

from ridgeline.flash_attn_interface import arguments, pages
from ridgeline.flash_attn_interface.attend import Options, attend
from ridgeline.flash_attn_interface.pages import CachedSequences
from ridgeline.flash_attn_interface.queries import check_starts, lay_out
from ridgeline.flash_attn_interface.rotary import check_positions, check_tables, rotate
from ridgeline.ops.common import check


@torch.no_grad()
def flash_attn_with_kvcache(
    q: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    k: Tensor | None = None,
    v: Tensor | None = None,
    qv: Tensor | None = None,
    rotary_cos: Tensor | None = None,
    rotary_sin: Tensor | None = None,
    cache_seqlens: int | Tensor | None = None,
    cache_batch_idx: Tensor | None = None,
    cache_leftpad: Tensor | None = None,
    page_table: Tensor | None = None,
    cu_seqlens_q: Tensor | None = None,
    cu_seqlens_k_new: Tensor | None = None,
    max_seqlen_q: int | None = None,
    rotary_seqlens: Tensor | None = None,
    q_descale: Tensor | None = None,
    k_descale: Tensor | None = None,
    v_descale: Tensor | None = None,
    softmax_scale: float | None = None,
    causal: bool = False,
    window_size: tuple[int, int] = (-1, -1),
    attention_chunk: int = 0,
    softcap: float = 0.0,
    rotary_interleaved: bool = True,
    scheduler_metadata: Tensor | None = None,
    num_splits: int = 0,
    pack_gqa: bool | None = None,
    sm_margin: int = 0,
    return_softmax_lse: bool = False,
) -> Tensor | tuple[Tensor, Tensor, Tensor, Tensor]:
    """Append ``k`` and ``v`` to a cache in place, if given, then attend to it.

    A sequence then has ``n = cache_seqlens + L_new`` tokens, ``n - cache_leftpad`` of them real;
    query i of its ``L_q`` stands at token ``n - L_q + i``. All arguments are checked before a
    token is written. Not differentiable.

    Args:
        q: ``[B, L_q, h_q, d]``, or ``[total_q, h_q, d]`` with ``cu_seqlens_q``; bfloat16, float16,
            float32, float64 or float8_e4m3fn.
        k_cache: ``[B_cache, L, h_kv, d]``, or ``[num_pages, page_size, h_kv, d]`` with
            ``page_table``; any page size, any strides with a contiguous last dim, dtype of ``q``.
        v_cache: the same with ``d_v``.
        k: ``[B, L_new, h_kv, d]``, or ``[total_new, h_kv, d]`` with ``cu_seqlens_k_new``; stored at
            ``cache_seqlens``.
        v: the same with ``d_v``.
        qv: ``[..., h_q, d_v]`` as ``q``: scores become ``q · k + qv · v``. Not with FP8.
        rotary_cos, rotary_sin: ``[L_rotary, r]`` in the dtype of ``q`` or float32; turn the first
            2 r dims of ``q`` and ``k``. Only with ``k``. New key i turns by row
            ``cache_seqlens + i``; query i too if ``causal`` or a window or chunk is given, else all
            queries by row ``cache_seqlens``.
        cache_seqlens: tokens before appending, with the left pad: an int or ``[B]`` int32; ``None``
            for a full cache.
        cache_batch_idx: ``[B]`` int32, each sequence's row of the cache, or of ``page_table``.
        cache_leftpad: ``[B]`` int32, where each sequence starts.
        page_table: ``[B, max_pages]`` int32, page ids in order. Those not needed are not read.
        cu_seqlens_q, cu_seqlens_k_new: ``[B + 1]`` int32, starts in packed ``q``, and ``k``, ``v``.
        max_seqlen_q: at least the longest run of queries, or ``None``; a hint.
        rotary_seqlens: ``[B]`` int32, in the place of ``cache_seqlens`` for rotation; without
            ``rotary_cos`` it has no effect.
        q_descale, k_descale, v_descale: float32 ``[B, h_kv]``, what to multiply FP8 by.
        softmax_scale, causal, window_size, attention_chunk, softcap: as ``flash_attn_func``.
        rotary_interleaved: pairs are dims ``(2 i, 2 i + 1)``, else ``(i, i + r)``.
        scheduler_metadata: of ``get_scheduler_metadata``; a hint.
        num_splits: 0 balances over the batch; a number cuts each sequence by its own length.
        pack_gqa, sm_margin: hints; they change nothing.
        return_softmax_lse: also return the log-sum-exp.

    Returns:
        ``out`` as ``q`` with ``d_v`` (bfloat16 for FP8); with ``return_softmax_lse``
        ``(out, lse, empty, empty)``, ``lse [B, h_q, L_q]`` or ``[h_q, total_q]``. A query that sees
        no token gives 0 and -inf.

    Raises:
        TypeError, ValueError: an argument is wrong; the message names it. Nothing was written.
        NotImplementedError: ``attention_chunk`` without ``causal``, or ``qv`` with FP8.
    """
    check.tensor("q", q)
    q, k, v, qv = (arguments.dense_last_dim(x) for x in (q, k, v, qv))
    queries = lay_out(q, cu_seqlens_q, max_seqlen_q)
    check.dtype("q", q, (*check.FLOATS, check.FP8))
    if min(q.shape[-2:]) == 0:
        raise ValueError(f"q: expected at least one head of width 1, got {list(q.shape)}")
    pages.check_caches(k_cache, v_cache, q, written=k is not None)
    options = _options(
        q,
        v_cache,
        qv,
        queries.batch,
        arguments.mask(causal, window_size, attention_chunk),
        softmax_scale,
        softcap,
        num_splits,
        (q_descale, k_descale, v_descale),
    )
    arguments.schedule_hints(num_splits, pack_gqa, sm_margin)
    check.flag("return_softmax_lse", return_softmax_lse)
    if scheduler_metadata is not None:
        check.tensor("scheduler_metadata", scheduler_metadata)
        check.dtype("scheduler_metadata", scheduler_metadata, (torch.int32,))

    new_lengths = _new_lengths(k, v, k_cache, v_cache, cu_seqlens_k_new, queries.batch)
    table = pages.make_table(k_cache, page_table, cache_batch_idx, queries.batch)
    before = _lengths(cache_seqlens, k_cache, table, new_lengths, queries.batch)
    if cache_leftpad is not None:
        pages.per_sequence("cache_leftpad", cache_leftpad, k_cache, queries.batch)
    length = before if new_lengths is None else before + new_lengths
    sequences = CachedSequences(k_cache, v_cache, table, length, cache_leftpad)
    pages.check_values(
        sequences,
        before,
        new_lengths,
        lambda: sequences.first_read(queries.lengths, options.mask.left),
    )
    check.flag("rotary_interleaved", rotary_interleaved)
    turn_from = before
    if rotary_seqlens is not None:
        turn_from = pages.per_sequence("rotary_seqlens", rotary_seqlens, k_cache, queries.batch)
    turned = rotary_cos is not None or rotary_sin is not None
    if turned:
        check_tables(rotary_cos, rotary_sin, q)
        if k is None:
            raise ValueError("rotary_cos: expected None without k, got a Tensor")

    if new_lengths is not None:
        sequence, index = _rows(new_lengths, cu_seqlens_k_new, k)
        slots = sequences.pages_and_offsets(sequence, before[sequence] + index)
        pages.check_slots(slots, k_cache.shape[1], cache_batch_idx)
        k, v = (pages.apart_from(x, k_cache, v_cache) for x in (k, v))
        if turned:
            new_rows = turn_from[sequence] + index
            sequence, index = _rows(queries.lengths, queries.cu_seqlens, q)
            query_rows = turn_from[sequence] + (index if options.mask.local else 0)
            check_positions(rotary_cos, new_rows, query_rows)
            k = rotate(k, rotary_cos, rotary_sin, new_rows, rotary_interleaved)
            q = rotate(q, rotary_cos, rotary_sin, query_rows, rotary_interleaved)
        k_cache[slots] = k
        v_cache[slots] = v
    out, lse = attend(q, qv, queries, sequences, options)
    if not return_softmax_lse:
        return out
    # FlashAttention's third and fourth are the partial results of splits, empty if there are none.
    return out, lse, lse.new_empty(0), lse.new_empty(0)


def _options(
    q: Tensor,
    v_cache: Tensor,
    qv: Tensor | None,
    batch: int,
    mask: arguments.Mask,
    softmax_scale: float | None,
    softcap: float,
    num_splits: int,
    descales: tuple[Tensor | None, ...],
) -> Options:
    width, kv_heads = q.shape[-1], v_cache.shape[2]
    if qv is not None:
        arguments.qv_like(qv, q, v_cache.shape[-1])
        width += qv.shape[-1]
    of_q, of_k, of_v = (
        arguments.descale(f"{name}_descale", x, q, batch, kv_heads)
        for name, x in zip("qkv", descales, strict=True)
    )
    if of_q is not None and of_k is not None:
        of_k = of_q * of_k
    of_scores = of_q if of_k is None else of_k
    group = q.shape[-2] // kv_heads
    return Options(
        mask,
        width**-0.5 if softmax_scale is None else check.finite("softmax_scale", softmax_scale),
        check.finite("softcap", softcap, minimum=0.0),
        num_splits,
        None if of_scores is None else of_scores.repeat_interleave(group, dim=1),
        None if of_v is None else of_v.repeat_interleave(group, dim=1),
    )


def _new_lengths(
    k: Tensor | None,
    v: Tensor | None,
    k_cache: Tensor,
    v_cache: Tensor,
    cu_seqlens_k_new: Tensor | None,
    batch: int,
) -> Tensor | None:
    """``[B]`` int32 tokens to append, or ``None`` without ``k``."""
    if k is None:
        for name, x in (("v", v), ("cu_seqlens_k_new", cu_seqlens_k_new)):
            if x is not None:
                raise ValueError(f"{name}: expected None without k, got a {type(x).__name__}")
        return None
    check.tensor("k", k)
    check.tensor("v", v)
    lead = (batch, "L_new") if cu_seqlens_k_new is None else ("total_new",)
    check.shape("k", k, (*lead, k_cache.shape[2], k_cache.shape[3]))
    check.shape("v", v, (*k.shape[:-1], v_cache.shape[3]))
    for name, x in (("k", k), ("v", v)):
        check.dtype(name, x, (k_cache.dtype,))
    check.same_device(k_cache=k_cache, k=k, v=v)
    if cu_seqlens_k_new is None:
        return torch.full((batch,), k.shape[1], dtype=torch.int32, device=k.device)
    check_starts("cu_seqlens_k_new", cu_seqlens_k_new, "k", k, batch)
    return cu_seqlens_k_new.diff()


def _lengths(
    cache_seqlens: int | Tensor | None,
    k_cache: Tensor,
    table: Tensor,
    new_lengths: Tensor | None,
    batch: int,
) -> Tensor:
    """``cache_seqlens`` as ``[B]`` int32."""
    if cache_seqlens is None:
        if new_lengths is not None:
            raise ValueError("cache_seqlens: expected an int or a tensor with k, got None")
        cache_seqlens = table.shape[1] * k_cache.shape[1]
    if isinstance(cache_seqlens, Tensor):
        return pages.per_sequence("cache_seqlens", cache_seqlens, k_cache, batch)
    check.count("cache_seqlens", cache_seqlens)
    return torch.full((batch,), cache_seqlens, dtype=torch.int32, device=k_cache.device)


def _rows(lengths: Tensor, cu_seqlens: Tensor | None, x: Tensor) -> tuple[Tensor, Tensor]:
    """Sequence, and index there, of each row of ``x [B, L, ...]`` or of packed ``x``."""
    batch = torch.arange(lengths.shape[0], device=x.device)
    if cu_seqlens is None:
        return batch[:, None], torch.arange(x.shape[1], device=x.device)
    sequence = batch.repeat_interleave(lengths)
    return sequence, torch.arange(x.shape[0], device=x.device) - cu_seqlens[sequence]
