"""Attention with K and V at hand, of a batch and of packed sequences; differentiable."""

import torch
import torch.nn.functional as F
from torch import Tensor

from ridgeline.flash_attn_interface import arguments
from ridgeline.ops.attention import attention
from ridgeline.ops.common import check, packing

Result = Tensor | tuple[Tensor, Tensor]


def flash_attn_func(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    softmax_scale: float | None = None,
    causal: bool = False,
    qv: Tensor | None = None,
    q_descale: Tensor | None = None,
    k_descale: Tensor | None = None,
    v_descale: Tensor | None = None,
    window_size: tuple[int, int] = (-1, -1),
    attention_chunk: int = 0,
    softcap: float = 0.0,
    num_splits: int = 1,
    pack_gqa: bool | None = None,
    deterministic: bool = False,
    sm_margin: int = 0,
    return_attn_probs: bool = False,
) -> Result:
    """Exact attention of a batch; query i stands at key ``i + L_k - L_q`` (bottom-right).

    Args:
        q: ``[B, L_q, h_q, d]``; bfloat16, float16, float32, float64, or float8_e4m3fn (forward
            only).
        k: ``[B, L_k, h_kv, d]``, dtype of ``q``; ``h_kv`` divides ``h_q``.
        v: ``[B, L_k, h_kv, d_v]``, dtype of ``q``.
        softmax_scale: factor of the scores, default ``(d + width of qv) ** -0.5``.
        causal: a query sees no key after its own position.
        qv: ``[B, L_q, h_q, d_v]``: scores become ``q · k + qv · v``. Not with FP8.
        q_descale, k_descale, v_descale: float32 ``[B, h_kv]``, what to multiply FP8 inputs by.
        window_size: ``(left, right)`` keys seen before and after the position, inclusive; a
            negative side is unbounded.
        attention_chunk: if positive, a query sees only keys of its own chunk of that many
            positions. Needs ``causal``.
        softcap: if positive, scores become ``softcap * tanh(score / softcap)``.
        num_splits, pack_gqa, sm_margin: hints for a schedule; they change nothing.
        deterministic: ask for gradients that are the same bits in every run.
        return_attn_probs: also return the log-sum-exp (not probabilities, whatever the name says).

    Returns:
        ``[B, L_q, h_q, d_v]`` in the dtype of ``q`` (bfloat16 for FP8); with ``return_attn_probs``
        also ``lse [B, h_q, L_q]``, float32 (float64 for float64), natural log. A query that sees
        no key gives 0 and -inf. Differentiable in q, k, v and qv, through the lse too.

    Raises:
        TypeError, ValueError: an argument is wrong; the message names it.
        NotImplementedError: ``attention_chunk`` without ``causal``, or ``qv`` with FP8.
    """
    arguments.schedule_hints(num_splits, pack_gqa, sm_margin)
    for name, x in (("q", q), ("k", k), ("v", v)):
        check.tensor(name, x)
        check.shape(name, x, ("B", "L", "heads", "d"))
    mask = arguments.mask(causal, window_size, attention_chunk)
    subtree_end = None
    if mask.chunk:
        index = torch.arange(k.shape[1], device=k.device)
        subtree_end = arguments.chunk_ends(index, mask.chunk).expand(k.shape[:2])
    result = attention(
        *_with_qv(q, k, v, qv),
        softmax_scale=softmax_scale,
        causal=mask.causal,
        window=mask.window,
        softcap=softcap,
        subtree_end=subtree_end,
        **_scales(q, k, q.shape[0], q_descale, k_descale, v_descale),
        deterministic=deterministic,
        return_lse=return_attn_probs,
    )
    if not return_attn_probs:
        return result
    out, lse = result
    return out, lse.transpose(1, 2).contiguous()


