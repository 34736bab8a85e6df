"""The gradient on Hopper: numbers of each row, then dK, dV and the sums of dQ, then dQ."""

import torch
from torch import Tensor

from ridgeline.ops.attention.hopper.backward_config import BackwardConfig, backward_config
from ridgeline.ops.attention.hopper.backward_dkdv import dkdv_kernel
from ridgeline.ops.attention.hopper.backward_dq import dq_kernel
from ridgeline.ops.attention.hopper.backward_rows import finish_kernel, prepare_kernel
from ridgeline.ops.attention.hopper.config import L2_BYTES
from ridgeline.ops.attention.hopper.forward import columns, section
from ridgeline.ops.attention.hopper.tensors import descriptors, readable
from ridgeline.ops.attention.tiles import Problem
from ridgeline.ops.common.device import as_tuned, launcher, next_power_of_2, pieces, processors
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
    deterministic: bool = False,
    config: BackwardConfig | None = None,
) -> None:
    """Fills those of ``dq``, ``dk`` and ``dv`` that are given: contiguous, as ``q``, ``k``, ``v``.

    ``dout`` and ``dlse`` (None: zeros) are the gradients of ``out`` and ``lse``, which are those of
    ``forward``. ``deterministic``: dQ by a kernel of its own, in the same bits every time.
    ``config`` replaces the tiling that ``backward_config`` chooses.
    """
    if q.numel() == 0 or k.numel() == 0:
        for gradient in (dq, dk, dv):
            if gradient is not None:
                gradient.zero_()
        return
    q, k, v, dout = (readable(x) for x in (q, k, v, dout))
    dim, value_dim = q.shape[-1], v.shape[-1]
    heads = q.shape[-2]
    group = heads // k.shape[-2]
    config = config or as_tuned("hopper_backward", backward_config(dim, value_dim))
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
        SEQUENCES=problem.constants["SEQUENCES"],
        **shared,
        num_warps=4,
    )
    starts = [lse if x is None else x for x in (cu_seqlens_q, cu_seqlens_k)]
    _, _, *counts = problem.layout
    names = ("LEFT", "RIGHT", "TREE", "SOFTCAP", "SCALED")
    options = {name: problem.constants[name] for name in names}
    options |= {
        "GROUP": group,
        "K_COLUMNS": columns(q),
        "V_COLUMNS": columns(v),
        "PRODUCER_REGS": config.producer_regs,
        "num_warps": config.num_warps,
    }
    sums = None
    if dq is not None and not deterministic:
        sums = q.new_zeros(heads * lines, sum(pieces(dim)), dtype=torch.float32)
    if dk is not None or dv is not None or sums is not None:
        row_bytes = 2 * (dim + value_dim) + (0 if sums is None else 4 * sums.shape[1])
        key_tiles = problem.tiles(problem.key_len, config.block_n)
        items = key_tiles * problem.kv_heads
        # Items of unequal lengths are dealt out as programs end.
        programs = items if problem.packed else min(processors(q), items)
        dkdv_kernel[(programs,)](
            *descriptors(q, config.block_m),
            *descriptors(k, config.block_n),
            *descriptors(v, config.block_n),
            *descriptors(dout, config.block_m),
            lines_descriptor(shift, [config.block_m]),
            lines_descriptor(delta, [config.block_m]),
            None if sums is None else lines_descriptor(sums, [config.block_m, dq_width(dim)]),
            dk,
            dv,
            *starts,
            *counts,
            *problem.options,
            lse if subtree_end is None else subtree_end,
            *problem.ends()[1:],
            key_tiles,
            lines,
            heads_together(problem, group * row_bytes),
            KV_HEADS=problem.kv_heads,
            DIM=dim,
            VALUE_DIM=value_dim,
            BLOCK_N=config.block_n,
            Q_STAGES=config.q_stages,
            D_STAGES=config.d_stages,
            SHARED=config.shared,
            **shared,
            **options,
        )
    if sums is not None:
        finish_kernel[(row_tiles, heads)](
            sums,
            dq,
            *layout,
            softmax_scale,
            HEADS=heads,
            DIM=dim,
            SUMMED=sums.shape[1],
            WIDTH=max(16, next_power_of_2(dim)),
            SEQUENCES=problem.constants["SEQUENCES"],
            **shared,
            num_warps=4,
        )
    elif dq is not None:
        for ends, lists, *band, row_tiles in problem.bands(config.dq_block_m, config.dq_block_n):
            dq_kernel[(min(processors(q), row_tiles * heads),)](
                *descriptors(q, config.dq_block_m),
                *descriptors(k, config.dq_block_n),
                *descriptors(v, config.dq_block_n),
                *descriptors(dout, config.dq_block_m),
                shift,
                delta,
                dq,
                lines,
                *starts,
                *counts,
                *problem.options,
                lse if ends is None else ends,
                lse if lists is None else lists,
                *band,
                row_tiles,
                section(problem, group, heads),
                PACKED=problem.packed,
                HEADS=heads,
                DIM=dim,
                BLOCK_LINES=config.block_m,
                BLOCK_M=config.dq_block_m,
                BLOCK_N=config.dq_block_n,
                STAGES=config.dq_stages,
                **options,
            )


def heads_together(problem: Problem, row_bytes: int) -> int:
    """Kv heads whose queries' data, ``row_bytes`` a query and sequence of mean length, fit L2."""
    rows = -(-problem.query_len // problem.batch) if problem.packed else problem.query_len
    return min(problem.kv_heads, max(1, L2_BYTES // (rows * row_bytes)))


def dq_width(dim: int) -> int:
    """Columns of dQ that are added at a time: of all pieces the same, 32 KiB of 64 rows or less."""
    whole, rest = pieces(dim)
    return min(rest or whole, 128)


def lines_descriptor(x: Tensor, block: list[int]) -> TensorDescriptor:
    layout = gl.NVMMASharedLayout.get_default_for(block, gl.float32)
    return TensorDescriptor(x, list(x.shape), list(x.stride()), block, layout)
