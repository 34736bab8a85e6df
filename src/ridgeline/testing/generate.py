"""Random cases from a seed: awkward shapes, strides, lengths and options.

``paged_case(7)`` is the same case on every machine. Any property can be chosen instead of drawn:
``paged_case(7, lengths=[64, 3], dtype=torch.bfloat16, causal=True, strides=False)``.
"""

import random
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ridgeline.testing.cases import MergeCase, PagedCase, TiedCase
from ridgeline.testing.layouts import records, strided

FP8 = torch.float8_e4m3fn
KERNEL_DTYPES = (torch.bfloat16, torch.float16, torch.float32)
DIMS = (1, 3, 8, 17, 40, 64, 80, 100, 128, 192, 256, 576)
PAGE_SIZES = (1, 2, 3, 7, 16, 31, 32, 64, 100, 128, 130)
MAGNITUDES = (1e-3, 0.1, 1.0, 1.0, 1.0, 3.0, 30.0, 1e3, 1e4)
MAX_CACHE = 60_000  # elements of one sequence's cache, so that a case takes milliseconds


class Draw:
    """Named random choices that a caller may fix."""

    def __init__(self, seed: int, chosen: dict[str, Any]) -> None:
        self.rng = random.Random(seed)
        self.values = torch.Generator().manual_seed(seed)
        self._chosen = dict(chosen)

    def __call__(self, name: str, options: Sequence[Any]) -> Any:
        drawn = self.rng.choice(options)
        return self._chosen.pop(name, drawn)

    def normal(self, *shape: int, scale: float = 1.0) -> Tensor:
        return torch.randn(shape, generator=self.values) * scale

    def done(self) -> None:
        if self._chosen:
            raise TypeError(f"unknown properties of a case: {', '.join(self._chosen)}")


def paged_case(
    seed: int, dtypes: Sequence[torch.dtype] = KERNEL_DTYPES, **chosen: Any
) -> PagedCase:
    """A case of ``paged_decode``; ``dtypes`` are those to draw the queries' dtype from.

    Properties: dtype, cache_dtype (None: as the queries), lengths, query_len, kv_heads, group, dim,
    value_dim, page_size, spare_pages, softmax_scale, magnitude (of the scores), causal, window,
    softcap, num_splits, strides, scale_kind (of FP8 caches: "number", "head",
    "block", or how many blocks).
    """
    draw = Draw(seed, chosen)
    dtype = draw("dtype", dtypes)
    cache_dtype = draw("cache_dtype", [None]) or dtype
    query_len, heads, kv_heads = _queries(draw)
    dim = draw("dim", DIMS)
    value_dim = draw("value_dim", [dim, dim, *DIMS])
    page_size = draw("page_size", [*PAGE_SIZES, draw.rng.randint(1, 130)])
    lengths = _lengths(draw, kv_heads * max(dim, value_dim), page_size, query_len)
    table, num_pages = _table(draw, lengths, page_size)
    strides = draw("strides", [True, True, False])
    k = empty(draw, strides, (num_pages, page_size, kv_heads, dim), cache_dtype)
    v = empty(draw, strides, (num_pages, page_size, kv_heads, value_dim), cache_dtype)
    fill(k, draw.normal(*k.shape))
    fill(v, draw.normal(*v.shape, scale=draw.rng.choice((0.01, 1.0, 1.0, 10.0))))
    q = empty(draw, strides, (len(lengths), query_len, heads, dim), dtype)
    scale = draw("softmax_scale", [None, None, None, *scales(dim)])
    reach = draw("magnitude", MAGNITUDES) / spread(dim, scale)
    k_scale = v_scale = None
    if cache_dtype == FP8:
        kind = draw("scale_kind", ["number", "head", "block"])
        k_scale, v_scale = (_fp8_scale(draw, kind, x) for x in (k, v))
    fill(q, draw.normal(*q.shape, scale=reach))
    case = PagedCase(
        q,
        k,
        v,
        table,
        torch.tensor(lengths, dtype=torch.int32),
        softmax_scale=scale,
        causal=draw("causal", [True, True, True, False]),
        window=draw("window", [None, None, None, *_windows(draw, page_size)]),
        softcap=draw("softcap", [0.0, 0.0, 0.0, 0.5, 30.0]),
        k_scale=k_scale,
        v_scale=v_scale,
        num_splits=draw("num_splits", [0, 1, 2, 3, 7, 64]),
    )
    draw.done()
    return case


