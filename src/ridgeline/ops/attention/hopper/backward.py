"""The gradient on Hopper: numbers of each row, then dK, dV and the sums of dQ, then dQ."""

import torch
from torch import Tensor

from ridgeline.ops.attention.hopper.backward_config import BackwardConfig, backward_config
from ridgeline.ops.attention.hopper.backward_dkdv import dkdv_kernel
from ridgeline.ops.attention.hopper.backward_rows import finish_kernel, prepare_kernel
from ridgeline.ops.attention.hopper.tensors import descriptors, readable
from ridgeline.ops.attention.tiles import Problem
from ridgeline.ops.common.device import launcher, next_power_of_2, pieces
from ridgeline.ops.common.gluon import TensorDescriptor, gl


@launcher
def backward(
    dout: Tensor,
    dlse: Tensor | None,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    lse: Tensor,
    cu_seqlens_q: Tensor | None,
    cu_seqlens_k: Tensor | None,
    subtree_end: Tensor | None,
    softmax_scale: float,
    causal: bool,
    window_left: int,
    window_right: int,
    softcap: float,
    dq: Tensor | None,
    dk: Tensor | None,
    dv: Tensor | None,
    *,
    config: BackwardConfig | None = None,
) -> None:
    """Fills those of ``dq``, ``dk`` and ``dv`` that are given: contiguous, as ``q``, ``k``, ``v``.

    ``dout`` and ``dlse`` (None: zeros) are the gradients of ``out`` and ``lse``, which are those of
    ``forward``. ``config`` replaces the tiling that ``backward_config`` chooses.
    """
    if q.numel() == 0 or k.numel() == 0:
        for gradient in (dq, dk, dv):
            if gradient is not None:
                gradient.zero_()
        return
    dim, value_dim = q.shape[-1], v.shape[-1]
    heads = q.shape[-2]
    config = config or backward_config(dim, value_dim)
    problem = Problem(
        q,
        k,
        v,
        cu_seqlens_q,
        cu_seqlens_k,
        subtree_end,
        softmax_scale,
        causal,
        window_left,
        window_right,
        softcap,
        group=1,
    )
    row_tiles = problem.tiles(problem.query_len, config.block_m)
    lines = row_tiles * config.block_m
    numbers = q.new_empty(2, heads * lines, dtype=torch.float32)
    delta, shift = numbers
    layout = (cu_seqlens_q, problem.layout[2], problem.batch, problem.query_len)
    shared = {
        "PACKED": problem.packed,
        "SEQUENCES": problem.constants["SEQUENCES"],
        "BLOCK_M": config.block_m,
    }
    prepare_kernel[(row_tiles, heads)](
        dout,
        None if dlse is None else dlse.contiguous(),
        out.contiguous(),
        lse.contiguous(),
        delta,
        shift,
        *layout,
        *problem.strides(dout),
        HEADS=heads,
        VALUE_DIM=value_dim,
        WIDTH=max(16, next_power_of_2(value_dim)),
        **shared,
        num_warps=4,
    )
    sums = None
    if dq is not None:
        sums = q.new_zeros(heads * lines, sum(pieces(dim)), dtype=torch.float32)
    key_tiles = problem.tiles(problem.key_len, config.block_n)
    names = ("KV_HEADS", "DIM", "VALUE_DIM", "LEFT", "RIGHT", "TREE", "SOFTCAP", "SCALED")
    dkdv_kernel[(key_tiles * problem.kv_heads,)](
        *descriptors(readable(q), config.block_m),
        *descriptors(readable(k), config.block_n),
        *descriptors(readable(v), config.block_n),
        *descriptors(readable(dout), config.block_m),
        lines_descriptor(shift, [config.block_m]),
        lines_descriptor(delta, [config.block_m]),
        None if sums is None else lines_descriptor(sums, [config.block_m, dq_width(dim)]),
        dk,
        dv,
        *problem.layout,
        *problem.options,
        *problem.ends(),
        key_tiles,
        lines,
        GROUP=heads // problem.kv_heads,
        K_COLUMNS=columns(dim),
        V_COLUMNS=columns(value_dim),
        BLOCK_N=config.block_n,
        Q_STAGES=config.q_stages,
        D_STAGES=config.d_stages,
        DQ_BUFFERS=config.dq_buffers,
        SHARED=config.shared,
        PRODUCER_REGS=config.producer_regs,
        **shared,
        **{name: problem.constants[name] for name in names},
        num_warps=config.num_warps,
    )
    if dq is not None:
        finish_kernel[(row_tiles, heads)](
            sums,
            dq,
            *layout,
            softmax_scale,
            HEADS=heads,
            DIM=dim,
            SUMMED=sums.shape[1],
            WIDTH=max(16, next_power_of_2(dim)),
            **shared,
            num_warps=4,
        )


def columns(dim: int) -> int:
    """Tiles of columns of a dim."""
    return 2 if pieces(dim)[1] else 1


def dq_width(dim: int) -> int:
    """Columns of dQ that are added at a time: of all pieces the same, 32 KiB of 64 rows or less."""
    whole, rest = pieces(dim)
    return min(rest or whole, 128)


def lines_descriptor(x: Tensor, block: list[int]) -> TensorDescriptor:
    layout = gl.NVMMASharedLayout.get_default_for(block, gl.float32)
    return TensorDescriptor(x, list(x.shape), list(x.stride()), block, layout)
