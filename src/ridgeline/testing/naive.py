"""The same-precision yardstick: attention as one writes it in eager PyTorch.

Every step is rounded to the dtype of the queries: ``q @ k^T``, softmax, ``p @ v``, and in their
gradients by autograd. Its error against the oracle says what the dtype costs; ``tolerance`` allows
an implementation twice that.
"""

import torch
from torch import Tensor

from ridgeline.testing.cases import (
    AttentionCase,
    Case,
    DecodeCase,
    MergeCase,
    PagedCase,
    TiedCase,
    read_by,
    visible,
)
from ridgeline.testing.oracle import tokens
from ridgeline.testing.oracle_attention import keys_of


def naive(case: Case) -> tuple[Tensor, ...]:
    """The results of the case in float64, computed in the dtype of its queries."""
    match case:
        case AttentionCase():
            return _attention(case)
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


def _attention(case: AttentionCase) -> tuple[Tensor, ...]:
    """``out``, ``lse``, ``dq``, ``dk`` and ``dv``."""
    accurate = torch.float64 if case.q.dtype == torch.float64 else torch.float32
    out = case.dout.new_zeros(case.dout.shape)
    lse = torch.full(case.q.shape[:-1], -torch.inf, dtype=accurate)
    inputs = (case.q, case.k, case.v)
    grads = [torch.zeros(x.shape, dtype=x.dtype) for x in inputs]
    for at_q, at_k in case.sequences():
        ends = None if case.subtree_end is None else case.subtree_end[at_k].tolist()
        q, k, v = (
            x[at].detach().clone().requires_grad_()
            for x, at in zip(inputs, (at_q, at_k, at_k), strict=True)
        )
        seen = torch.zeros(len(q), len(k), dtype=torch.bool)
        for i in range(len(q)):
            seen[i, keys_of(case, len(k), len(k) - len(q) + i, ends)] = True
        rows = seen.any(1)
        if not rows.any():
            continue
        scores = (q * case.scale)[rows].unflatten(1, (k.shape[1], -1)).permute(1, 2, 0, 3)
        scores = scores @ k.permute(1, 2, 0)[:, None]  # [h_kv, g, rows, L_k]
        if case.softcap:
            scores = case.softcap * torch.tanh(scores / case.softcap)
        scores = scores.masked_fill(~seen[rows], -torch.inf)
        result = (torch.softmax(scores, -1) @ v.transpose(0, 1)[:, None]).permute(2, 0, 1, 3)
        sums = torch.logsumexp(scores.to(accurate), -1).permute(2, 0, 1)
        loss = [result.flatten(1, 2), sums.flatten(1)][: 1 if case.dlse is None else 2]
        back = [x[at_q][rows] for x in (case.dout, case.dlse)[: len(loss)]]
        out[at_q][rows], lse[at_q][rows] = result.flatten(1, 2).detach(), sums.flatten(1).detach()
        for grad, x, at in zip(
            grads, torch.autograd.grad(loss, (q, k, v), back), (at_q, at_k, at_k), strict=True
        ):
            grad[at] = x
    return out.double(), lse.double(), *(x.double() for x in grads)
