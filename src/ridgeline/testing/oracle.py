"""What the operations must give, in float64, by plain loops over batch, query and head.

Written from the operations' definition and sharing no code with ``ridgeline.ops``: a row's tokens
are one Python range, and a cached token is looked up as ``cache[table[t // page], t % page]``.
Scales of FP8 caches are float32, also when given as a number.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ridgeline.testing.cases import DecodeCase, MergeCase, PagedCase, TiedCase, read_by, visible


@dataclass(frozen=True)
class Expected:
    """Exact results, and what rounding can do to them at first order (see ``tolerance``).

    With probabilities p, values v, result o and ``a_n`` the magnitude of the terms that are summed
    to score n (``scale * |q| · |k_n|``): ``weight = sum p |v|``, ``swing = sum p a |v - o|``,
    ``score = sum p a``; ``tokens`` is the number of keys of a row, ``peak = max |v|``.
    """

    out: Tensor
    lse: Tensor
    weight: Tensor
    swing: Tensor
    score: Tensor
    tokens: Tensor
    peak: Tensor
    width: int

    @classmethod
    def empty(cls, rows: tuple[int, ...], value_dim: int, width: int) -> "Expected":
        """Rows that see nothing: 0 and -inf, no error allowed."""
        zeros = {
            name: torch.zeros(*rows, value_dim, dtype=torch.float64)
            for name in ("out", "weight", "swing")
        }
        zeros |= {
            name: torch.zeros(rows, dtype=torch.float64) for name in ("score", "tokens", "peak")
        }
        lse = torch.full(rows, -torch.inf, dtype=torch.float64)
        return cls(lse=lse, width=width, **zeros)

    def put(self, row: tuple[int, ...], scores: np.ndarray, a: np.ndarray, v: np.ndarray) -> None:
        """Attention of one row: ``scores [n]``, their magnitudes ``a [n]``, values ``v [n, d]``."""
        top = scores.max()
        e = np.exp(scores - top)
        p = e / e.sum()
        out = p @ v
        self.lse[row] = top + np.log(e.sum())
        self.out[row] = torch.from_numpy(out)
        self.weight[row] = torch.from_numpy(p @ np.abs(v))
        self.swing[row] = torch.from_numpy((p * a) @ np.abs(v - out))
        self.score[row] = p @ a
        self.tokens[row] = len(scores)
        self.peak[row] = np.abs(v).max(initial=0.0)


def expected(case: DecodeCase | MergeCase) -> Expected:
    """The exact result of any case."""
    match case:
        case PagedCase():
            return paged_decode(case)
        case TiedCase():
            return tied_decode(case)
        case MergeCase():
            return merge(case)


def paged_decode(case: PagedCase) -> Expected:
    """``softmax(cap(scale * q K^T)) V`` over the tokens that each query sees."""
    batch, query_len, heads, dim = case.q.shape
    group = heads // case.k_cache.shape[2]
    result = Expected.empty((batch, query_len, heads), case.v_cache.shape[-1], dim)
    for b in range(batch):
        run = read_by(case, b)
        k = tokens(case.k_cache, case.k_scale, case.block_table[b], run)
        v = tokens(case.v_cache, case.v_scale, case.block_table[b], run)
        for i in range(query_len):
            seen = visible(case, b, i)
            rows = slice(seen.start - run.start, seen.stop - run.start)
            for h in range(heads if seen else 0):
                q = case.q[b, i, h].double().numpy()
                keys = k[rows, h // group]
                scores, a = case.scale * (keys @ q), abs(case.scale) * (np.abs(keys) @ np.abs(q))
                if case.softcap:
                    t = np.tanh(scores / case.softcap)
                    scores, a = case.softcap * t, a * (1 - t * t) + case.softcap * np.abs(t)
                result.put((b, i, h), scores, a, v[rows, h // group])
    return result


def tied_decode(case: TiedCase) -> Expected:
    """``score = scale * (q_nope · state[:d_n] + q_rope · rope)``; the values are the states."""
    batch, query_len, heads, nope_dim = case.q_nope.shape
    group = heads // case.state_cache.shape[2]
    width = nope_dim + case.q_rope.shape[-1]
    result = Expected.empty((batch, query_len, heads), case.state_cache.shape[-1], width)
    for b in range(batch):
        run = read_by(case, b)
        state = tokens(case.state_cache, case.state_scale, case.block_table[b], run)
        rope = tokens(case.rope_cache, None, case.block_table[b], run)
        for i in range(query_len):
            seen = visible(case, b, i)
            rows = slice(seen.start - run.start, seen.stop - run.start)
            for h in range(heads if seen else 0):
                nope = case.q_nope[b, i, h].double().numpy()
                turned = case.q_rope[b, i, h].double().numpy()
                values = state[rows, h // group]
                keys = values[:, :nope_dim]
                scores = case.scale * (keys @ nope + rope[rows] @ turned)
                a = np.abs(keys) @ np.abs(nope) + np.abs(rope[rows]) @ np.abs(turned)
                result.put((b, i, h), scores, abs(case.scale) * a, values)
    return result


def merge(case: MergeCase) -> Expected:
    """``sum_s exp(lse_s - lse) out_s``: a softmax over the parts whose scores are their lses."""
    outs, lses = case.outs.double().numpy(), case.lses.double().numpy()
    rows = outs.shape[1:-1]
    result = Expected.empty(rows, outs.shape[-1], 1)
    for row in np.ndindex(*rows):
        scores = lses[:, *row]
        used = scores != -np.inf
        if used.any():
            a = np.abs(scores[used]) + np.abs(scores[used]).max()
            result.put(row, scores[used], a, outs[:, *row][used])
    return result


def tokens(cache: Tensor, scale: Tensor | float | None, table: Tensor, run: range) -> np.ndarray:
    """Cached records of the tokens in ``run``, ``[n, ...]`` in float64, scales applied."""
    page_size = cache.shape[1]
    pages = table.tolist()
    where = [(pages[t // page_size], t % page_size) for t in run]
    if not where:
        return np.zeros((0, *cache.shape[2:]))
    x = torch.stack([cache[p, s] for p, s in where]).double()
    if isinstance(scale, Tensor) and scale.dim() == 1:
        x = x * scale.double()[:, None]
    elif isinstance(scale, Tensor) and scale.dim() == 4:
        blocks = torch.stack([scale[p, s] for p, s in where]).double()
        block = cache.shape[-1] // scale.shape[-1]
        x = x * blocks[..., torch.arange(cache.shape[-1]) // block]
    elif scale is not None:
        x = x * float(np.float32(scale))
    return x.numpy()