def flash_attn_qkvpacked_func(
    qkv: Tensor,
    softmax_scale: float | None = None,
    causal: bool = False,
    q_descale: Tensor | None = None,
    k_descale: Tensor | None = None,
    v_descale: Tensor | None = None,
    window_size: tuple[int, int] = (-1, -1),
    attention_chunk: int = 0,
    softcap: float = 0.0,
    deterministic: bool = False,
    num_heads_q: int | None = None,
    sm_margin: int = 0,
    return_attn_probs: bool = False,
) -> Result:
    """``flash_attn_func`` of q, k and v in one tensor; its gradient is one tensor too.

    Args:
        qkv: ``[B, L, 3, h, d]``, or ``[B, L, h_q + 2 h_kv, d]`` with ``num_heads_q``.
        num_heads_q: ``h_q`` of the second layout; ``None`` (or h) for the first.
        softmax_scale, causal, q_descale, k_descale, v_descale, window_size, attention_chunk,
            softcap, deterministic, sm_margin, return_attn_probs: as there.

    Returns:
        As ``flash_attn_func``, ``[B, L, h_q, d]``.

    Raises:
        TypeError, ValueError, NotImplementedError: as there.
    """
    check.tensor("qkv", qkv)
    if num_heads_q is not None:
        check.count("num_heads_q", num_heads_q, minimum=1)
    if qkv.dim() == 5:
        check.shape("qkv", qkv, ("B", "L", 3, "h", "d"))
        if num_heads_q not in (None, qkv.shape[3]):
            raise ValueError(f"num_heads_q: expected None or {qkv.shape[3]}, got {num_heads_q}")
        q, k, v = qkv.unbind(2)
    else:
        check.shape("qkv", qkv, ("B", "L", "h_q + 2 h_kv", "d"))
        if num_heads_q is None:
            raise ValueError(f"num_heads_q: expected an int for qkv {list(qkv.shape)}, got None")
        kv_heads, odd = divmod(qkv.shape[2] - num_heads_q, 2)
        if kv_heads < 1 or odd:
            raise ValueError(
                f"qkv: expected num_heads_q + 2 h_kv heads with num_heads_q = {num_heads_q}, "
                f"got {qkv.shape[2]}"
            )
        q, k, v = qkv.split((num_heads_q, kv_heads, kv_heads), dim=2)
    return flash_attn_func(
        q,
        k,
        v,
        softmax_scale,
        causal,
        q_descale=q_descale,
        k_descale=k_descale,
        v_descale=v_descale,
        window_size=window_size,
        attention_chunk=attention_chunk,
        softcap=softcap,
        deterministic=deterministic,
        sm_margin=sm_margin,
        return_attn_probs=return_attn_probs,
    )


def flash_attn_varlen_func(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cu_seqlens_q: Tensor,
    cu_seqlens_k: Tensor,
    max_seqlen_q: int | None,
    max_seqlen_k: int | None,
    seqused_q: Tensor | None = None,
    seqused_k: Tensor | None = None,
    softmax_scale: float | None = None,
    causal: bool = False,
    qv: Tensor | None = None,
    q_descale: Tensor | None = None,
    k_descale: Tensor | None = None,
    v_descale: Tensor | None = None,
    window_size: tuple[int, int] = (-1, -1),
    attention_chunk: int = 0,
    softcap: float = 0.0,
    num_splits: int = 1,
    pack_gqa: bool | None = None,
    deterministic: bool = False,
    sm_margin: int = 0,
    return_attn_probs: bool = False,
) -> Result:
    """``flash_attn_func`` of packed sequences.

    Args:
        q, qv: ``[total_q, h_q, d]`` and ``[total_q, h_q, d_v]``.
        k, v: ``[total_k, h_kv, d]`` and ``[total_k, h_kv, d_v]``.
        cu_seqlens_q, cu_seqlens_k: ``[B + 1]`` int32, where each sequence starts, and the total.
        max_seqlen_q, max_seqlen_k: at least the longest sequence, or ``None``; hints.
        seqused_q, seqused_k: ``[B]`` int32, how many rows from the start of each sequence count;
            positions and masks are those of sequences of these lengths. The rest of ``k`` and
            ``v`` is not read; the rest of the result is 0 and -inf. Used rows are copied.
        softmax_scale, causal, q_descale, k_descale, v_descale, window_size, attention_chunk,
            softcap, num_splits, pack_gqa, deterministic, sm_margin, return_attn_probs: as there.

    Returns:
        ``[total_q, h_q, d_v]``; with ``return_attn_probs`` also ``lse [h_q, total_q]``.

    Raises:
        TypeError, ValueError, NotImplementedError: as there.
    """
    arguments.schedule_hints(num_splits, pack_gqa, sm_margin)
    for name, x in (("q", q), ("k", k), ("v", v)):
        check.tensor(name, x)
        check.shape(name, x, (f"total_{'q' if name == 'q' else 'k'}", "heads", "d"))
    check.tensor("cu_seqlens_q", cu_seqlens_q)
    packing.check_pair(cu_seqlens_q, cu_seqlens_k)
    mask = arguments.mask(causal, window_size, attention_chunk)
    batch, total_q = cu_seqlens_q.shape[0] - 1, q.shape[0]
    q, k, v = _with_qv(q, k, v, qv)
    scales = _scales(q, k, batch, q_descale, k_descale, v_descale)
    used = None
    if seqused_q is not None:
        used, cu_seqlens_q = _used("q", q, cu_seqlens_q, seqused_q)
        q = q[used]
    if seqused_k is not None:
        rows, cu_seqlens_k = _used("k", k, cu_seqlens_k, seqused_k)
        k, v = k[rows], v[rows]
    subtree_end = None
    if mask.chunk:
        subtree_end = arguments.chunk_ends(_index_in_sequence(k, cu_seqlens_k)[1], mask.chunk)
    result = attention(
        q,
        k,
        v,
        softmax_scale=softmax_scale,
        causal=mask.causal,
        window=mask.window,
        softcap=softcap,
        cu_seqlens_q=cu_seqlens_q,
        cu_seqlens_k=cu_seqlens_k,
        max_seqlen_q=max_seqlen_q,
        max_seqlen_k=max_seqlen_k,
        subtree_end=subtree_end,
        **scales,
        deterministic=deterministic,
        return_lse=return_attn_probs,
    )
    out, lse = result if return_attn_probs else (result, None)
    if used is not None:
        out = out.new_zeros(total_q, *out.shape[1:]).index_copy(0, used, out)
        if lse is not None:
            lse = lse.new_full((total_q, lse.shape[1]), -torch.inf).index_copy(0, used, lse)
    return out if lse is None else (out, lse.T.contiguous())


