"""Rotary position embedding (Su et al., arXiv 2104.09864), half-split as in GPT-NeoX and Llama."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ridgeline.layers.rope_scaling import rope_frequencies
from ridgeline.ops.common import check


class RotaryEmbedding(nn.Module):
    """Cosines and sines of a batch's positions, made once a step for all layers.

    Args:
        dim: rotated width of a head, even.
        base: base of the frequencies; ``rope_theta`` in ``scaling`` takes its place.
        scaling: ``None`` or a dict under transformers' names (``rope_parameters``), ``rope_type``
            one of default, linear, dynamic, yarn, longrope, llama3.
        max_position: the model's ``max_position_embeddings``; dynamic, yarn, longrope and llama3
            fall back on it for the length of the first training.

    Raises:
        ValueError, TypeError: a size or a field of ``scaling`` is unknown, missing or impossible.
    """

    def __init__(
        self,
        dim: int,
        base: float = 10000.0,
        scaling: Mapping[str, Any] | None = None,
        max_position: int = 4096,
    ) -> None:
        super().__init__()
        # Not a buffer: a cast of the model to 16 bits must not round the frequencies.
        self.frequencies = rope_frequencies(dim, base, scaling, max_position)
        self.dim = dim

    @torch.no_grad()
    def forward(self, position_ids: Tensor) -> tuple[Tensor, Tensor]:
        """``position_ids [B, L]`` integers -> cos and sin, float32 ``[B, L, dim / 2]``.

        dynamic and longrope choose each sequence's frequencies by its own last position, so that a
        sequence's result does not depend on its batch.
        """
        check.shape("position_ids", position_ids, ("B", "L"))
        frequencies = self.frequencies.to(position_ids.device)
        inv_freq = frequencies.of_sequences(position_ids)
        angles = position_ids[..., None].float() * inv_freq
        factor = frequencies.attention_factor
        cos, sin = angles.cos(), angles.sin()
        return (cos, sin) if factor == 1.0 else (cos * factor, sin * factor)


def apply_rotary(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """``x [B, L, h, d]`` rotated, in its own dtype; ``cos`` and ``sin [B, L, d / 2]``.

    Dim i turns with dim ``i + d / 2``. The arithmetic is that of the wider of the two dtypes.
    """
    cos, sin = cos.unsqueeze(-2), sin.unsqueeze(-2)
    # One widening for the whole of x: mixed operands would convert it in every operation.
    a, b = x.to(torch.promote_types(x.dtype, cos.dtype)).chunk(2, dim=-1)
    first = (a * cos).addcmul_(b, sin, value=-1)
    second = (b * cos).addcmul_(a, sin)
    return torch.cat((first, second), dim=-1).to(x.dtype)
