"""The forward kernel on Hopper and its launch: a producer warp and one or two consumers."""

import torch
from torch import Tensor

from ridgeline.ops.attention.hopper.careful import careful_kernel
from ridgeline.ops.attention.hopper.config import (
    L2_BYTES,
    ROWS,
    ForwardConfig,
    forward_config,
    fp8_config,
    scaled_rows,
)
from ridgeline.ops.attention.hopper.consumer import Results, Scores, Turns, attend
from ridgeline.ops.attention.hopper.ring import make_ring
from ridgeline.ops.attention.hopper.scales import Scaling, make_scales, scale_numbers
from ridgeline.ops.attention.hopper.tensors import descriptors, readable, turned_descriptors
from ridgeline.ops.attention.hopper.turned import turned
from ridgeline.ops.attention.hopper.work import Work
from ridgeline.ops.attention.tiles import Problem
from ridgeline.ops.common import check
from ridgeline.ops.common.device import (
    as_tuned,
    launcher,
    next_power_of_2,
    pieces,
    processors,
)
from ridgeline.ops.common.gluon import gl, gluon
from ridgeline.ops.common.hopper import barriers

CONSTANTS = ("PACKED", "LEFT", "RIGHT", "TREE", "SOFTCAP", "SCALED", "VALUE_DIM")


