"""PyTorch's ways to compute a row, and the float32 truth that every way is held against.

PyTorch is shown on its best side: layouts ``[B, h, L, d]`` that its kernels like, K and V repeated
for the query heads they serve, FlexAttention's block mask: all made outside the clock.
"""

from collections import defaultdict
from collections.abc import Callable
from contextlib import nullcontext
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.attention.flex_attention import create_block_mask, flex_attention

from ridgeline.bench.attention.calls import Call, Inputs, Tensors, add, firsts, put
from ridgeline.bench.attention.shapes import AttentionShape
from ridgeline.bench.shapes import DTYPES

FLEX_BLOCK = 128
ALL_HEADS = 2**28  # up to so many scores every head is compared


def exact(inputs: Inputs) -> dict[str, Tensor]:
    """out, dq, dk and dv by autograd in float32, one head at a time; of ``checked_heads`` alone."""
    shape, visible = inputs.shape, inputs.shape.visible().to(inputs.where)
    group = shape.heads // shape.kv_heads
    given = {"q": inputs.q, "k": inputs.k, "v": inputs.v, "out": inputs.dout}
    q, k, v, dout = (checked_heads(name, x, shape).float() for name, x in given.items())
    out, dq, dk, dv = (torch.zeros_like(x) for x in (dout, q, k, v))
    for b in range(shape.batch):
        for h in range(q.shape[2]):
            g = h // group
            leaves = [x.clone().requires_grad_() for x in (q[b, :, h], k[b, :, g], v[b, :, g])]
            scores = leaves[0] @ leaves[1].T * shape.head_dim**-0.5
            found = scores.masked_fill(~visible, -torch.inf).softmax(-1) @ leaves[2]
            grads = torch.autograd.grad(found, leaves, dout[b, :, h])
            out[b, :, h] = found.detach()
            for total, grad in zip((dq[b, :, h], dk[b, :, g], dv[b, :, g]), grads, strict=True):
                total += grad
    return {"out": out, "dq": dq, "dk": dk, "dv": dv}


def checked_heads(name: str, x: Tensor, shape: AttentionShape) -> Tensor:
    """Those heads of ``x [B, L, h, d]`` that are compared: of long rows the first and the last.

    ``name`` is q, k, v, out, dq, dk or dv. Query heads go with the head of K and V that they read.
    """
    if shape.batch * shape.heads * shape.length**2 <= ALL_HEADS or shape.kv_heads < 3:
        return x
    group = 1 if name[-1] in "kv" else shape.heads // shape.kv_heads
    return torch.cat([x[:, :, :group], x[:, :, -group:]], 2)


def sdpa(inputs: Inputs, dtype: str, backend: tuple[str, SDPBackend] | None = None) -> Call:
    """``scaled_dot_product_attention`` of a full or causal row; torch's choice of ``backend``."""
    causal = inputs.shape.mask == "causal"

    def function(q: Tensor, k: Tensor, v: Tensor) -> Tensors:
        with nullcontext() if backend is None else sdpa_kernel(backend[1]):
            return (F.scaled_dot_product_attention(q, k, v, is_causal=causal),)

    return Call(
        f"sdpa {dtype if backend is None else backend[0]}",
        function,
        *_heads_first(inputs, dtype),
        out=lambda outs: outs[0].transpose(1, 2),
        gradients=partial(_gradients, inputs),
    )


