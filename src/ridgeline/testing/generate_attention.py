"""Random cases of ``attention`` from a seed, with the gradients that come back.

``attention_case(7)`` is the same case on every machine; properties can be chosen as in
``generate``: ``attention_case(7, lengths=[(9, 9), (3, 12)], packed=True, tree="nested")``.
"""

import random
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ridgeline.testing.cases import AttentionCase
from ridgeline.testing.generate import KERNEL_DTYPES, MAGNITUDES, Draw, empty, fill, scales, spread

DIMS = (1, 3, 8, 17, 32, 40, 64, 80, 100, 128, 192, 256)
LENGTHS = (1, 2, 7, 15, 16, 17, 31, 32, 33, 63, 64, 65, 100, 129, 200)
UNBOUNDED = 2**31 - 1


def attention_case(
    seed: int, dtypes: Sequence[torch.dtype] = KERNEL_DTYPES, **chosen: Any
) -> AttentionCase:
    """A case of ``attention``; ``dtypes`` are those to draw the dtype from.

    Properties: dtype, packed, lengths (pairs ``(L_q, L_k)``, all the same unless packed), kv_heads,
    group, dim, value_dim, softmax_scale, magnitude (of the scores), causal, window, softcap, tree
    (None, "nested" or "any": any vector beyond its own index), strides, with_dlse.
    """
    draw = Draw(seed, chosen)
    dtype = draw("dtype", dtypes)
    packed = draw("packed", [True, True, False])
    kv_heads = draw("kv_heads", [1, 1, 2, 3, 4])
    group = draw("group", [g for g in (1, 1, 2, 3, 4, 8) if g * kv_heads <= 8])
    dim = draw("dim", DIMS)
    value_dim = draw("value_dim", [dim, dim, *DIMS])
    lengths = _lengths(draw, packed, kv_heads * group * (dim + value_dim))
    rows, keys = [n for n, _ in lengths], [n for _, n in lengths]
    lead_q, lead_k = ((sum(n),) if packed else (len(n), max(n, default=3)) for n in (rows, keys))
    strides = draw("strides", [True, True, False])
    q = empty(draw, strides, (*lead_q, kv_heads * group, dim), dtype)
    k = empty(draw, strides, (*lead_k, kv_heads, dim), dtype)
    v = empty(draw, strides, (*lead_k, kv_heads, value_dim), dtype)
    dout = empty(draw, strides, (*q.shape[:-1], value_dim), dtype)
    scale = draw("softmax_scale", [None, None, None, *scales(dim)])
    reach = draw("magnitude", MAGNITUDES) / spread(dim, scale)
    fill(q, draw.normal(*q.shape, scale=reach))
    fill(k, draw.normal(*k.shape))
    fill(v, draw.normal(*v.shape, scale=draw.rng.choice((0.01, 1.0, 1.0, 10.0))))
    fill(dout, draw.normal(*dout.shape, scale=draw.rng.choice((0.01, 1.0, 1.0))))
    dlse = None
    if draw("with_dlse", [True, False]):
        lse_dtype = torch.float64 if dtype == torch.float64 else torch.float32
        dlse = empty(draw, strides, q.shape[:-1], lse_dtype)
        fill(dlse, draw.normal(*dlse.shape))
    tree = draw("tree", [None, None, "nested", "nested", "any"])
    case = AttentionCase(
        q,
        k,
        v,
        dout,
        dlse,
        causal=draw("causal", [True, False]),
        softmax_scale=scale,
        window=draw("window", [None, None, None, *_windows(draw.rng)]),
        softcap=draw("softcap", [0.0, 0.0, 0.0, 0.5, 30.0]),
        cu_seqlens_q=_starts(rows) if packed else None,
        cu_seqlens_k=_starts(keys) if packed else None,
        subtree_end=_ends(draw.rng, tree, keys).view(lead_k) if tree else None,
    )
    draw.done()
    return case


def _lengths(draw: Draw, packed: bool, width: int) -> list[tuple[int, int]]:
    """0 to 4 sequences: as many queries as keys, a chunk of a prefill, more queries, or none."""
    most = max(8, min(draw.rng.choice((8, 8, 20, 20, 40, 40, 70, 200)), 60_000 // width))
    drawn = []
    for _ in range(draw.rng.choice((0, 1, 1, 1, 2, 2, 3, 4))):
        a, b = (
            min(draw.rng.choice(LENGTHS), draw.rng.choice((most, draw.rng.randint(1, most))))
            for _ in range(2)
        )
        few, many = min(a, b), max(a, b)
        kinds = [(many, many)] * 4 + [(few, many)] * 3 + [(many, few), (0, few), (few, 0), (0, 0)]
        drawn.append(draw.rng.choice(kinds))
    return list(draw("lengths", [drawn if packed else drawn[:1] * draw.rng.choice((1, 1, 2, 3))]))


def _windows(rng: random.Random) -> list[tuple[int | None, int | None]]:
    left, right = (rng.choice((0, 1, 5, 32, 40, 1000, UNBOUNDED)) for _ in range(2))
    return [(left, None), (left, 0), (None, right), (left, right)]


def _starts(lengths: Sequence[int]) -> Tensor:
    return torch.tensor([0, *lengths]).cumsum(0).int()


def _ends(rng: random.Random, kind: str, lengths: Sequence[int]) -> Tensor:
    """``subtree_end [sum(lengths)]`` of a tree a sequence; ends past the sequence mean its end."""
    ends = []
    for n in lengths:
        if kind == "nested":
            row = _forest(rng, 0, n)
            ends += [rng.choice((e, e, e + 7, UNBOUNDED)) if e == n else e for e in row]
        else:
            ends += [j + 1 + rng.choice((0, 0, rng.randint(0, n), UNBOUNDED - n)) for j in range(n)]
    return torch.tensor(ends, dtype=torch.int32)


def _forest(rng: random.Random, start: int, stop: int) -> list[int]:
    """Ends of the tokens ``start:stop``, cut into subtrees, each a segment and a forest below."""
    ends = []
    while start < stop:
        size = rng.randint(1, stop - start)
        own = rng.randint(1, size)
        ends += [start + size] * own + _forest(rng, start + own, start + size)
        start += size
    return ends
