"""Calls of the interfaces from a seed, each with what it must give and what it may write."""

import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from interface_statement import Rules, one_sequence, rotated, split
from torch import Tensor

from ridgeline import flash_attn_interface, flash_mla_interface
from ridgeline.testing.layouts import clone, strided

FP8 = torch.float8_e4m3fn
WINDOWS = ((-1, -1), (-1, -1), (2, -1), (-1, 2), (-1, 1), (3, 1), (0, 0), (4, 0), (-3, 0), (50, 1))
GARBAGE_PAGES = (2147480000, -1, -(2**31))


@dataclass
class Case:
    """One call; ``expected(dtype)`` is ``(out, lse)`` computed in ``dtype``."""

    function: str
    arguments: dict[str, Any]
    expected: Callable[[torch.dtype], tuple[Tensor, Tensor]]
    out_dtype: torch.dtype
    yardstick: torch.dtype
    largest: float  # of |v|, which bounds the result
    out_eps: float
    lse_flag: str | None
    writes: Callable[[dict[str, Any]], None] | None = None  # appends to a copy of the arguments
    near: bool = False  # rotated keys may differ in their last bit

    def call(self) -> tuple[Tensor, Tensor]:
        name = self.function
        module = flash_mla_interface if name.startswith("flash_mla") else flash_attn_interface
        arguments = dict(self.arguments)
        if self.lse_flag:
            arguments[self.lse_flag] = True
        return getattr(module, name)(**arguments)[:2]


class Draw:
    def __init__(self, seed: int) -> None:
        self.rng = random.Random(seed)
        self.values = torch.Generator().manual_seed(seed)

    def __call__(self, *options: Any) -> Any:
        return self.rng.choice(options)

    def often(self, probability: float) -> bool:
        return self.rng.random() < probability

    def normal(self, shape: tuple[int, ...], dtype: torch.dtype, scale: float = 1.0) -> Tensor:
        x = (torch.randn(shape, generator=self.values, dtype=torch.float64) * scale).to(dtype)
        if dtype == FP8 or not self.often(0.5):
            return x
        return strided(shape, dtype, self.rng).copy_(x)

    def dtype(self, *more: torch.dtype) -> torch.dtype:
        double = torch.float64
        kinds = (double, double, double, torch.float32, torch.bfloat16, torch.float16)
        return self(*kinds, *more, *more)

    def heads(self) -> tuple[int, int]:
        kv_heads = self(1, 2, 2, 3)
        return kv_heads * self(1, 2, 3), kv_heads

    def rules(self, width: int) -> tuple[Rules, dict[str, Any]]:
        """Rules and the arguments that say them."""
        causal = self.often(0.5)
        window = self(*WINDOWS)
        chunk = self(0, 0, 0, 1, 3, 4, 2**31 - 1) if causal or window[1] == 0 else 0
        scale = self(None, None, 0.7, -0.3)
        softcap = self(0.0, 0.0, 0.0, 0.8, 5.0)
        rules = Rules(width**-0.5 if scale is None else scale, causal, window, chunk, softcap)
        return rules, {
            "softmax_scale": scale,
            "causal": causal,
            "window_size": self(tuple, list)(window),
            "attention_chunk": chunk,
            "softcap": softcap,
            "pack_gqa": self(None, True, False),
            "sm_margin": self(0, 4),
            "num_splits": self(0, 1, 3),
        }

    def descales(self, batch: int, kv_heads: int) -> dict[str, Tensor | None]:
        def one() -> Tensor | None:
            x = torch.randint(-2, 2, (batch, kv_heads), generator=self.values)
            return None if self.often(0.2) else 2.0**x

        return {"q_descale": one(), "k_descale": one(), "v_descale": one()}


def eps(dtype: torch.dtype) -> float:
    """The spacing at 1 of what a result of inputs in ``dtype`` is stored and multiplied in.

    FP8 attention rounds probabilities to e4m3; see the operation's README.
    """
    return 2.0**-4 if dtype == FP8 else torch.finfo(dtype).eps


def times(x: Tensor, descale: Tensor | None, b: int, group: int = 1) -> Tensor:
    """Sequence b of an FP8 input ``[L, h, d]`` with its scales, in float64."""
    x = x.double()
    if descale is None:
        return x
    return x * descale[b].double().repeat_interleave(group)[:, None]