def _with_qv(q: Tensor, k: Tensor, v: Tensor, qv: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    """``q · k + qv · v`` is one dot product of wider heads, and so has their default scale."""
    q, k, v = (arguments.dense_last_dim(x) for x in (q, k, v))
    if qv is None:
        return q, k, v
    arguments.qv_like(qv, q, v.shape[-1])
    if k.shape[:-1] != v.shape[:-1]:
        check.shape("v", v, (*k.shape[:-1], "d_v"))
    check.same_device(q=q, k=k, v=v)
    for name, x in (("k", k), ("v", v)):
        check.dtype(name, x, (q.dtype,))
    return torch.cat((q, qv), dim=-1), torch.cat((k, v), dim=-1), v


def _scales(
    q: Tensor,
    k: Tensor,
    batch: int,
    q_descale: Tensor | None,
    k_descale: Tensor | None,
    v_descale: Tensor | None,
) -> dict[str, Tensor | None]:
    """The scales of ``attention``; that of q comes one a kv head and goes one a query head."""
    kv_heads = k.shape[-2]
    given = {"q": q_descale, "k": k_descale, "v": v_descale}
    scales = {
        f"{name}_scale": arguments.descale(f"{name}_descale", x, q, batch, kv_heads)
        for name, x in given.items()
    }
    if q_descale is not None:
        check.divides("k.shape[-2]", kv_heads, "q.shape[-2]", q.shape[-2])
        scales["q_scale"] = q_descale.repeat_interleave(q.shape[-2] // kv_heads, dim=1)
    return scales


def _used(side: str, x: Tensor, cu_seqlens: Tensor, seqused: Tensor) -> tuple[Tensor, Tensor]:
    """Which rows of ``x [total, ...]`` count, and ``cu_seqlens`` of those alone."""
    name = f"seqused_{side}"
    check.tensor(name, seqused)
    check.shape(name, seqused, (cu_seqlens.shape[0] - 1,))
    check.dtype(name, seqused, (torch.int32,))
    check.same_device(**{side: x, name: seqused})
    lengths = cu_seqlens.diff()
    if x.device.type == "cpu":
        packing.check_lengths(side, x, cu_seqlens, None)
        if ((seqused < 0) | (seqused > lengths)).any():
            raise ValueError(
                f"{name}: expected between 0 and the lengths {lengths.tolist()}, "
                f"got {seqused.tolist()}"
            )
    sequence, index = _index_in_sequence(x, cu_seqlens)
    rows = (index < seqused[sequence]).nonzero().squeeze(1)
    return rows, F.pad(seqused.cumsum(0, dtype=torch.int32), (1, 0))


def _index_in_sequence(x: Tensor, cu_seqlens: Tensor) -> tuple[Tensor, Tensor]:
    """Sequence of each row of ``x [total, ...]``, and its index there, int64."""
    row = torch.arange(x.shape[0], device=x.device)
    sequence = torch.bucketize(row, cu_seqlens[1:].long(), right=True)
    return sequence, row - cu_seqlens[sequence]
