"""Rotary position embedding (Su et al., arXiv 2104.09864) of queries and new keys."""

import torch
from torch import Tensor

from ridgeline.ops.common import check

LARGEST_FP8 = torch.finfo(check.FP8).max


def rotate(x: Tensor, cos: Tensor, sin: Tensor, positions: Tensor, interleaved: bool) -> Tensor:
    """``x [..., h, d]`` with its first ``2 r`` dims turned by the angles of ``positions [...]``.

    Pair i is dims ``2 i`` and ``2 i + 1`` if ``interleaved``, else ``i`` and ``i + r``; ``cos`` and
    ``sin`` are ``[L, r]``. Computed in float32 (float64 for float64), rounded once to ``x.dtype``.
    """
    wide = torch.float64 if x.dtype == torch.float64 else torch.float32
    cos, sin = (table[positions].to(wide).unsqueeze(-2) for table in (cos, sin))
    pairs = cos.shape[-1]
    turned, rest = x.to(wide).split((2 * pairs, x.shape[-1] - 2 * pairs), dim=-1)
    if interleaved:
        a, b = turned[..., 0::2], turned[..., 1::2]
    else:
        a, b = turned[..., :pairs], turned[..., pairs:]
    first, second = a * cos - b * sin, a * sin + b * cos
    if interleaved:
        turned = torch.stack((first, second), dim=-1).flatten(-2)
    else:
        turned = torch.cat((first, second), dim=-1)
    result = torch.cat((turned, rest), dim=-1)
    if x.dtype == check.FP8:  # whose conversion does not saturate
        result = result.clamp(-LARGEST_FP8, LARGEST_FP8)
    return result.to(x.dtype)


def check_tables(cos: Tensor | None, sin: Tensor | None, q: Tensor) -> None:
    """``rotary_cos`` and ``rotary_sin``, ``[L, r]`` with ``2 r`` at most the width of a head."""
    check.tensor("rotary_cos", cos)
    check.tensor("rotary_sin", sin)
    check.shape("rotary_cos", cos, ("L", "r"))
    check.shape("rotary_sin", sin, tuple(cos.shape))
    for name, x in (("rotary_cos", cos), ("rotary_sin", sin)):
        check.dtype(name, x, (q.dtype, torch.float32))
        check.same_device(q=q, **{name: x})
    if 2 * cos.shape[1] > q.shape[-1]:
        raise ValueError(
            f"rotary_cos: expected at most {q.shape[-1] // 2} pairs (half of q's last dim), "
            f"got {cos.shape[1]}"
        )


def check_positions(cos: Tensor, *rows: Tensor) -> None:
    """Every row is one of the tables, where it is on the host."""
    for row in rows:
        if row.device.type != "cpu" or row.numel() == 0:
            continue
        low, high = (int(x) for x in row.aminmax())
        if low < 0:
            raise ValueError(f"rotary_seqlens: expected at least 0, got {low}")
        if high >= cos.shape[0]:
            raise ValueError(
                f"rotary_cos: expected a row for each position up to {high}, "
                f"got {cos.shape[0]} rows"
            )