@gluon.jit
def produce(work, queries, keys, values, q0, q1, k0, k1, v0, v1):
    """The producer warp: every item's queries, then keys one tile ahead of values."""
    CONSUMERS: gl.constexpr = queries.STAGES
    STEP: gl.constexpr = queries.x0.shape[2]  # tokens of a consumer's rows
    n = 0
    q = 0
    for i in range(work.rounds()):
        t = work.nth(i)
        if t >= 0:
            item = work.item(t)
            if (item.begin >= 0) & (item.count > 0):
                # Packed sequences are rows of one.
                b = item.b * (0 if work.PACKED else 1)
                query = item.start_q.to(gl.int32) + item.begin // work.PACK
                key = item.start_k.to(gl.int32)
                value = key
                if values.TURNED and work.PACKED:
                    value = (key // 16 + item.b) * 16  # as in ``turned``
                reader = item.entity * work.PACK
                head = work.kv_head(item)
                tile = work.tile(item, 0)
                queries.load(q, q0, q1, b, query, reader)
                keys.load(n, k0, k1, b, key + tile * work.BLOCK_N, head)
                for c in gl.static_range(1, CONSUMERS):
                    queries.load(q + c, q0, q1, b, query + c * STEP, reader)
                for j in range(1, item.count):
                    following = work.tile(item, j)
                    keys.load(n + j, k0, k1, b, key + following * work.BLOCK_N, head)
                    values.load(n + j - 1, v0, v1, b, value + tile * work.BLOCK_N, head)
                    tile = following
                n += item.count
                values.load(n - 1, v0, v1, b, value + tile * work.BLOCK_N, head)
                q += CONSUMERS


@gluon.jit
def hopper_forward_kernel(
    q0,
    q1,
    k0,
    k1,
    v0,
    v1,
    out,
    lse,
    spoilt,
    cu_q,
    cu_k,
    stride_cuq,
    stride_cuk,
    batch,
    query_len,
    key_len,
    factor,
    scale,
    softcap,
    left,
    right,
    ends,
    lists,
    capacity,
    stride_eb,
    stride_el,
    band,
    row_tiles,
    entities,
    section,
    q_scale,
    stride_qsb,
    stride_qsn,
    stride_qsh,
    q_rows,
    k_scale,
    stride_ksb,
    stride_ksn,
    stride_ksh,
    k_rows,
    v_scale,
    stride_vsb,
    stride_vsn,
    stride_vsh,
    v_rows,
    PACKED: gl.constexpr,
    LEFT: gl.constexpr,
    RIGHT: gl.constexpr,
    TREE: gl.constexpr,
    SOFTCAP: gl.constexpr,
    SCALED: gl.constexpr,
    PACK: gl.constexpr,
    GROUP: gl.constexpr,
    HEADS: gl.constexpr,
    VALUE_DIM: gl.constexpr,
    K_COLUMNS: gl.constexpr,
    V_COLUMNS: gl.constexpr,
    CONSUMERS: gl.constexpr,
    BLOCK_N: gl.constexpr,
    STAGES: gl.constexpr,
    PING_PONG: gl.constexpr,
    CONSUMER_REGS: gl.constexpr,
    PRODUCER_REGS: gl.constexpr,
):
    """Programs that stay, each with every ``num_programs``-th item; see ``work``.

    FP8 inputs have scales, and values are ``turned``.
    """
    EIGHT: gl.constexpr = q0.dtype == gl.float8e4nv
    work = Work(
        cu_q,
        cu_k,
        gl.to_tensor(stride_cuq),
        gl.to_tensor(stride_cuk),
        gl.to_tensor(batch),
        gl.to_tensor(query_len),
        gl.to_tensor(key_len),
        gl.to_tensor(left),
        gl.to_tensor(right),
        ends,
        lists,
        gl.to_tensor(capacity),
        gl.to_tensor(stride_eb),
        gl.to_tensor(stride_el),
        gl.to_tensor(band),
        gl.to_tensor(row_tiles),
        gl.to_tensor(entities),
        gl.to_tensor(section),
        PACKED,
        LEFT,
        RIGHT,
        TREE,
        PACK,
        GROUP,
        CONSUMERS * 64,
        BLOCK_N,
    )
    queries = make_ring(q0, q1, CONSUMERS, K_COLUMNS, 1)
    keys = make_ring(k0, k1, STAGES, K_COLUMNS, CONSUMERS)
    values = make_ring(v0, v1, STAGES, V_COLUMNS, CONSUMERS, EIGHT)
    turns = Turns(barriers(CONSUMERS, 1), CONSUMERS, PING_PONG)
    scores = Scores(
        gl.to_tensor(factor), gl.to_tensor(scale), gl.to_tensor(softcap), SOFTCAP, SCALED
    )
    scaling = Scaling(
        make_scales(q_scale, stride_qsb, stride_qsn, stride_qsh, q_rows),
        make_scales(k_scale, stride_ksb, stride_ksn, stride_ksh, k_rows),
        make_scales(v_scale, stride_vsb, stride_vsn, stride_vsh, v_rows),
        EIGHT,
    )
    COUNT: gl.constexpr = PACKED or LEFT or RIGHT or TREE
    results = Results(out, lse, spoilt, HEADS, VALUE_DIM, COUNT)
    load = (work, queries, keys, values, q0, q1, k0, k1, v0, v1)
    # A number is a constant only where it stands in the tuple that is given to a partition.
    first = (work, queries, keys, values, turns, scores, scaling, results, 0)
    second = (work, queries, keys, values, turns, scores, scaling, results, 1)
    if CONSUMERS == 1:
        gl.warp_specialize([(attend, first), (produce, load)], [1], [PRODUCER_REGS])
    else:
        gl.warp_specialize(
            [(attend, first), (attend, second), (produce, load)],
            [4, 1],
            [CONSUMER_REGS, PRODUCER_REGS],
        )


def config_for(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    batch: int,
    k_scale: Tensor | None = None,
    v_scale: Tensor | None = None,
) -> ForwardConfig:
    """The tiling of a call, from shapes alone."""
    rows = q.shape[-3] if q.dim() == 4 else -(-q.shape[0] // max(batch, 1))
    group = q.shape[-2] // k.shape[-2]
    chosen = forward_config(q.shape[-1], v.shape[-1], rows, group)
    if q.dtype == check.FP8:
        chosen = fp8_config(chosen, q.shape[-1], v.shape[-1], scaled_rows(k, k_scale, v_scale))
    return as_tuned("hopper_forward", chosen)


@launcher
def forward(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cu_seqlens_q: Tensor | None,
    cu_seqlens_k: Tensor | None,
    subtree_end: Tensor | None,
    softmax_scale: float,
    causal: bool,
    window_left: int,
    window_right: int,
    softcap: float,
    out: Tensor,
    lse: Tensor,
    *,
    q_scale: Tensor | None = None,
    k_scale: Tensor | None = None,
    v_scale: Tensor | None = None,
    config: ForwardConfig | None = None,
) -> None:
    """Fills ``out [..., h_q, d_v]`` and ``lse [..., h_q]``, both contiguous.

    Scales are those of FP8 inputs; the tiles of ``config`` have to divide their blocks of keys.
    ``config`` replaces the tiling that ``config_for`` chooses; it changes the result within
    rounding.
    """
    if lse.numel() == 0:
        return
    if k.numel() == 0:
        out.zero_()
        lse.fill_(float("-inf"))
        return
    batch = q.shape[0] if cu_seqlens_q is None else cu_seqlens_q.shape[0] - 1
    config = config or config_for(q, k, v, batch, k_scale, v_scale)
    eight = q.dtype == check.FP8
    q, k, v = readable(q), readable(k), v if eight else readable(v)
    options = (softmax_scale, causal, window_left, window_right, softcap)
    layout = (cu_seqlens_q, cu_seqlens_k, subtree_end)
    problem = Problem(q, k, v, *layout, *options, group=config.pack)
    heads = q.shape[-2]
    entities = heads // config.pack
    constants = {name: problem.constants[name] for name in CONSTANTS}
    constants |= {"GROUP": heads // k.shape[-2], "HEADS": heads}
    starts = (cu_seqlens_q, cu_seqlens_k)
    numbers = (*(lse if x is None else x for x in starts), *problem.layout[2:], *problem.options)
    # Whether a tile may have keys that some row of it does not see.
    masked = any(constants[name] for name in ("PACKED", "LEFT", "RIGHT", "TREE"))
    spoilt = torch.zeros(1, dtype=torch.int32, device=q.device) if masked else lse
    scales = [
        number
        for scale, x in ((q_scale, q), (k_scale, k), (v_scale, v))
        for number in (scale_numbers(scale, x) if eight else (lse, 0, 0, 0, 1))
    ]
    if eight:
        value_tiles = turned_descriptors(turned(v, problem), config.block_n)
    else:
        value_tiles = descriptors(v, config.block_n)
    for ends, lists, *band, row_tiles in problem.bands(config.block_m, config.block_n):
        hopper_forward_kernel[(min(processors(q), row_tiles * entities),)](
            *descriptors(q, ROWS // config.pack, config.pack),
            *descriptors(k, config.block_n),
            *value_tiles,
            out,
            lse,
            spoilt,
            *numbers,
            lse if ends is None else ends,
            lse if lists is None else lists,
            *band,
            row_tiles,
            entities,
            section(k, v, batch, heads // k.shape[-2] // config.pack, entities),
            *scales,
            **constants,
            PACK=config.pack,
            K_COLUMNS=columns(q),
            V_COLUMNS=columns(v),
            CONSUMERS=config.consumers,
            BLOCK_N=config.block_n,
            STAGES=config.stages,
            PING_PONG=config.ping_pong and config.consumers > 1,
            CONSUMER_REGS=config.consumer_regs,
            PRODUCER_REGS=config.producer_regs,
            num_warps=4,
        )
    if masked:
        ends, *strides = problem.ends()
        careful_kernel[(min(processors(q), lse.numel()),)](
            q,
            k,
            v,
            out,
            spoilt,
            lse.numel(),
            *numbers,
            lse if ends is None else ends,
            *strides,
            *(stride for x in (q, k, v) for stride in problem.strides(x)),
            *scales,
            **constants,
            DIM=q.shape[-1],
            WIDTH=max(16, next_power_of_2(q.shape[-1])),
            VALUE_WIDTH=max(16, next_power_of_2(v.shape[-1])),
            num_warps=4,
        )


def columns(x: Tensor) -> int:
    """Of tiles that hold a row."""
    return 2 if pieces(x.shape[-1])[1] else 1


def section(k: Tensor, v: Tensor, batch: int, readers: int, entities: int) -> int:
    """Entities whose keys and values, of a sequence of mean length, fit L2; ``readers`` share one
    kv head's."""
    keys = k.shape[-3] if k.dim() == 4 else -(-k.shape[0] // batch)
    size = keys * (k.shape[-1] + v.shape[-1]) * k.element_size()
    return min(entities, max(1, L2_BYTES // size) * readers)