def sdpa_unpacked(inputs: Inputs, dtype: str) -> Call:
    """The same of a tree's responses, each behind a copy of its prompt, those of a length at once.

    Its inputs are q, k and v of each length in turn.
    """
    groups = defaultdict(list)
    for branch in inputs.shape.branches():
        groups[len(branch)].append(branch)
    shape = inputs.shape
    index = [torch.stack(branches) for branches in groups.values()]
    flat = torch.cat([x.flatten() for x in index])
    first = firsts(flat).to(inputs.where).split([x.numel() for x in index])
    flat, index = flat.to(inputs.where), [x.to(inputs.where) for x in index]
    qkv, douts = [], []
    for rows, keep in zip(index, first, strict=True):
        q, k, v, dout = (x[0, rows] for x in inputs.all())
        dout[~keep.view(rows.shape)] = 0
        found = _to_heads_first((q, k, v, dout), shape.heads // shape.kv_heads, DTYPES[dtype])
        qkv += found[:3]
        douts.append(found[3])

    def function(*x: Tensor) -> Tensors:
        return tuple(
            F.scaled_dot_product_attention(*x[i : i + 3], is_causal=True)
            for i in range(0, len(x), 3)
        )

    def rows(xs: Tensors) -> Tensor:
        """``[n, h, L, d]`` of each length as ``[total, h, d]``."""
        return torch.cat([x.transpose(1, 2).flatten(0, 1) for x in xs])

    def gradients(grads: Tensors) -> Tensors:
        return tuple(
            add(_sum_groups(rows(grads[i::3]), heads), flat, shape.length)
            for i, heads in enumerate((shape.heads, shape.kv_heads, shape.kv_heads))
        )

    return Call(
        f"sdpa unpacked {dtype}",
        function,
        tuple(qkv),
        tuple(douts),
        out=lambda outs: put(rows(outs), flat, shape.length),
        gradients=gradients,
    )


def flex(inputs: Inputs) -> Call:
    """FlexAttention, compiled, with the row's mask as a block mask."""
    shape = inputs.shape
    ends = None if inputs.subtree_end is None else inputs.subtree_end[0]

    def visible(b: Tensor, h: Tensor, i: Tensor, j: Tensor) -> Tensor:
        return j <= i if ends is None else (j <= i) & (i < ends[j])

    mask = None
    if shape.mask != "full":
        size = {"Q_LEN": shape.length, "KV_LEN": shape.length, "BLOCK_SIZE": FLEX_BLOCK}
        mask = create_block_mask(visible, None, None, **size, device=inputs.where)
    # Every shape is compiled: behind a number of them torch would go on with uncompiled calls.
    torch.compiler.reset()
    compiled: Callable[..., Tensor] = torch.compile(flex_attention, dynamic=False)
    return Call(
        f"flex {shape.dtype}",
        lambda q, k, v: (compiled(q, k, v, block_mask=mask),),
        *_heads_first(inputs, shape.dtype),
        out=lambda outs: outs[0].transpose(1, 2),
        gradients=partial(_gradients, inputs),
        optional=True,
        forward_only=_flex_forward_only(inputs.where),
    )


def _flex_forward_only(where: torch.device) -> str | None:
    """Asked without the compiler: compiled calls run uncompiled ever after they failed once."""
    x = torch.zeros(1, 1, 16, 16, device=where, requires_grad=True)
    try:
        flex_attention(x, x, x)
    except NotImplementedError as e:
        return str(e)
    return None


def _heads_first(inputs: Inputs, dtype: str) -> tuple[Tensors, Tensors]:
    shape = inputs.shape
    *qkv, dout = _to_heads_first(inputs.all(), shape.heads // shape.kv_heads, DTYPES[dtype])
    return tuple(qkv), (dout,)


def _to_heads_first(x: Tensors, group: int, dtype: torch.dtype) -> Tensors:
    """q, k, v, dout ``[B, L, h, d]`` as ``[B, h, L, d]``, k and v repeated for their ``group``."""
    q, k, v, dout = (y.transpose(1, 2).to(dtype) for y in x)
    k, v = (y.repeat_interleave(group, 1) for y in (k, v))
    return tuple(y.clone(memory_format=torch.contiguous_format) for y in (q, k, v, dout))


def _gradients(inputs: Inputs, grads: Tensors) -> Tensors:
    heads = (inputs.shape.heads, inputs.shape.kv_heads, inputs.shape.kv_heads)
    return tuple(_sum_groups(x.transpose(1, 2), h) for x, h in zip(grads, heads, strict=True))


def _sum_groups(x: Tensor, heads: int) -> Tensor:
    """``[..., h_q, d]`` as ``[..., heads, d]``: repeated heads add up, in float32."""
    return x.float().unflatten(-2, (heads, -1)).sum(-2)
