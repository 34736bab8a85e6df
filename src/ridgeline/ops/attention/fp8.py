"""FP8 inputs of ``attention``: scales, rotations that spread outliers, and what it computes then.

- ``quantize``: float8_e4m3fn values and one float32 scale for each tensor, head, sequence and head,
  or block of rows, in the layouts that ``attention`` takes. ``dequantize`` is its inverse.
- ``incoherent``: the same random rotation for q and k, which leaves ``q · k`` as it is.
- ``forward``: the reference. It defines the result of ``attention`` for FP8 inputs.

Block scales and incoherent processing as in FlashAttention-3 (Shah et al., arXiv 2407.08608,
section 3.3); random signs times a Hadamard matrix as in QuIP (Chee et al., arXiv 2307.13304).

>>> (q, q_scale), (k, k_scale) = (fp8.quantize(x, per=128, seed=1) for x in (q, k))
>>> v, v_scale = fp8.quantize(v, per=128)
>>> out = attention(q, k, v, q_scale=q_scale, k_scale=k_scale, v_scale=v_scale)
"""

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from ridgeline.ops.attention import reference
from ridgeline.ops.common import check, device
from ridgeline.ops.common.dispatch import Impl, pick

LARGEST = 448.0  # of float8_e4m3fn
P_SCALE = 2.0**8  # of probabilities, at most 1, before they are rounded to e4m3
TRITON_BLOCK = 1 << 15  # elements of rows in the registers of one program
WAYS = ("tensor", "head", "sequence")

Per = Literal["tensor", "head", "sequence"] | int


def quantize(
    x: Tensor,
    per: Per = "tensor",
    *,
    cu_seqlens: Tensor | None = None,
    rope: tuple[Tensor, Tensor] | None = None,
    seed: int | None = None,
    impl: Impl = "auto",
) -> tuple[Tensor, Tensor]:
    """``x`` in float8_e4m3fn, and the scales to multiply it by: ``amax / 448`` each.

    The largest value of a scale's part becomes exactly 448 in magnitude. A part that is all zeros,
    or has no rows, has the scale 1; a scale is never below 2^-126, the least normal float32.

    Args:
        x: ``[B, L, h, d]``, or packed ``[total, h, d]``; bfloat16, float16, float32 or float64.
        per: what has a scale of its own, and with it the shape of the scales:

            - ``"tensor"``: ``[]``
            - ``"head"``: ``[h]``
            - ``"sequence"``: each head of each sequence, ``[B, h]``
            - a power of two n: each head of each n rows, ``[B, ceil(L / n), h]``; not packed
        cu_seqlens: ``[B + 1]`` int32, of packed ``x``, needed for ``"sequence"``.
        rope: cosines and sines of positions, float32 ``[B, L, d / 2]`` or packed
            ``[total, d / 2]``, by which ``x`` is turned first, dim i with dim ``i + d / 2``.
        seed: if given, ``x`` is then rotated as by ``incoherent``; d is a power of two.
        impl: "auto", "reference" or "triton". Turning, rotating and scaling are float32 arithmetic
            without a rounding between (float64 for float64); "triton" does it in one pass over
            ``x`` for blocks of rows, in two for larger parts. Compiled code is the reference's.

    Returns:
        Values in the shape of ``x`` and float32 scales. Not differentiable.

    Raises:
        TypeError, ValueError: an argument has the wrong type, shape, dtype or value, or ``impl``
            does not support the call. On the CPU also an inf or NaN in ``x``; elsewhere, and while
            compiling, where that would wait for the device, what shares its scale dequantizes to
            NaN.
    """
    check.tensor("x", x)
    check.dtype("x", x, check.FLOATS)
    _check_rows(x, cu_seqlens)
    _check_per(per, x, cu_seqlens)
    _check_rope(rope, x)
    signs = None
    if seed is not None:
        check.count("seed", seed)
        _check_power_of_two(x)
        signs = _signs(seed, x.shape[-1]).to(x.device)
    x = x.detach()
    match pick(check.name_of_impl(impl), {
        "triton": lambda: _no_triton(x, interpret=impl == "triton"),
        "reference": lambda: None,
    }):  # fmt: skip
        case "triton":
            values, scale = _quantize_by_triton(x, per, cu_seqlens, rope, signs)
        case "reference":
            x = x if x.dtype == torch.float64 else x.float()
            x = x if rope is None else _turn(x, *rope)
            x = x if signs is None else _hadamard(x * signs)
            scale = _scales(_amax(x.abs().amax(-1), per, cu_seqlens))
            # No need to saturate: rounding lifts no quotient to 464, where e4m3 would overflow.
            values = (x / _spread(scale, x, cu_seqlens).to(x.dtype)).to(check.FP8)
    if _readable(scale) and not scale.isfinite().all():
        raise ValueError("x: expected finite values of at most 448 * 2^127, got inf, NaN or more")
    return values, scale


