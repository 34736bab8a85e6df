"""What the interfaces promise, stated in plain PyTorch; it shares no code with the package.

``dtype`` is that of the arithmetic: float64 gives the truth, the inputs' own the yardstick.
"""

from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor


@dataclass
class Rules:
    """Which keys a query sees, and how scores are made."""

    scale: float
    causal: bool = False
    window: tuple[int, int] = (-1, -1)
    chunk: int = 0
    softcap: float = 0.0

    def sees(self, position: int, key: int) -> bool:
        left, right = self.window
        if self.causal and key > position:
            return False
        if left >= 0 and key < position - left:
            return False
        if right >= 0 and key > position + right:
            return False
        return self.chunk == 0 or key // self.chunk == position // self.chunk


def one_sequence(
    q: Tensor, k: Tensor, v: Tensor, qv: Tensor | None, rules: Rules, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """``q [L_q, h_q, d]``, ``k [n, h_kv, d]``, ``v`` -> ``out`` like q, ``lse [h_q, L_q]``."""
    rows, keys, heads = q.shape[0], k.shape[0], q.shape[1]
    q, k, v = q.to(dtype), k.to(dtype), v.to(dtype)
    hidden = torch.tensor(
        [[not rules.sees(i + keys - rows, j) for j in range(keys)] for i in range(rows)],
        dtype=torch.bool,
    ).reshape(rows, keys)
    out, lse = [], []
    for head in range(heads):
        shared = head // (heads // k.shape[1])
        scores = q[:, head] @ k[:, shared].T
        if qv is not None:
            scores = scores + qv[:, head].to(dtype) @ v[:, shared].T
        scores = scores * rules.scale
        if rules.softcap > 0:
            scores = rules.softcap * torch.tanh(scores / rules.softcap)
        scores = scores.masked_fill(hidden, -torch.inf)
        blind = hidden.all(1)
        p = torch.softmax(scores.masked_fill(blind[:, None], 0.0), 1) if keys else scores
        out.append((p @ v[:, shared]).masked_fill(blind[:, None], 0.0))
        lse.append(torch.logsumexp(scores, 1) if keys else scores.new_full((rows,), -torch.inf))
    return torch.stack(out, 1), torch.stack(lse)


def rotated(
    x: Tensor, cos: Tensor, sin: Tensor, position: int, interleaved: bool, dtype: torch.dtype
) -> Tensor:
    """One token ``x [h, d]`` turned pair by pair, in the dtype of ``x``."""
    pairs, result = cos.shape[1], x.to(dtype).clone()
    for i in range(pairs):
        a, b = (2 * i, 2 * i + 1) if interleaved else (i, i + pairs)
        c, s = cos[position, i].to(dtype), sin[position, i].to(dtype)
        real, imaginary = x[:, a].to(dtype), x[:, b].to(dtype)
        result[:, a] = real * c - imaginary * s
        result[:, b] = real * s + imaginary * c
    return result.to(x.dtype)


def split(x: Tensor | None, cu_seqlens: Tensor | None, batch: int) -> list[Tensor | None]:
    """The rows of each sequence, of a batch or of packed sequences."""
    if x is None:
        return [None] * batch
    if cu_seqlens is None:
        return list(x)
    return [x[a:b] for a, b in pairwise(cu_seqlens.tolist())]
