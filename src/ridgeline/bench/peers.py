"""What PyTorch offers for the same decode step, on a cache laid out in its favour.

The peers read dense K and V ``[B, h, N, d]`` without pages, in the layout their kernels like; this
layout, and the concatenation of RoPE keys that SDPA needs, is made outside the clock.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from ridgeline.bench.inputs import DecodeInputs
from ridgeline.bench.shapes import DTYPES, DecodeShape
from ridgeline.ops.common import masks


@dataclass(frozen=True)
class Peer:
    """A timed call and how its result becomes ``[B, L_q, h_q, d_v]``."""

    kind: str
    dtype: str
    run: Callable[[], Tensor]
    canonical: Callable[[Tensor], Tensor]

    @property
    def name(self) -> str:
        return f"{self.kind} {self.dtype}"


class Dense:
    """Queries packed as rows of their cached head, and the cache without pages, in one dtype.

    ``q [B, h, g * L_q, d_n + d_r]``, row ``g * L_q + i``; ``key [B, h, N, d_n]``, ``value
    [B, h, N, d_v]`` and, where tied, ``rope [B, 1, N, d_r]``. Tied: ``key`` is a view of ``value``.
    With ``records`` a tied cache stays one record a token, as ours, of which they are views.
    ``sequences`` takes some of the batch.
    """

    def __init__(
        self,
        inputs: DecodeInputs,
        dtype: torch.dtype,
        records: bool = False,
        sequences: slice = slice(None),
    ) -> None:
        shape = inputs.shape
        first, second = (x.to(dtype) for x in inputs.gather(sequences))
        if shape.spec.kind == "paired":
            self.key, self.value = (x.transpose(1, 2).contiguous() for x in (first, second))
            self.rope = None
        else:
            if records:
                split = [shape.spec.elements_per_token - shape.rope_dim, shape.rope_dim]
                first, second = torch.cat([first.flatten(2), second], -1).split(split, -1)
                self.value = first.unflatten(-1, (shape.kv_heads, -1)).transpose(1, 2)
            else:
                self.value = first.transpose(1, 2).contiguous()
            self.key = self.value[..., : shape.nope_dim]
            self.rope = second[:, None]
        q = torch.cat([inputs.q_nope[sequences], inputs.q_rope[sequences]], -1).to(dtype)
        groups = (shape.kv_heads, shape.heads // shape.kv_heads)
        self.q = q.unflatten(2, groups).permute(0, 2, 3, 1, 4).flatten(2, 3).contiguous()
        self.heads_q = q.transpose(1, 2).contiguous()
        self.shape = shape
        # One new token sees everything: no mask, so that SDPA may take its fastest path.
        self.mask = None
        if shape.query_len > 1:
            mask = masks.visible(shape.length, shape.query_len, 0, True, -1, -1)
            self.mask = mask.to(q.device)

    def full_key(self) -> Tensor:
        """``[B, h, N, d_n + d_r]``, the RoPE key repeated for each head: what SDPA can take."""
        if self.rope is None:
            return self.key
        return torch.cat([self.key, self.rope.expand(*self.key.shape[:3], -1)], -1)

    def packed_mask(self) -> Tensor | None:
        if self.mask is None:
            return None
        return self.mask.repeat(self.shape.heads // self.shape.kv_heads, 1)

    def unpack(self, out: Tensor) -> Tensor:
        """``[B, h, g * L_q, d_v]`` -> ``[B, L_q, h_q, d_v]``."""
        rows = out.unflatten(2, (-1, self.shape.query_len))
        return rows.permute(0, 3, 1, 2, 4).flatten(2, 3)

    def eager(self) -> Tensor:
        """Attention as matmuls over the cache where it lies, with no copy of it."""
        nope, rope = self.q[..., : self.shape.nope_dim], self.q[..., self.shape.nope_dim :]
        scores = nope @ self.key.transpose(-1, -2)
        if self.rope is not None:
            scores = scores + rope @ self.rope.transpose(-1, -2)
        scores = scores * self.shape.softmax_scale
        if self.mask is not None:
            scores = scores.masked_fill(~self.packed_mask(), -torch.inf)
        return scores.softmax(-1) @ self.value


def oracle(dense: Dense) -> Tensor:
    """The result in ``dense``'s dtype that timed calls are held against, ``[B, L_q, h_q, d_v]``."""
    return dense.unpack(dense.eager())


def peers(dense: Dense) -> list[Peer]:
    """SDPA with ``enable_gqa``, SDPA with packed heads, and, where tied, matmuls.

    Latent heads go without ``enable_gqa``: SDPA would copy the cache once for each query head,
    many GB of it, and no one would decode that way.
    """
    shape: DecodeShape = dense.shape
    key, scale = dense.full_key(), shape.softmax_scale
    packed_mask = dense.packed_mask()

    def sdpa_gqa() -> Tensor:
        return F.scaled_dot_product_attention(
            dense.heads_q, key, dense.value, attn_mask=dense.mask, scale=scale, enable_gqa=True
        )

    def sdpa_packed() -> Tensor:
        return F.scaled_dot_product_attention(
            dense.q, key, dense.value, attn_mask=packed_mask, scale=scale
        )

    dtype, found = _name(dense), []
    if shape.variant not in ("mla", "gla"):
        found.append(Peer("sdpa gqa", dtype, sdpa_gqa, lambda x: x.transpose(1, 2)))
    if shape.heads > shape.kv_heads:
        found.append(Peer("sdpa packed", dtype, sdpa_packed, dense.unpack))
    if shape.spec.kind == "tied":
        found.append(Peer("eager dense", dtype, dense.eager, dense.unpack))
    return found


def eager_on_records(records: Dense) -> Peer:
    """Matmuls over the records as a tied cache stores them: what needs no copy at all."""
    return Peer("eager", _name(records), records.eager, records.unpack)


def _name(dense: Dense) -> str:
    return next(name for name, x in DTYPES.items() if x == dense.q.dtype)