def dequantize(
    x: Tensor,
    scale: Tensor | float | None,
    *,
    cu_seqlens: Tensor | None = None,
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """``x`` times its scales, in ``dtype``.

    Args:
        x: float8_e4m3fn, ``[B, L, h, d]`` or packed ``[total, h, d]``.
        scale: a number; or float32 in a shape that ``quantize`` gives, n being the power of two
            with ``ceil(L / n)`` blocks; ``None`` for 1.
        cu_seqlens: ``[B + 1]`` int32, of packed ``x``, needed where ``scale`` is ``[B, h]``.

    Raises:
        TypeError, ValueError: an argument has the wrong type, shape or dtype.
    """
    check.tensor("x", x)
    check.dtype("x", x, (check.FP8,))
    _check_dtype(dtype)
    _check_rows(x, cu_seqlens)
    if scale is None:
        return x.to(dtype)
    if not isinstance(scale, Tensor):
        scale = torch.tensor(check.finite("scale", scale), dtype=torch.float32, device=x.device)
    _check_layout("scale", scale, x, None if cu_seqlens is None else cu_seqlens.shape[0] - 1)
    wide = torch.promote_types(dtype, torch.float32)
    return (x.to(wide) * _spread(scale, x, cu_seqlens).to(wide)).to(dtype)


def incoherent(
    x: Tensor, *, seed: int = 0, inverse: bool = False, dtype: torch.dtype | None = None
) -> Tensor:
    """``x`` with its last dim rotated: ``x diag(s) H / sqrt(d)``, s random signs, H Hadamard.

    The rotation is orthonormal, so ``q · k`` does not change where both have the same ``seed``,
    and an outlier is spread over the whole head. Rotate, then quantize. O(d log d) additions in
    float32 (float64 for float64). Differentiable.

    Args:
        x: ``[..., d]``, d a power of two. For others rotate slices of q and k that are, such as
            128 and 64 of 192.
        seed: of the signs, which depend on it and on d alone.
        inverse: turn back, by the transpose.
        dtype: of the result, by default that of ``x``; float32 spares a rounding before
            ``quantize``.

    Raises:
        TypeError, ValueError: ``x`` is no floating-point tensor, or d no power of two.
    """
    check.tensor("x", x)
    check.dtype("x", x, check.FLOATS)
    check.count("seed", seed)
    check.flag("inverse", inverse)
    dtype = x.dtype if dtype is None else _check_dtype(dtype)
    _check_power_of_two(x)
    signs = _signs(seed, x.shape[-1]).to(x.device)
    y = x if x.dtype == torch.float64 else x.float()
    y = _hadamard(y) * signs if inverse else _hadamard(y * signs)
    return y.to(dtype)


def check_scale(name: str, scale: object, x: Tensor, batch: int) -> Tensor | None:
    """A scale of ``x`` in a layout of ``quantize``, numbers as ``[]`` float32.

    Raises:
        TypeError, ValueError: names ``name``, what was expected and what came.
    """
    if scale is None:
        return None
    if x.dtype != check.FP8:
        got = str(x.dtype).removeprefix("torch.")
        raise ValueError(f"{name}: expected None unless q, k and v are float8_e4m3fn, got {got}")
    if not isinstance(scale, Tensor):
        return torch.tensor(check.finite(name, scale), dtype=torch.float32, device=x.device)
    _check_layout(name, scale, x, batch)
    return scale


def forward(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cu_seqlens_q: Tensor | None,
    cu_seqlens_k: Tensor | None,
    subtree_end: Tensor | None,
    q_scale: Tensor | None,
    k_scale: Tensor | None,
    v_scale: Tensor | None,
    softmax_scale: float,
    causal: bool,
    window_left: int,
    window_right: int,
    softcap: float,
    out: Tensor,
    lse: Tensor,
) -> None:
    """Fills ``out`` (bfloat16) and ``lse`` (float32) as tensor cores do, that multiply FP8 alone.

    Probabilities relative to their row's largest, times 2^8, are rounded to e4m3 before they
    multiply V; the sum that divides them is of those not rounded.
    """
    for name, scale in (("q_scale", q_scale), ("k_scale", k_scale), ("v_scale", v_scale)):
        if scale is not None and not scale.isfinite().all():
            raise ValueError(f"{name}: expected finite scales, got NaN or inf")
    q = dequantize(q, q_scale, cu_seqlens=cu_seqlens_q)
    k = dequantize(k, k_scale, cu_seqlens=cu_seqlens_k)
    v = dequantize(v, v_scale, cu_seqlens=cu_seqlens_k)
    heads, kv_heads = q.shape[-2], k.shape[-2]
    for rows, keys in reference.sequences(q, cu_seqlens_q, cu_seqlens_k):
        queries, key = q[rows].unflatten(1, (kv_heads, heads // kv_heads)), k[keys]
        scores = torch.einsum("ihgd,jhd->hgij", queries, key) * softmax_scale
        if softcap > 0:
            scores = softcap * torch.tanh(scores / softcap)
        ends = None if subtree_end is None else subtree_end[keys]
        mask = reference.visible(queries, key, ends, causal, window_left, window_right)
        scores = scores.masked_fill(~mask, -torch.inf)
        sees = mask.any(-1, keepdim=True)
        top = F.pad(scores, (0, 1), value=-torch.inf).amax(-1, keepdim=True).where(sees, 0.0)
        p = (scores - top).exp()
        total = p.sum(-1, keepdim=True).where(sees, 1.0)
        p = (p * P_SCALE).to(check.FP8).float() / P_SCALE
        found = torch.einsum("hgij,jhd->hgid", p, v[keys]) / total
        out[rows] = found.flatten(0, 1).transpose(0, 1)
        row_lse = (top + total.log()).where(sees, -torch.inf)
        lse[rows] = row_lse.squeeze(-1).flatten(0, 1).T


def _quantize_by_triton(
    x: Tensor,
    per: Per,
    cu_seqlens: Tensor | None,
    rope: tuple[Tensor, Tensor] | None,
    signs: Tensor | None,
) -> tuple[Tensor, Tensor]:
    from ridgeline.ops.attention.triton.quantize import quantize_rows

    x = x if x.stride(-1) == 1 else x.contiguous()
    values = torch.empty(x.shape, dtype=check.FP8, device=x.device)
    if isinstance(per, int) and per * device.next_power_of_2(x.shape[-1]) <= TRITON_BLOCK:
        blocks = -(-x.shape[1] // per)
        scale = x.new_empty(x.shape[0], blocks, x.shape[2], dtype=torch.float32)
        quantize_rows(x, values, scale, signs, rope, per)
        return values, scale
    rows = x.new_empty(x.shape[:-1], dtype=torch.float32)
    quantize_rows(x, None, rows, signs, rope, None)
    scale = _scales(_amax(rows, per, cu_seqlens))
    of_rows = _spread(scale, x, cu_seqlens).expand(*x.shape[:-1], 1).squeeze(-1)
    quantize_rows(x, values, of_rows.contiguous(), signs, rope, None)
    return values, scale


def _no_triton(x: Tensor, interpret: bool) -> str | None:
    """Why Triton's kernel cannot quantize ``x``, or ``None``."""
    if torch.compiler.is_compiling():
        return "the code is being compiled; use impl='reference', whose operations fuse"
    if x.dtype == torch.float64:
        return "x is bfloat16, float16 or float32, got float64; use impl='reference'"
    if x.is_cuda and device.arch(x) < device.FP8_ARCH:
        return f"the GPU has compute capability {device.arch(x) / 10}, expected 8.9 or newer"
    return device.unsupported(x, x, (x.shape[-1],), interpret)


def _scales(amax: Tensor) -> Tensor:
    scale = (amax / LARGEST).clamp(min=torch.finfo(torch.float32).tiny).float()
    return scale.masked_fill(amax == 0, 1.0)


def _turn(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """By rotary embedding: dim i with dim ``i + d / 2``."""
    (a, b), cos, sin = x.chunk(2, -1), cos[..., None, :], sin[..., None, :]
    return torch.cat((a * cos - b * sin, b * cos + a * sin), -1)


def _hadamard(x: Tensor) -> Tensor:
    """``x H / sqrt(d)`` by log2(d) steps of sums and differences (Fino and Algazi, 1976)."""
    dim, half = x.shape[-1], 1
    while half < dim:
        a, b = x.unflatten(-1, (-1, 2, half)).unbind(-2)
        x = torch.stack((a + b, a - b), -2).flatten(-3)
        half *= 2
    return x * dim**-0.5


def _signs(seed: int, dim: int) -> Tensor:
    """Drawn on the CPU, so that every device has the same."""
    bits = torch.randint(0, 2, (dim,), generator=torch.Generator().manual_seed(seed))
    return 1.0 - 2.0 * bits


def _check_rows(x: Tensor, cu_seqlens: Tensor | None) -> None:
    if x.dim() not in (3, 4) or x.shape[-1] == 0:
        raise ValueError(
            f"x: expected shape [B, L, h, d] or packed [total, h, d], d >= 1, got {list(x.shape)}"
        )
    if cu_seqlens is None:
        return
    check.tensor("cu_seqlens", cu_seqlens)
    if x.dim() == 4:
        raise ValueError("cu_seqlens: expected None unless x is packed [total, h, d]")
    check.shape("cu_seqlens", cu_seqlens, ("B + 1",))
    check.dtype("cu_seqlens", cu_seqlens, (torch.int32,))
    check.same_device(x=x, cu_seqlens=cu_seqlens)
    if cu_seqlens.numel() == 0:
        raise ValueError("cu_seqlens: expected at least one entry, got none")
    if _readable(cu_seqlens):
        starts = cu_seqlens.tolist()
        if starts[0] != 0 or starts[-1] != x.shape[0] or starts != sorted(starts):
            raise ValueError(
                f"cu_seqlens: expected 0 first, {x.shape[0]} last and nothing falling, got {starts}"
            )


def _check_per(per: object, x: Tensor, cu_seqlens: Tensor | None) -> None:
    if per == "sequence" and x.dim() == 3 and cu_seqlens is None:
        raise ValueError("cu_seqlens: expected [B + 1] int32 for per='sequence' of packed x")
    if isinstance(per, str) and per in WAYS:
        return
    if isinstance(per, bool) or not isinstance(per, int) or per < 1 or per & (per - 1):
        raise ValueError(f"per: expected {', '.join(WAYS)} or a power of two, got {per!r}")
    if x.dim() == 3:
        raise ValueError(f"per: expected {', '.join(WAYS)} for packed x, got {per}")


def _check_rope(rope: object, x: Tensor) -> None:
    if rope is None:
        return
    if not isinstance(rope, tuple) or len(rope) != 2:
        raise TypeError(f"rope: expected a pair of cosines and sines, got {type(rope).__name__}")
    if x.shape[-1] % 2:
        raise ValueError(f"x: expected an even last dim to turn by rope, got {x.shape[-1]}")
    for name, part in zip(("rope[0]", "rope[1]"), rope, strict=True):
        check.tensor(name, part)
        check.shape(name, part, (*x.shape[:-2], x.shape[-1] // 2))
        check.dtype(name, part, (torch.float32,))
        check.same_device(x=x, **{name: part})


def _check_power_of_two(x: Tensor) -> None:
    dim = x.shape[-1] if x.dim() else 0
    if dim < 1 or dim & (dim - 1):
        raise ValueError(
            f"x: expected a last dim that is a power of two, got {dim}; rotate slices of q and k "
            "that are, such as 128 and 64 of 192"
        )


def _check_dtype(dtype: object) -> torch.dtype:
    if dtype not in check.FLOATS:
        names = ", ".join(str(d).removeprefix("torch.") for d in check.FLOATS)
        raise TypeError(f"dtype: expected one of {names}, got {dtype}")
    return dtype


def _readable(x: Tensor) -> bool:
    return x.device.type == "cpu" and not torch.compiler.is_compiling()


def _amax(rows: Tensor, per: Per, cu_seqlens: Tensor | None) -> Tensor:
    """The largest of ``rows [..., L, h]``, magnitudes, in each part; 0 where a part is empty."""
    heads = rows.shape[-1]
    if per == "tensor":
        return F.pad(rows.flatten(), (0, 1)).amax()
    if per == "head":
        return F.pad(rows.flatten(0, -2), (0, 0, 0, 1)).amax(0)
    if per == "sequence":
        if rows.dim() == 3:
            return F.pad(rows, (0, 0, 0, 1)).amax(1)
        index = _sequence_of_row(cu_seqlens, rows.shape[0])[:, None].expand(-1, heads)
        none = rows.new_zeros(cu_seqlens.shape[0] - 1, heads)
        return none.scatter_reduce(0, index, rows, "amax")
    blocks = -(-rows.shape[1] // per)
    rows = F.pad(rows, (0, 0, 0, blocks * per - rows.shape[1]))
    return rows.unflatten(1, (blocks, per)).amax(2)


def _check_layout(name: str, scale: Tensor, x: Tensor, batch: int | None) -> None:
    """``batch``: sequences of packed ``x``, ``None`` if there is no ``cu_seqlens`` to tell."""
    check.dtype(name, scale, (torch.float32,))
    check.same_device(x=x, **{name: scale})
    heads = x.shape[-2]
    match scale.dim(), x.dim():
        case 0, _:
            return
        case 1, _:
            check.shape(name, scale, (heads,))
        case 2, 3 if batch is None:
            raise ValueError(f"cu_seqlens: expected [B + 1] int32 where {name} is [B, h]")
        case 2, _:
            check.shape(name, scale, (x.shape[0] if x.dim() == 4 else batch, heads))
        case 3, 4:
            check.shape(name, scale, (x.shape[0], "n_blocks", heads))
            block_rows(x.shape[1], scale.shape[1], name)
        case _:
            layouts = f"a number, [{heads}] or [B, {heads}]"
            if x.dim() == 4:
                layouts = f"a number, [{heads}], [B, {heads}] or [B, n_blocks, {heads}]"
            raise ValueError(f"{name}: expected {layouts}, got {list(scale.shape)}")


def _spread(scale: Tensor, x: Tensor, cu_seqlens: Tensor | None) -> Tensor:
    """``scale`` in a shape that broadcasts over ``x``; each row of ``x`` gets its own."""
    match scale.dim(), x.dim():
        case 0, _:
            return scale
        case 1, _:
            return scale[:, None]
        case 2, 4:
            return scale[:, None, :, None]
        case 2, 3:
            return scale[_sequence_of_row(cu_seqlens, x.shape[0])][..., None]
    rows = block_rows(x.shape[1], scale.shape[1])
    return scale.repeat_interleave(rows, 1)[:, : x.shape[1], :, None]


def block_rows(length: int, blocks: int, name: str = "scale") -> int:
    """The power of two n with ``ceil(length / n) == blocks``, the least if there are several.

    Raises:
        ValueError: there is none.
    """
    rows = 1
    while -(-length // rows) > blocks and rows < length:
        rows *= 2
    if -(-length // rows) != blocks:
        raise ValueError(
            f"{name}: expected ceil({length} / n) blocks for a power of two n, got {blocks}"
        )
    return rows


def _sequence_of_row(cu_seqlens: Tensor, total: int) -> Tensor:
    """Which sequence each of ``total`` packed rows belongs to, ``[total]`` int64."""
    ids = torch.arange(cu_seqlens.shape[0] - 1, device=cu_seqlens.device)
    return ids.repeat_interleave(cu_seqlens.diff().long(), output_size=total)
