"""Ways to compute one row of the table: a function, its inputs, and how results compare."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, cached_property

import torch
from torch import Tensor

from ridgeline.bench.attention.shapes import AttentionShape
from ridgeline.ops.attention import attention, fp8
from ridgeline.ops.common.dispatch import Impl

Tensors = tuple[Tensor, ...]
FP8_BLOCK = 128  # rows that share a scale


class Inputs:
    """Seeded ``q, k, v`` and ``dout`` of a shape, ``[B, L, h, d]``, in its dtype, on ``where``."""

    def __init__(self, shape: AttentionShape, where: torch.device | str = "cpu") -> None:
        g = torch.Generator(where).manual_seed(0)
        rows = (shape.batch, shape.length)
        dims = (
            (shape.heads, shape.head_dim),
            (shape.kv_heads, shape.head_dim),
            (shape.kv_heads, shape.width),
            (shape.heads, shape.width),
        )
        self.q, self.k, self.v, self.dout = (
            torch.randn(*rows, *dim, generator=g, device=where).to(shape.torch_dtype)
            for dim in dims
        )
        self.shape = shape
        self.where = torch.device(where)
        self.subtree_end = None if shape.subtree_end is None else shape.subtree_end.to(where)

    def all(self) -> Tensors:
        return self.q, self.k, self.v, self.dout


@dataclass(frozen=True, eq=False)
class Call:
    """A function with inputs in a layout of its own, made outside the clock.

    ``out`` and ``gradients`` turn its results, and the gradients of all its inputs, into
    ``[B, L, h, d]`` of the row: out, and (dq, dk, dv). By default they are. An ``optional`` call
    may fail on this machine; ``forward_only`` says why there is no backward.
    """

    name: str
    function: Callable[..., Tensors]
    inputs: Tensors
    dout: Tensors
    out: Callable[[Tensors], Tensor] = lambda outs: outs[0]
    gradients: Callable[[Tensors], Tensors] = lambda grads: grads
    optional: bool = False
    forward_only: str | None = None

    def __post_init__(self) -> None:
        for x in self.inputs:
            x.requires_grad_()

    def forward(self) -> Tensors:
        with torch.no_grad():
            return self.function(*(x.detach() for x in self.inputs))

    def record(self) -> None:
        """Run the forward pass that ``backward`` needs, once."""
        _ = self._graph

    @cached_property
    def _graph(self) -> Tensors:
        return self.function(*self.inputs)

    def run(self, which: str) -> Tensors:
        """The pass ``which``, "forward" or "backward"."""
        return self.forward() if which == "forward" else self.backward()

    def results(self, which: str) -> dict[str, Tensor]:
        """What the pass gives, as ``[B, L, h, d]`` of the row."""
        found = self.run(which)
        if which == "forward":
            return {"out": self.out(found)}
        return dict(zip(("dq", "dk", "dv"), self.gradients(found), strict=True))

    def backward(self) -> Tensors:
        """The gradients alone: the forward before them is not part of what is timed."""
        return torch.autograd.grad(self._graph, self.inputs, self.dout, retain_graph=True)


def ours(inputs: Inputs, impl: Impl, name: str = "ours") -> Call:
    """``ridgeline.attention`` of the row."""
    shape = inputs.shape
    mask = {"causal": shape.mask == "causal", "subtree_end": inputs.subtree_end}
    *qkv, dout = (x.clone() for x in inputs.all())
    return Call(name, lambda q, k, v: (attention(q, k, v, **mask, impl=impl),), tuple(qkv), (dout,))


def eight_bit(inputs: Inputs, impl: Impl, name: str, *, quantize: bool) -> Call:
    """``ours`` in FP8: a scale for each ``FP8_BLOCK`` rows, q and k rotated if that is possible.

    ``quantize``: from the row's inputs on, else from FP8 ones.
    """
    shape = inputs.shape
    mask = {"causal": shape.mask == "causal", "subtree_end": inputs.subtree_end}
    seed = 0 if shape.head_dim & (shape.head_dim - 1) == 0 else None

    def quantized() -> dict[str, Tensor]:
        found = {}
        for x, seed_of_x in (("q", seed), ("k", seed), ("v", None)):
            values, scale = fp8.quantize(getattr(inputs, x), FP8_BLOCK, seed=seed_of_x)
            found |= {x: values, f"{x}_scale": scale}
        return found

    made = quantized if quantize else cache(quantized)

    def function() -> Tensors:
        return (attention(**made(), **mask, impl=impl),)

    return Call(name, function, (), (), forward_only="FP8 is for the forward alone")


def unpacked(inputs: Inputs, impl: Impl, name: str = "unpacked") -> Call:
    """``ridgeline.attention`` of the responses of a tree, each behind a copy of its prompt."""
    branches = inputs.shape.branches()
    starts = torch.tensor([0, *(len(b) for b in branches)]).cumsum(0)
    starts = starts.to(inputs.where, torch.int32)
    packed = {"cu_seqlens_q": starts, "cu_seqlens_k": starts}
    index = torch.cat(branches)
    again = ~firsts(index).to(inputs.where)
    index = index.to(inputs.where)
    *qkv, dout = (x[0, index] for x in inputs.all())
    dout[again] = 0
    length = inputs.shape.length
    return Call(
        name,
        lambda q, k, v: (attention(q, k, v, causal=True, **packed, impl=impl),),
        tuple(qkv),
        (dout,),
        out=lambda outs: put(outs[0], index, length),
        gradients=lambda grads: tuple(add(x, index, length) for x in grads),
    )


def firsts(index: Tensor) -> Tensor:
    """Which rows of ``index`` are the first that hold their token; others count no loss twice."""
    seen, found = set(), []
    for token in index.tolist():
        found.append(token not in seen)
        seen.add(token)
    return torch.tensor(found)


def put(x: Tensor, index: Tensor, length: int) -> Tensor:
    """Unpacked rows ``[n, h, d]`` where they stand in the row, ``[1, length, h, d]``."""
    found = x.new_zeros(1, length, *x.shape[1:])
    found[0, index] = x
    return found


def add(x: Tensor, index: Tensor, length: int) -> Tensor:
    """The same for gradients: copies of one token add up, in float32."""
    found = torch.zeros(1, length, *x.shape[1:], device=x.device)
    return found[0].index_add_(0, index, x.float())[None]