def tied_case(seed: int, dtypes: Sequence[torch.dtype] = KERNEL_DTYPES, **chosen: Any) -> TiedCase:
    """A case of ``tied_decode``.

    Properties: dtype, cache_dtype, lengths, query_len, kv_heads (state heads), group, dim (of a
    state), nope_dim, rope_dim, page_size, spare_pages, softmax_scale, magnitude, causal,
    num_splits, strides (True, False, or "records": state and RoPE key in one record), scale_kind.
    """
    draw = Draw(seed, chosen)
    dtype = draw("dtype", dtypes)
    cache_dtype = draw("cache_dtype", [None]) or dtype
    query_len, heads, state_heads = _queries(draw)
    dim = draw("dim", DIMS)
    nope_dim = draw("nope_dim", [dim, dim, max(1, dim // 2), draw.rng.randint(1, dim)])
    rope_dim = draw("rope_dim", [0, 1, 8, 17, 32, 64, 64, dim // 2])
    page_size = draw("page_size", [*PAGE_SIZES, draw.rng.randint(1, 130)])
    lengths = _lengths(draw, state_heads * dim + rope_dim, page_size, query_len)
    table, num_pages = _table(draw, lengths, page_size)
    strides = draw("strides", [True, False, "records", "records"])
    if strides == "records" and cache_dtype == dtype:
        state, rope = records(num_pages, page_size, state_heads, dim, rope_dim, dtype)
    else:
        state = empty(draw, strides, (num_pages, page_size, state_heads, dim), cache_dtype)
        rope = empty(draw, strides, (num_pages, page_size, rope_dim), dtype)
    fill(state, draw.normal(*state.shape))
    fill(rope, draw.normal(*rope.shape))
    q_nope = empty(draw, strides, (len(lengths), query_len, heads, nope_dim), dtype)
    q_rope = empty(draw, strides, (len(lengths), query_len, heads, rope_dim), dtype)
    width = nope_dim + rope_dim
    scale = draw("softmax_scale", [width**-0.5, width**-0.5, *scales(width)])
    reach = draw("magnitude", MAGNITUDES) / spread(width, scale)
    fill(q_nope, draw.normal(*q_nope.shape, scale=reach))
    fill(q_rope, draw.normal(*q_rope.shape, scale=reach))
    state_scale = None
    if cache_dtype == FP8:
        state_scale = _fp8_scale(draw, draw("scale_kind", ["number", "head", "block"]), state)
    case = TiedCase(
        q_nope,
        q_rope,
        state,
        rope,
        table,
        torch.tensor(lengths, dtype=torch.int32),
        softmax_scale=scale,
        causal=draw("causal", [True, True, True, False]),
        state_scale=state_scale,
        num_splits=draw("num_splits", [0, 1, 2, 3, 7, 64]),
    )
    draw.done()
    return case


def merge_case(seed: int, **chosen: Any) -> MergeCase:
    """A case of ``merge``; parts may have seen nothing, and then hold garbage.

    Properties: dtype, lse_dtype, parts, rows, dim, magnitude (of the lses), strides.
    """
    draw = Draw(seed, chosen)
    dtype = draw("dtype", [*KERNEL_DTYPES, torch.float64])
    lse_dtype = draw("lse_dtype", [torch.float64 if dtype == torch.float64 else torch.float32])
    parts = draw("parts", [1, 2, 2, 3, 7, 64])
    rows = draw("rows", [(), (1,), (3, 5), (2, 3, 4), (0, 4), (5, 1, 7)])
    dim, strides = draw("dim", DIMS), draw("strides", [True, False])
    outs = empty(draw, strides, (parts, *rows, dim), dtype)
    fill(outs, draw.normal(*outs.shape, scale=draw.rng.choice((0.01, 1.0, 10.0))))
    lses = draw.normal(parts, *rows, scale=draw("magnitude", MAGNITUDES)).to(lse_dtype)
    unseen = torch.rand(lses.shape, generator=draw.values) < draw.rng.choice((0.0, 0.3, 0.9))
    lses[unseen] = -torch.inf
    outs[unseen] = draw.rng.choice((0.0, torch.nan, torch.inf))
    draw.done()
    return MergeCase(outs, lses)


def _queries(draw: Draw) -> tuple[int, int, int]:
    """L_q, query heads and kv heads: MHA, GQA and MQA of at most 32 query heads."""
    query_len = draw("query_len", [1, 1, 2, 3, 4, 5])
    kv_heads = draw("kv_heads", [1, 1, 2, 3, 4, 8])
    group = draw("group", [g for g in (1, 2, 3, 4, 5, 7, 8, 16, 32) if g * kv_heads <= 32])
    return query_len, kv_heads * group, kv_heads


def _lengths(draw: Draw, record: int, page_size: int, query_len: int) -> list[int]:
    """0 to 5 sequences whose lengths like 0, 1, L_q and the page's boundaries."""
    most = max(4, min(draw.rng.choice((300, 300, 300, 1000)), MAX_CACHE // record))
    edge = page_size * draw.rng.randint(1, max(1, most // page_size))
    likes = [0, 1, query_len - 1, query_len, edge - 1, edge, edge + 1]
    likes += [draw.rng.randint(1, most) for _ in range(6)]
    drawn = [min(draw.rng.choice(likes), most + 1) for _ in range(draw.rng.choice((0, 1, 2, 3, 5)))]
    return list(draw("lengths", [drawn]))


def _table(draw: Draw, lengths: Sequence[int], page_size: int) -> tuple[Tensor, int]:
    """A table of distinct, shuffled pages, wider than needed, and the number of pages.

    Sequences sometimes share the pages of their common prefix. Unused entries are valid page ids
    here; ``poison`` makes them garbage.
    """
    needed = [-(-n // page_size) for n in lengths]
    num_pages = sum(needed) + draw("spare_pages", [0, 1, 3])
    pages = draw.rng.sample(range(num_pages), num_pages)
    width = max(needed, default=0) + draw.rng.choice((0, 0, 1, 3))
    rows = [[draw.rng.randrange(max(num_pages, 1)) for _ in range(width)] for _ in lengths]
    for row, count in zip(rows, needed, strict=True):
        row[:count] = [pages.pop() for _ in range(count)]
    if len(rows) > 1 and draw.rng.random() < 0.3:
        shared = min(needed[0], lengths[1] // page_size)
        rows[1][:shared] = rows[0][:shared]
    table = torch.tensor(rows, dtype=torch.int32).reshape(len(lengths), width)
    return table, num_pages


def scales(width: int) -> tuple[float, ...]:
    """Twice and half the usual scale, a negative one, and 0."""
    return 2 * width**-0.5, 0.5 * width**-0.5, -(width**-0.5), 0.0


def spread(width: int, scale: float | None) -> float:
    """The deviation of a score of standard normal queries and keys."""
    return (abs(scale) if scale else width**-0.5) * width**0.5


def _windows(draw: Draw, page_size: int) -> list[tuple[int | None, int | None]]:
    left = draw.rng.choice((0, 1, 5, page_size, 1000, 2**31 - 1))
    right = draw.rng.choice((0, 1, 3, 1000, 2**31 - 1))
    return [(left, None), (left, 0), (None, right), (left, right)]


def empty(draw: Draw, strides: bool | str, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
    return strided(shape, dtype, draw.rng) if strides else torch.empty(shape, dtype=dtype)


def fill(x: Tensor, values: Tensor) -> None:
    most = min(torch.finfo(x.dtype).max, torch.finfo(values.dtype).max) / 2
    x.copy_(values.clamp(-most, most).to(x.dtype))


def _fp8_scale(draw: Draw, kind: str | int, cache: Tensor) -> Tensor | float:
    """Scales between 0.25 and 0.75: never 1, which would hide a dropped scale."""
    num_pages, page_size, heads, dim = cache.shape
    if kind == "number":
        return 0.25 + 0.5 * draw.rng.random()
    blocks = draw.rng.choice([n for n in (1, 2, 4, dim) if dim % n == 0])
    blocks = blocks if kind == "block" else kind
    shape = (heads,) if kind == "head" else (num_pages, page_size, heads, blocks)
    return 0.25 + 0.5 * torch.rand(shape, generator=draw.values)