def lengths_of(draw: Draw, batch: int, most: int) -> list[int]:
    return [draw(0, 1, draw.rng.randint(0, most)) for _ in range(batch)]


def starts(lengths: list[int]) -> Tensor:
    return torch.tensor([sum(lengths[:i]) for i in range(len(lengths) + 1)], dtype=torch.int32)


def dense_case(seed: int, packed: bool = False) -> Case:
    """``flash_attn_func`` or ``flash_attn_varlen_func``."""
    draw = Draw(seed)
    dtype = draw.dtype(FP8)
    batch, (heads, kv_heads) = draw(1, 2, 3), draw.heads()
    d, d_v = draw(1, 4, 8, 17), draw(1, 5, 8)
    has_qv = dtype != FP8 and draw.often(0.3)
    if packed:
        q_lengths, k_lengths = lengths_of(draw, batch, 7), lengths_of(draw, batch, 9)
        q_lead, k_lead = (sum(q_lengths),), (sum(k_lengths),)
    else:
        q_lead, k_lead = (batch, draw(0, 1, 4, 7)), (batch, draw(0, 1, 5, 9))
    rules, options = draw.rules(d + d_v if has_qv else d)
    tensors = {
        "q": draw.normal((*q_lead, heads, d), dtype),
        "k": draw.normal((*k_lead, kv_heads, d), dtype),
        "v": draw.normal((*k_lead, kv_heads, d_v), dtype),
    }
    if has_qv:
        tensors["qv"] = draw.normal((*q_lead, heads, d_v), dtype)
    descales = draw.descales(batch, kv_heads) if dtype == FP8 else {}
    cu_q = cu_k = None
    layout, used_q, used_k = {}, None, None
    if packed:
        cu_q, cu_k = starts(q_lengths), starts(k_lengths)
        layout = {"cu_seqlens_q": cu_q, "cu_seqlens_k": cu_k}
        layout["max_seqlen_q"] = draw(None, max(q_lengths), max(q_lengths) + 5)
        layout["max_seqlen_k"] = draw(None, max(k_lengths), 100)
        if draw.often(0.3):
            used_q = [draw.rng.randint(0, n) for n in q_lengths]
            layout["seqused_q"] = torch.tensor(used_q, dtype=torch.int32)
        if draw.often(0.3):
            used_k = [draw.rng.randint(0, n) for n in k_lengths]
            layout["seqused_k"] = torch.tensor(used_k, dtype=torch.int32)
            for b, n in enumerate(used_k):  # nobody may look at the rest
                first, last = int(cu_k[b]) + n, int(cu_k[b + 1])
                for name in ("k", "v"):
                    tensors[name][first:last] = torch.tensor(torch.nan).to(dtype)

    def expected(arithmetic: torch.dtype) -> tuple[Tensor, Tensor]:
        outs, lses = [], []
        parts = zip(
            split(tensors["q"], cu_q, batch),
            split(tensors["k"], cu_k, batch),
            split(tensors["v"], cu_k, batch),
            split(tensors.get("qv"), cu_q, batch),
            strict=True,
        )
        for b, (q, k, v, qv) in enumerate(parts):
            rows = q.shape[0]
            if used_q is not None:
                q, qv = q[: used_q[b]], None if qv is None else qv[: used_q[b]]
            if used_k is not None:
                k, v = k[: used_k[b]], v[: used_k[b]]
            if dtype == FP8:
                q = times(q, descales["q_descale"], b, heads // kv_heads)
                k, v = times(k, descales["k_descale"], b), times(v, descales["v_descale"], b)
            out, lse = one_sequence(q, k, v, qv, rules, arithmetic)
            missing = rows - q.shape[0]
            outs.append(torch.cat((out, out.new_zeros(missing, heads, d_v))))
            lses.append(torch.cat((lse, lse.new_full((heads, missing), -torch.inf)), 1))
        if packed:
            return torch.cat(outs), torch.cat(lses, 1)
        return torch.stack(outs), torch.stack(lses)

    return Case(
        "flash_attn_varlen_func" if packed else "flash_attn_func",
        tensors | layout | descales | options | {"deterministic": draw(False, True)},
        expected,
        torch.bfloat16 if dtype == FP8 else dtype,
        torch.float64 if dtype == FP8 else dtype,
        _largest(tensors["v"]) * (2 if dtype == FP8 else 1),
        eps(dtype),
        "return_attn_probs",
    )


def varlen_case(seed: int) -> Case:
    return dense_case(seed, packed=True)


def qkvpacked_case(seed: int) -> Case:
    draw = Draw(seed)
    dtype = draw.dtype(FP8)
    batch, length, d = draw(1, 2), draw(0, 1, 6), draw(3, 8)
    heads, kv_heads = draw.heads()
    rules, options = draw.rules(d)
    del options["num_splits"], options["pack_gqa"]
    options["deterministic"] = draw(False, True)
    if draw.often(0.5):
        heads = kv_heads
        qkv = draw.normal((batch, length, 3, heads, d), dtype)
        q, k, v = (qkv[:, :, i] for i in range(3))
        options["num_heads_q"] = draw(None, heads)
    else:
        qkv = draw.normal((batch, length, heads + 2 * kv_heads, d), dtype)
        q, k = qkv[:, :, :heads], qkv[:, :, heads : heads + kv_heads]
        v = qkv[:, :, heads + kv_heads :]
        options["num_heads_q"] = heads
    descales = draw.descales(batch, kv_heads) if dtype == FP8 else {}

    def expected(arithmetic: torch.dtype) -> tuple[Tensor, Tensor]:
        outs, lses = [], []
        for b in range(batch):
            inputs = q[b], k[b], v[b]
            if dtype == FP8:
                inputs = (
                    times(q[b], descales["q_descale"], b, heads // kv_heads),
                    times(k[b], descales["k_descale"], b),
                    times(v[b], descales["v_descale"], b),
                )
            out, lse = one_sequence(*inputs, None, rules, arithmetic)
            outs.append(out)
            lses.append(lse)
        return torch.stack(outs), torch.stack(lses)

    return Case(
        "flash_attn_qkvpacked_func",
        {"qkv": qkv} | descales | options,
        expected,
        torch.bfloat16 if dtype == FP8 else dtype,
        torch.float64 if dtype == FP8 else dtype,
        _largest(v) * (2 if dtype == FP8 else 1),
        eps(dtype),
        "return_attn_probs",
    )


def combine_case(seed: int) -> Case:
    draw = Draw(seed)
    dtype = draw(torch.float64, torch.float32, torch.float32)
    parts, batch, length, heads, d = (
        draw(1, 2, 5),
        draw(1, 2),
        draw(0, 1, 4),
        draw(1, 3),
        draw(1, 6),
    )
    outs = draw.normal((parts, batch, length, heads, d), dtype)
    lses = draw.normal((parts, batch, length, heads), dtype, scale=draw(1.0, 30.0))
    lses[torch.rand(lses.shape, generator=draw.values) < 0.3] = -torch.inf
    outs[lses == -torch.inf] = draw(0.0, torch.nan)
    kind = draw(None, dtype, torch.bfloat16, torch.float16)
    result = dtype if kind is None else kind
    arguments = {"out_partial": outs, "lse_partial": lses, "out_dtype": kind}
    if draw.often(0.4):
        arguments["out"] = torch.full((batch, length, heads, d), torch.nan, dtype=result)

    def expected(arithmetic: torch.dtype) -> tuple[Tensor, Tensor]:
        x = lses.to(arithmetic)
        lse = torch.logsumexp(x, 0)
        weight = torch.exp(x - lse.masked_fill(lse == -torch.inf, 0.0))
        seen = torch.where(weight[..., None] > 0, outs.to(arithmetic), 0.0)
        return (weight[..., None] * seen).sum(0), lse

    def writes(copies: dict[str, Any]) -> None:
        if "out" in copies:
            copies["out"].copy_(arguments["out"])  # compared with the result instead

    largest = _largest(outs) * (1 + _largest(lses.masked_fill(lses == -torch.inf, 0.0)))
    spacing = torch.finfo(result).eps
    kinds = (result, dtype)
    return Case("flash_attn_combine", arguments, expected, *kinds, largest, spacing, None, writes)


def mla_case(seed: int) -> Case:
    draw = Draw(seed)
    dtype = draw.dtype()
    batch, length_q, (heads, kv_heads) = draw(0, 1, 3), draw(1, 2, 5), draw.heads()
    d_v, d_r, page_size = draw(1, 6, 16), draw(0, 1, 4), draw(1, 3, 8, 64)
    lengths = [draw(0, 1, length_q, draw.rng.randint(0, 20)) for _ in range(batch)]
    table, num_pages = _table(draw, [range(n) for n in lengths], page_size, 20)
    per_head = draw.often(0.6)
    if per_head:
        cache = draw.normal((num_pages, page_size, kv_heads, d_v + d_r), dtype)
    else:
        cache = draw.normal((num_pages, page_size, kv_heads * d_v + d_r), dtype)
    _poison(cache, table, [range(n) for n in lengths])
    q = draw.normal((batch, length_q, heads, d_v + d_r), dtype)
    scale, causal = draw(None, 0.4), draw.often(0.5)
    rules = Rules((d_v + d_r) ** -0.5 if scale is None else scale, causal)

    def expected(arithmetic: torch.dtype) -> tuple[Tensor, Tensor]:
        outs = [q.new_zeros(0, length_q, heads, d_v, dtype=arithmetic)]
        lses = [q.new_zeros(0, heads, length_q, dtype=arithmetic)]
        for b, n in enumerate(lengths):
            tokens = [cache[int(table[b, t // page_size]), t % page_size] for t in range(n)]
            tokens = torch.stack(tokens) if n else cache.new_zeros(0, *cache.shape[2:])
            if per_head:
                k, v = tokens, tokens[..., :d_v]
            else:
                v = tokens[:, : kv_heads * d_v].reshape(n, kv_heads, d_v)
                rope = tokens[:, None, kv_heads * d_v :].expand(n, kv_heads, d_r)
                k = torch.cat((v, rope), -1)
            out, lse = one_sequence(q[b], k, v, None, rules, arithmetic)
            outs.append(out[None])
            lses.append(lse.masked_fill(lse == -torch.inf, torch.inf)[None])
        return torch.cat(outs), torch.cat(lses)

    arguments = {
        "q": q,
        "k_cache": cache,
        "block_table": table,
        "cache_seqlens": torch.tensor(lengths, dtype=torch.int32),
        "head_dim_v": d_v,
        "tile_scheduler_metadata": flash_mla_interface.get_mla_metadata()[0],
        "softmax_scale": scale,
        "causal": causal,
    }
    largest = float(cache.double().nan_to_num().abs().max()) if cache.numel() else 0.0
    kinds = (dtype, dtype)
    return Case("flash_mla_with_kvcache", arguments, expected, *kinds, largest, eps(dtype), None)


def kvcache_case(seed: int) -> Case:
    draw = Draw(seed)
    dtype = draw.dtype(FP8)
    batch, (heads, kv_heads) = draw(1, 2, 3, 4), draw.heads()
    d, d_v = draw(2, 8, 17), draw(1, 5, 8)
    has_qv = dtype != FP8 and draw.often(0.3)
    rules, options = draw.rules(d + d_v if has_qv else d)
    packed = draw.often(0.4)
    q_lengths = lengths_of(draw, batch, 6) if packed else [draw(0, 1, 2, 3, 5)] * batch
    new_packed = draw.often(0.4)
    has_new = draw.often(0.7)
    new = lengths_of(draw, batch, 5) if new_packed else [draw(0, 1, 3)] * batch
    new = new if has_new else [0] * batch
    kind = draw("tensor", "tensor", "int", "none")
    before = [draw(0, 1, draw.rng.randint(0, 18)) for _ in range(batch)]
    if kind == "int":
        before = before[:1] * batch
    after = [n + m for n, m in zip(before, new, strict=True)]
    capacity = max(after)
    leftpad = None
    if draw.often(0.4):
        leftpad = [draw.rng.randint(0, n) for n in before]
    first = leftpad or [0] * batch

    # A window hides what lies before it, which then may be garbage.
    reads = []
    for b in range(batch):
        hidden = first[b]
        if rules.window[0] >= 0:
            hidden = max(hidden, after[b] - q_lengths[b] - rules.window[0])
        reads.append(range(hidden, after[b]))
    needed = [range(min(r.start, n), r.stop) for r, n in zip(reads, before, strict=True)]
    paged = draw.often(0.6)
    if paged and draw.often(0.8):
        page_size = draw(1, 2, 3, 5, 16)
        table, num_pages = _table(draw, needed, page_size, capacity)
    else:
        page_size, num_pages = max(1, capacity + draw(0, 0, 3)), batch
        table = torch.arange(batch, dtype=torch.int32)[:, None]
    if kind == "none" and not has_new:
        full = table.shape[1] * page_size
        if table.numel() == 0 or (paged and any(len(r) != full for r in needed)):
            kind = "tensor"
        else:
            before, after = [full] * batch, [full] * batch
            reads = [
                range(max(first[b], full - q_lengths[b] - rules.window[0]), full)
                if rules.window[0] >= 0
                else range(first[b], full)
                for b in range(batch)
            ]
            needed = reads
    elif kind == "none":
        kind = "tensor"
    rows = table
    arguments: dict[str, Any] = {}
    if draw.often(0.4):  # sequences take rows of a larger cache or table
        order = draw.rng.sample(range(batch + 2), batch)
        arguments["cache_batch_idx"] = torch.tensor(order, dtype=torch.int32)
        if paged:
            rows = torch.full((batch + 2, table.shape[1]), GARBAGE_PAGES[0], dtype=torch.int32)
            rows[order] = table
        else:
            num_pages = batch + 2
            table = arguments["cache_batch_idx"][:, None]
    if paged:
        arguments["page_table"] = rows
    k_cache = draw.normal((num_pages, page_size, kv_heads, d), dtype)
    v_cache = draw.normal((num_pages, page_size, kv_heads, d_v), dtype)
    if draw.often(0.3) and dtype != FP8:  # pages with room between them
        room = draw(1, 2)
        k_cache = _roomy(k_cache, room)
        v_cache = _roomy(v_cache, draw(room, room, 3))
    live = [range(r.start, min(n, r.stop)) for r, n in zip(reads, before, strict=True)]
    for cache in (k_cache, v_cache):
        _poison(cache, table, live)
    q_lead = (sum(q_lengths),) if packed else (batch, q_lengths[0])
    new_lead = (sum(new),) if new_packed else (batch, new[0])
    cu_q = starts(q_lengths) if packed else None
    cu_new = starts(new) if new_packed else None
    tensors = {
        "q": draw.normal((*q_lead, heads, d), dtype),
        "k_cache": k_cache,
        "v_cache": v_cache,
    }
    if has_qv:
        tensors["qv"] = draw.normal((*q_lead, heads, d_v), dtype)
    if has_new:
        tensors["k"] = draw.normal((*new_lead, kv_heads, d), dtype)
        tensors["v"] = draw.normal((*new_lead, kv_heads, d_v), dtype)
        if cu_new is not None:
            arguments["cu_seqlens_k_new"] = cu_new
    if cu_q is not None:
        arguments["cu_seqlens_q"] = cu_q
        arguments["max_seqlen_q"] = draw(None, max(q_lengths), 40)
    if kind != "none":
        lengths = torch.tensor(before, dtype=torch.int32)
        arguments["cache_seqlens"] = before[0] if kind == "int" else lengths
    if leftpad is not None:
        arguments["cache_leftpad"] = torch.tensor(leftpad, dtype=torch.int32)
    turn, interleaved, turn_from = None, draw.often(0.5), before
    if has_new and draw.often(0.7):
        pairs = draw(1, d // 2)
        angle = torch.rand(40, pairs, generator=draw.values, dtype=torch.float64) * 6.28
        kept = torch.float32 if dtype == FP8 else draw(dtype, torch.float32)
        turn = (angle.cos().to(kept), angle.sin().to(kept))
        arguments |= {"rotary_cos": turn[0], "rotary_sin": turn[1]}
    if draw.often(0.3):
        turn_from = [draw.rng.randint(0, 9) for _ in range(batch)]
        arguments["rotary_seqlens"] = torch.tensor(turn_from, dtype=torch.int32)
    arguments["rotary_interleaved"] = interleaved
    if draw.often(0.3):
        arguments["scheduler_metadata"] = torch.empty(0, dtype=torch.int32)
    descales = draw.descales(batch, kv_heads) if dtype == FP8 else {}
    local = rules.causal or tuple(w >= 0 for w in rules.window) != (False, False) or rules.chunk > 0
    wide = torch.float64 if dtype == torch.float64 else torch.float32

    def place(b: int, t: int) -> tuple[int, int]:
        return int(table[b, t // page_size]), t % page_size

    def new_tokens(b: int) -> tuple[list[Tensor], list[Tensor]]:
        if not has_new:
            return [], []
        k = list(split(tensors["k"], cu_new, batch)[b])
        if turn is not None:
            k = [rotated(x, *turn, turn_from[b] + i, interleaved, wide) for i, x in enumerate(k)]
        return k, list(split(tensors["v"], cu_new, batch)[b])

    def writes(copies: dict[str, Any]) -> None:
        for b in range(batch):
            for i, (k, v) in enumerate(zip(*new_tokens(b), strict=True)):
                copies["k_cache"][place(b, before[b] + i)] = k
                copies["v_cache"][place(b, before[b] + i)] = v

    saved = {"k": clone(k_cache), "v": clone(v_cache)}

    def expected(arithmetic: torch.dtype) -> tuple[Tensor, Tensor]:
        outs, lses = [], []
        qs, qvs = split(tensors["q"], cu_q, batch), split(tensors.get("qv"), cu_q, batch)
        for b in range(batch):
            new_k, new_v = new_tokens(b)
            old = range(first[b], before[b])
            k = [
                saved["k"][place(b, t)] if t in live[b] else k_cache.new_zeros(kv_heads, d)
                for t in old
            ] + new_k
            v = [
                saved["v"][place(b, t)] if t in live[b] else v_cache.new_zeros(kv_heads, d_v)
                for t in old
            ] + new_v
            k = torch.stack(k) if k else k_cache.new_zeros(0, kv_heads, d)
            v = torch.stack(v) if v else v_cache.new_zeros(0, kv_heads, d_v)
            q = qs[b]
            if turn is not None:
                turned = [
                    rotated(x, *turn, turn_from[b] + i * local, interleaved, wide)
                    for i, x in enumerate(q)
                ]
                q = torch.stack(turned) if turned else q
            if dtype == FP8:
                q = times(q, descales["q_descale"], b, heads // kv_heads)
                k, v = times(k, descales["k_descale"], b), times(v, descales["v_descale"], b)
            out, lse = one_sequence(q, k, v, qvs[b], rules, arithmetic)
            outs.append(out)
            lses.append(lse)
        if packed:
            return torch.cat(outs), torch.cat(lses, 1)
        return torch.stack(outs), torch.stack(lses)

    largest = max(_largest(v_cache), _largest(tensors["v"]) if has_new else 0.0)
    return Case(
        "flash_attn_with_kvcache",
        tensors | arguments | descales | options,
        expected,
        torch.bfloat16 if dtype == FP8 else dtype,
        torch.float32 if dtype == FP8 else dtype,
        largest * (2 if dtype == FP8 else 1),
        torch.finfo(torch.bfloat16).eps if dtype == FP8 else eps(dtype),
        "return_softmax_lse",
        writes,
        near=turn is not None,
    )


def _largest(x: Tensor) -> float:
    return float(x.double().nan_to_num().abs().max()) if x.numel() else 0.0


def _table(draw: Draw, needed: list[range], page_size: int, capacity: int) -> tuple[Tensor, int]:
    """Shuffled pages of their own for the tokens ``needed``, and garbage in all other entries."""
    width = -(-capacity // page_size) + draw(0, 0, 2)
    count = sum(-(-r.stop // page_size) for r in needed) + draw(0, 2)
    pages = draw.rng.sample(range(count), count)
    table = torch.tensor(
        [[draw(*GARBAGE_PAGES) for _ in range(width)] for _ in needed], dtype=torch.int32
    ).reshape(len(needed), width)
    for b, tokens in enumerate(needed):
        for i in range(tokens.start // page_size, -(-tokens.stop // page_size)):
            table[b, i] = pages.pop()
    return table, count


def _roomy(cache: Tensor, room: int) -> Tensor:
    """``cache`` with ``room`` tokens of NaN before each page."""
    num_pages, page_size, *token = cache.shape
    x = torch.full((num_pages, page_size + room, *token), torch.nan, dtype=cache.dtype)[:, room:]
    return x.copy_(cache)


def _poison(cache: Tensor, table: Tensor, live: list[range]) -> None:
    """NaN in every token of ``cache`` but those ``live``."""
    page_size = cache.shape[1]
    keep = torch.zeros(cache.shape[:2], dtype=torch.bool)
    for b, tokens in enumerate(live):
        for t in tokens:
            keep[int(table[b, t // page_size]), t % page_size] = True
    if cache.dtype == FP8:
        cache.view(torch.uint8)[~keep] = 0x7F
    else:
        cache[~keep] = torch.nan


MAKERS: dict[str, Callable[[int], Case]] = {
    "dense": dense_case,
    "varlen": varlen_case,
    "qkvpacked": qkvpacked_case,
    "combine": combine_case,
    "kvcache": kvcache_case,
    "mla": mla_case,
}


def violation(case: Case) -> str | None:
    """What is wrong with the result of a case or with what it wrote, or ``None``."""
    before = {n: clone(x) for n, x in case.arguments.items() if isinstance(x, Tensor)}
    out, lse = case.call()
    if case.arguments.get("out", out) is not out:
        return "out: expected the tensor that was given"
    if case.writes:
        case.writes(before)
    for name, x in before.items():
        why = _differs(case.arguments[name], x, case.near and name == "k_cache")
        if why:
            return f"{name} {why}"
    if out.dtype != case.out_dtype:
        return f"out: expected {case.out_dtype}, got {out.dtype}"
    exact_out, exact_lse = case.expected(torch.float64)
    naive_out, naive_lse = case.expected(case.yardstick)
    accumulated = torch.finfo(lse.dtype).eps
    band = (2 * case.out_eps * (1 + case.near) + 64 * accumulated) * case.largest
    return _outside("out", out, exact_out, naive_out, band) or _outside(
        "lse", lse, exact_lse, naive_lse, _lse_band(case, exact_lse, lse.dtype)
    )


def _lse_band(case: Case, exact: Tensor, dtype: torch.dtype) -> Tensor:
    spacing = 64 * torch.finfo(dtype).eps
    if case.near:
        spacing += 4 * torch.finfo(case.yardstick).eps
    return spacing * (1 + exact.abs().nan_to_num(posinf=0.0, neginf=0.0))


def _outside(
    name: str, got: Tensor, exact: Tensor, naive: Tensor, band: float | Tensor
) -> str | None:
    if got.shape != exact.shape:
        return f"{name}: expected shape {list(exact.shape)}, got {list(got.shape)}"
    error = torch.where(got.double() == exact, 0.0, (got.double() - exact).abs())
    own = (naive.double() - exact).abs().nan_to_num(posinf=0.0)
    if name == "out" and own.numel():
        own = own.amax(-1, keepdim=True)
    wrong = ~(error <= 2 * own + band)
    if not wrong.any():
        return None
    at = tuple(wrong.nonzero()[0].tolist())
    return f"{name}{list(at)}: expected {exact[at]:.9g}, got {got[at]:.9g}"


def _differs(got: Tensor, want: Tensor, near: bool) -> str | None:
    """Bits of the whole storage, so that what lies between the elements counts too."""
    if got.untyped_storage().nbytes() == 0:
        return None
    a, b = (torch.empty(0, dtype=torch.uint8).set_(x.untyped_storage()) for x in (got, want))
    if torch.equal(a, b):
        return None
    if near:
        x, y = got.double(), want.double()
        close = (x - y).abs() <= torch.finfo(got.dtype).eps * y.abs() + 1e-6 * (got.dtype == FP8)
        if (close | (x.isnan() & y.isnan())).all():
            return None
    return "was modified where it must not be, or not where it must"
