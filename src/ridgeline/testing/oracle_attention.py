"""What ``attention`` and its gradient must give, in float64, by a loop over the queries.

Written from the operation's definition and sharing no code with ``ridgeline.ops``: for each query
the list of its keys, then the heads of that query at once. Derivatives are of the definition too:
of ``s_j = cap(scale q · k_j)``, ``out = sum p v``, ``lse = log sum exp s``. Beside every gradient
stands what rounding can do to it at first order (see ``tolerance``).
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ridgeline.testing.cases import AttentionCase
from ridgeline.testing.oracle import Expected


@dataclass(frozen=True)
class Gradient:
    """An exact gradient, and the factors of eps, u and the subnormal in its rounding band.

    The factor of u is ``fine`` plus the root of ``squares``, of errors that are independent.
    """

    exact: Tensor
    coarse: Tensor
    fine: Tensor
    squares: Tensor
    tiny: Tensor

    @classmethod
    def like(cls, x: Tensor) -> "Gradient":
        return cls(*(torch.zeros(x.shape, dtype=torch.float64) for _ in range(5)))

    def add(self, index: object, **parts: np.ndarray) -> None:
        """Adds arrays ``[n, heads, d]`` or ``[heads, d]`` at ``index``."""
        for name, part in parts.items():
            getattr(self, name).numpy()[index] += part


@dataclass(frozen=True)
class ExpectedAttention:
    forward: Expected
    dq: Gradient
    dk: Gradient
    dv: Gradient


def keys_of(case: AttentionCase, length: int, position: int, ends: list[int] | None) -> list[int]:
    """The keys that a query at ``position`` of a sequence of ``length`` keys sees."""
    left, right = case.window or (None, None)
    first = 0 if left is None else position - left
    last = length - 1 if right is None else position + right
    if case.causal or ends is not None:
        last = min(last, position)
    seen = range(max(first, 0), min(last, length - 1) + 1)
    return [j for j in seen if ends is None or position < ends[j]]


def attention(case: AttentionCase) -> ExpectedAttention:
    """The exact results of a case."""
    q, k, v = case.q, case.k, case.v
    rows = tuple(q.shape[:-1])
    forward = Expected.empty(rows, v.shape[-1], q.shape[-1])
    want = ExpectedAttention(forward, *(Gradient.like(x) for x in (q, k, v)))
    for at_q, at_k in case.sequences():
        ends = None if case.subtree_end is None else case.subtree_end[at_k].tolist()
        keys, values = k[at_k].double().numpy(), v[at_k].double().numpy()
        queries, grads = q[at_q].double().numpy(), case.dout[at_q].double().numpy()
        dlse = np.zeros(queries.shape[:2])
        if case.dlse is not None:
            dlse = case.dlse[at_q].double().numpy()
        first = len(keys) - len(queries)
        start_q, start_k = (x.start if isinstance(x, slice) else 0 for x in (at_q, at_k))
        for i in range(len(queries)):
            seen = keys_of(case, len(keys), first + i, ends)
            if not seen:
                continue
            row = start_q + i if isinstance(at_q, slice) else (at_q, i)
            if len(seen) == seen[-1] - seen[0] + 1:  # a slice is faster than a list
                where = slice(start_k + seen[0], start_k + seen[-1] + 1)
            else:
                where = [start_k + j for j in seen]
            cols = where if isinstance(at_k, slice) else (at_k, where)
            _put(case, want, row, cols, queries[i], keys[seen], values[seen], grads[i], dlse[i])
    _finish(want)
    return want


def _put(
    case: AttentionCase,
    want: ExpectedAttention,
    row: object,
    cols: object,
    q: np.ndarray,
    k: np.ndarray,
    v: np.ndarray,
    dout: np.ndarray,
    dlse: np.ndarray,
) -> None:
    """One query: ``q [h_q, d]``, ``k [n, h_kv, d]``, ``v [n, h_kv, d_v]``; below [h_kv, g, n]."""
    n, kv_heads, dim = k.shape
    value_dim, scale = v.shape[-1], case.scale
    q, dout = q.reshape(kv_heads, -1, dim), dout.reshape(kv_heads, -1, value_dim)
    dlse = dlse.reshape(kv_heads, -1, 1)
    k, v = k.transpose(1, 0, 2), v.transpose(1, 0, 2)  # [h_kv, n, ...]
    abs_q, abs_k, abs_v, abs_dout = np.abs(q), np.abs(k), np.abs(v), np.abs(dout)

    scores, a = scale * (q @ _t(k)), abs(scale) * (abs_q @ _t(abs_k))
    slope, bend = 1.0, 0.0  # of the soft cap, and the error of its slope
    if case.softcap:
        t = np.tanh(scores / case.softcap)
        slope = 1 - t * t
        bend = 8 * np.abs(t) * (1 + dim**0.5 * a * slope / case.softcap)
        scores, a = case.softcap * t, a * slope + case.softcap * np.abs(t)
    top = scores.max(-1, keepdims=True)
    e = np.exp(scores - top)
    total = e.sum(-1, keepdims=True)
    p, lse = e / total, top + np.log(total)
    out = p @ v
    weight, mean_a = p @ abs_v, (p * a).sum(-1, keepdims=True)
    deviation = np.abs(v[:, None] - out[:, :, None])  # [h_kv, g, n, d_v]
    swing = np.einsum("hgn,hgnd->hgd", p * a, deviation)
    for name, x in (("out", out), ("weight", weight), ("swing", swing)):
        getattr(want.forward, name)[row] = torch.from_numpy(x.reshape(-1, value_dim))
    for name, x in (("lse", lse), ("score", mean_a)):
        getattr(want.forward, name)[row] = torch.from_numpy(x.reshape(-1))
    want.forward.tokens[row] = n
    peak = abs_v.max((1, 2)).repeat(q.shape[1])
    want.forward.peak[row] = torch.from_numpy(peak)

    dp = dout @ _t(v)
    delta = (p * dp).sum(-1, keepdims=True)
    g = dp - delta + dlse
    factor = scale * slope * p
    ds = factor * g
    # Errors in u: of a key's own p and ds, and of what all the keys of a query share.
    p_own, p_shared = 4 * (dim**0.5 * a + 4), 4 * (dim**0.5 * mean_a + n**0.5 + np.abs(lse))
    ds_own = np.abs(factor) * (np.abs(g) * p_own + 4 * value_dim**0.5 * (abs_dout @ _t(abs_v)))
    ds_own += np.abs(scale * p * g) * bend
    delta_fine = (value_dim**0.5 + n**0.5 + 4) * (weight * abs_dout).sum(-1, keepdims=True)
    delta_fine = 4 * (delta_fine + dim**0.5 * (swing * abs_dout).sum(-1, keepdims=True))
    delta_coarse = (p * np.abs(dp)).sum(-1, keepdims=True) / 2
    delta_coarse += 2 * np.sqrt(((out * dout) ** 2).sum(-1, keepdims=True))
    ds_shared = np.abs(ds) * p_shared + np.abs(factor) * delta_fine
    terms = q.shape[1] * case.q[..., 0, 0].numel()  # at most so many queries add to a key
    least = max(1.0, abs(scale))

    dq, common = ds @ k, np.abs(factor @ k)
    want.dq.add(
        row,
        exact=_rows(dq),
        coarse=_rows(np.abs(ds) @ abs_k / 2 + delta_coarse * common),
        fine=_rows(4 * n**0.5 * np.abs(ds) @ abs_k + p_shared * np.abs(dq) + delta_fine * common),
        squares=_rows(ds_own**2 @ k**2),
        tiny=_rows(np.full_like(p, least) @ abs_k),
    )
    want.dk.add(
        cols,
        exact=_cols(ds, q),
        coarse=_cols(np.abs(ds) / 2 + np.abs(factor) * delta_coarse, abs_q),
        fine=_cols(4 * terms**0.5 * np.abs(ds), abs_q),
        squares=_cols(ds_own**2 + ds_shared**2, q**2),
        tiny=_cols(np.full_like(p, least), abs_q),
    )
    want.dv.add(
        cols,
        exact=_cols(p, dout),
        coarse=_cols(p / 2, abs_dout),
        fine=_cols(4 * terms**0.5 * p, abs_dout),
        squares=_cols(p**2 * (p_own**2 + p_shared**2), dout**2),
        tiny=_cols(np.ones_like(p), abs_dout),
    )


def _finish(want: ExpectedAttention) -> None:
    """The result itself is rounded once; ``fine`` is complete."""
    for gradient in (want.dq, want.dk, want.dv):
        gradient.coarse.add_(gradient.exact.abs() / 2)
        gradient.fine.add_((gradient.squares + 1e-300).sqrt())  # which may have underflowed
        gradient.tiny.add_((gradient.tiny > 0).double())


def _t(x: np.ndarray) -> np.ndarray:
    return x.transpose(0, 2, 1)


def _rows(x: np.ndarray) -> np.ndarray:
    """``[h_kv, g, d]`` as ``[h_q, d]``."""
    return np.ascontiguousarray(x).reshape(-1, x.shape[-1])


def _cols(weights: np.ndarray, x: np.ndarray) -> np.ndarray:
    """``weights [h_kv, g, n]`` times ``x [h_kv, g, d]``, summed over g: ``[n, h_kv, d]``."""
    return (_t(weights) @ x).transpose(1, 0, 2)
