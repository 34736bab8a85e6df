"""Caches and queries of one benchmarked decode step, and the calls of our operations on them."""

import math

import torch
from torch import Tensor

from ridgeline.bench.shapes import DecodeShape
from ridgeline.cache import PagedCache
from ridgeline.ops.common import check
from ridgeline.ops.common.dispatch import Impl, empty_outputs
from ridgeline.ops.paged_decode import cpu as paged_cpu
from ridgeline.ops.paged_decode import paged_decode
from ridgeline.ops.tied_decode import cpu as tied_cpu
from ridgeline.ops.tied_decode import tied_decode


class DecodeInputs:
    """Seeded inputs of a shape, with as many equal copies of the cache as keep it cold.

    Between two reads of one copy at least ``cold_bytes`` of others are read, so no timed call
    finds its cache in L3; 0 for one copy alone, where something else keeps it cold. Pages lie in
    random order; page tables are those of a server's cache. FP8 caches have one copy.
    """

    def __init__(
        self,
        shape: DecodeShape,
        *,
        page_size: int = 64,
        cold_bytes: int = 400_000_000,
        where: torch.device | str = "cpu",
    ) -> None:
        g = torch.Generator(where).manual_seed(0)
        pages = math.ceil(shape.length / page_size)
        copies = 1 + math.ceil(cold_bytes / shape.cache_bytes)
        dtype = shape.torch_dtype
        self.shape = shape
        self.cache = PagedCache(
            shape.spec, copies, shape.batch * pages, page_size, dtype=dtype, device=where
        )
        order = torch.randperm(shape.batch * pages, generator=g, device=where)
        self.block_table = order.to(torch.int32).view(shape.batch, pages)
        self.cache_seqlens = torch.full(
            (shape.batch,), shape.length, dtype=torch.int32, device=where
        )
        rows = (shape.batch, shape.query_len, shape.heads)
        self.q_nope, self.q_rope = (
            torch.randn(*rows, dim, generator=g, device=where).to(dtype)
            for dim in (shape.nope_dim, shape.rope_dim)
        )
        first = self.cache.layer(0)
        for view in first:
            view.copy_(torch.randn(view.shape, generator=g, device=where))
        for i in range(1, copies):
            for source, copy in zip(first, self.cache.layer(i), strict=True):
                copy.copy_(source)
        self.scales: dict[str, Tensor] = {}
        self._quantized = None
        if shape.dtype == "fp8":
            self._quantized, self.scales = quantize(first, shape.spec.kind)
        self._copies = copies
        self._next_copy = 0

    def next_views(self) -> tuple[Tensor, ...]:
        """The next copy as the operation takes it: K and V, or states and RoPE keys."""
        if self._quantized is not None:
            return self._quantized
        views = self.cache.layer(self._next_copy)
        self._next_copy = (self._next_copy + 1) % self._copies
        return views

    def decode(self, impl: Impl = "auto") -> Tensor:
        """Our operation on the next copy, ``[B, L_q, h_q, d_v]``."""
        inputs = (*self.next_views(), self.block_table, self.cache_seqlens)
        options = {"softmax_scale": self.shape.softmax_scale, "impl": impl, **self.scales}
        if self.shape.spec.kind == "paired":
            return paged_decode(self.q_nope, *inputs, **options)
        return tied_decode(self.q_nope, self.q_rope, *inputs, **options)

    def decode_without_prefetch(self) -> Tensor:
        """The same by the CPU core with its software prefetch turned off."""
        table, scale = (self.block_table, self.cache_seqlens), self.shape.softmax_scale
        out, lse = empty_outputs(self.q_nope, self.shape.spec.dim)
        if self.shape.spec.kind == "paired":
            paged_cpu.paged_decode(
                self.q_nope,
                *self.next_views(),
                *table,
                scale,
                True,
                -1,
                -1,
                0.0,
                0,
                out,
                lse,
                prefetch=0,
            )
        else:
            queries = (self.q_nope, self.q_rope)
            tied_cpu.tied_decode(
                *queries, *self.next_views(), *table, scale, True, 0, out, lse, prefetch=0
            )
        return out

    def storage(self, at_least: int = 0) -> list[Tensor]:
        """The next copies, as many as hold ``at_least`` bytes, as contiguous memory."""
        copies = min(self._copies, max(1, math.ceil(at_least / self.shape.cache_bytes)))
        if self._next_copy + copies > self._copies:
            self._next_copy = 0
        views = self.cache.layer(self._next_copy)
        self._next_copy = (self._next_copy + copies) % self._copies
        spec, tokens = self.shape.spec, self.cache.num_pages * self.cache.page_size
        if spec.kind == "tied":
            views, widths = views[:1], [spec.elements_per_token]
        else:
            widths = [spec.heads * spec.dim] * 2
        return [
            view.as_strided((copies * tokens * width,), (1,))
            for view, width in zip(views, widths, strict=True)
        ]

    def gather(self, sequences: slice = slice(None)) -> tuple[Tensor, ...]:
        """The cache of some sequences without pages: K, V; states, RoPE keys; ``[B, N, ...]``.

        FP8 comes with its scale applied, in float32.
        """
        index = self.block_table[sequences].long()
        views = self._quantized or self.cache.layer(0)
        found = [view[index].flatten(1, 2)[:, : self.shape.length] for view in views]
        for i, scale in enumerate(self.scales.values()):
            found[i] = found[i].float() * scale[:, None]
        return tuple(found)


def quantize(views: tuple[Tensor, ...], kind: str) -> tuple[tuple[Tensor, ...], dict[str, Tensor]]:
    """A cache in e4m3, a scale for each head, and the scales by the names of their arguments.

    Of a "paired" cache both K and V; of a "tied" one the states, its RoPE keys stay as they are.
    """
    names = ("k_scale", "v_scale") if kind == "paired" else ("state_scale",)
    found, scales = list(views), {}
    for i, name in enumerate(names):
        scale = views[i].abs().amax((0, 1, 3)).float() / torch.finfo(check.FP8).max
        scales[name] = scale
        found[i] = (views[i].float() / scale[:, None]).to(check.FP8)
    return tuple(found), scales
