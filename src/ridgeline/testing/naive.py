"""The same-precision yardstick: attention as one writes it in eager PyTorch.

Every step is rounded to the dtype of the queries: ``q @ k^T``, softmax, ``p @ v``. Its error
against the oracle says what the dtype costs; ``tolerance`` allows an implementation twice that.
"""

import torch
from torch import Tensor

from ridgeline.testing.cases import DecodeCase, MergeCase, PagedCase, TiedCase, read_by, visible
from ridgeline.testing.oracle import tokens


def naive(case: DecodeCase | MergeCase) -> tuple[Tensor, Tensor]:
    """``out`` and ``lse`` of the case in float64, computed in the dtype of its queries."""
    match case:
        case MergeCase():
            return _merge(case)
        case PagedCase():
            q, value_dim = case.q, case.v_cache.shape[-1]
        case TiedCase():
            q, value_dim = torch.cat([case.q_nope, case.q_rope], -1), case.state_cache.shape[-1]
    batch, query_len, heads, _ = q.shape
    out = torch.zeros(batch, query_len, heads, value_dim, dtype=torch.float64)
    lse = torch.full((batch, query_len, heads), -torch.inf, dtype=torch.float64)
    for b in range(batch):
        run = read_by(case, b)
        if not run:
            continue
        k, v = _keys_and_values(case, b, run)
        for i in range(query_len):
            seen = visible(case, b, i)
            if seen:
                rows = slice(seen.start - run.start, seen.stop - run.start)
                softcap = case.softcap if isinstance(case, PagedCase) else 0.0
                out[b, i], lse[b, i] = _attend(q[b, i], k[rows], v[rows], case.scale, softcap)
    return out, lse


def _keys_and_values(case: DecodeCase, b: int, run: range) -> tuple[Tensor, Tensor]:
    """``k [n, h_kv, width]`` and ``v [n, h_kv, d_v]`` in the dtype of the queries."""
    table, dtype = case.block_table[b], case.q.dtype
    if isinstance(case, PagedCase):
        k = tokens(case.k_cache, case.k_scale, table, run)
        v = tokens(case.v_cache, case.v_scale, table, run)
        return torch.from_numpy(k).to(dtype), torch.from_numpy(v).to(dtype)
    state = torch.from_numpy(tokens(case.state_cache, case.state_scale, table, run)).to(dtype)
    rope = torch.from_numpy(tokens(case.rope_cache, None, table, run)).to(dtype)
    rope = rope[:, None].expand(-1, state.shape[1], -1)
    return torch.cat([state[..., : case.q_nope.shape[-1]], rope], -1), state


def _attend(q: Tensor, k: Tensor, v: Tensor, scale: float, softcap: float) -> tuple[Tensor, Tensor]:
    """One query: ``q [h_q, width]``, ``k [n, h_kv, width]``, ``v [n, h_kv, d_v]``."""
    q = (q * scale).unflatten(0, (k.shape[1], -1))
    scores = q @ k.permute(1, 2, 0)
    if softcap:
        scores = softcap * torch.tanh(scores / softcap)
    out = torch.softmax(scores, -1) @ v.transpose(0, 1)
    accurate = torch.float64 if q.dtype == torch.float64 else torch.float32
    lse = torch.logsumexp(scores.to(accurate), -1)
    return out.flatten(0, 1).double(), lse.flatten().double()


def _merge(case: MergeCase) -> tuple[Tensor, Tensor]:
    seen = case.lses > -torch.inf
    w = torch.softmax(case.lses, 0).masked_fill(~seen, 0.0)[..., None]
    parts = case.outs.masked_fill(~seen[..., None], 0.0)
    return (w.to(parts.dtype) * parts).sum(0).double(), torch.logsumexp(case.lses, 0).double()
