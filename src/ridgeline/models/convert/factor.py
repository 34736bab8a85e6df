"""Low-rank factors that lose the least on a layer's inputs.

Inputs x have the second moment C = E[x x^T]. The mean squared error of approximating W x is the
Frobenius norm of (W - W') C^1/2, so the best W' of a rank is a truncated SVD of W C^1/2 (Eckart and
Young), undone on the right. Everything here is float64.
"""

from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

RIDGE = 1e-6  # of the largest eigenvalue: directions that a short text never showed


@dataclass(frozen=True)
class Root:
    """``C^1/2`` and ``C^-1/2``, ``[D, D]`` each, symmetric."""

    half: Tensor
    inverse: Tensor

    @classmethod
    def of(cls, moment: Tensor) -> Self:
        """Of a second moment ``[D, D]``."""
        values, vectors = torch.linalg.eigh(moment)
        values = values.clamp(min=RIDGE * values[-1]).sqrt()
        return cls((vectors * values) @ vectors.T, (vectors / values) @ vectors.T)


def low_rank(weight: Tensor, root: Root, rank: int) -> tuple[Tensor, Tensor]:
    """``weight [N, D]`` as ``up [N, rank] @ down [rank, D]``, the best such product.

    The components of ``down @ x`` are uncorrelated and have mean square 1, also those beyond the
    rank of ``weight``, which ``up`` does not use.
    """
    u, s, vh = torch.linalg.svd(weight @ root.half, full_matrices=True)
    used = min(rank, len(s))
    up = weight.new_zeros(len(weight), rank)
    up[:, :used] = u[:, :used] * s[:used]
    return up, vh[:rank] @ root.inverse


def shared_key(keys: Tensor, energy: Tensor, root: Root) -> tuple[Tensor, Tensor]:
    """One RoPE key for several heads: ``keys[h, p]`` is about ``factor[h, p] * key[p]``.

    A pair of dims that RoPE turns is a complex number, and turning it commutes with multiplying it
    by another. So the shared key may differ from a head's by a complex factor, which goes into the
    head's query. For each pair the best key is the first right singular vector over the heads.

    Args:
        keys: ``[heads, pairs, D]`` complex, the projections to a pair.
        energy: ``[heads, pairs]``, mean squares of the queries that meet a key: an error counts as
            it moves the scores.

    Returns:
        ``factor [heads, pairs]`` and ``key [pairs, D]``, complex; factors are about 1 in size.
    """
    weight = energy.sqrt().clamp(min=1e-9 * energy.max().sqrt() + 1e-30)  # [heads, pairs]
    half, inverse = (x.to(keys.dtype) for x in (root.half, root.inverse))
    by_pair = (weight[..., None] * keys).transpose(0, 1) @ half  # [pairs, heads, D]
    u, s, vh = torch.linalg.svd(by_pair, full_matrices=False)
    factor = u[..., 0].T / weight
    size = factor.abs().square().mean(0).sqrt()
    return factor / size, (size * s[:, 0])[:, None] * (vh[:, 0] @ inverse)
