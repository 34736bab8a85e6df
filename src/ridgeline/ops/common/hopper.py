"""The Hopper decode kernel and its launch; both decode operations are calls of it.

A program is a producer warpgroup, which fills a ring of stages, and one or two consumer warpgroups.
Which tiles a program computes, and the merge of what several compute of one item, are those of
``triton_splits``.
"""

import torch
from torch import Tensor

from ridgeline.ops.common.device import DecodeConfig, next_power_of_2, scale_arguments
from ridgeline.ops.common.gluon import TensorDescriptor, gl, gluon, mbarrier
from ridgeline.ops.common.hopper_attend import Merge, Scores, attend
from ridgeline.ops.common.hopper_config import HopperConfig, load_of
from ridgeline.ops.common.hopper_load import Pages, Queries, Ring, Scales, Source, produce
from ridgeline.ops.common.hopper_prefetch import follows, run_of
from ridgeline.ops.common.hopper_work import Results, first_work
from ridgeline.ops.common.triton_splits import MIN_TILES, Splits


@gluon.jit
def barriers(COUNT: gl.constexpr, ARRIVALS: gl.constexpr):
    """``COUNT`` barriers, each of ``ARRIVALS`` arrivals."""
    found = gl.allocate_shared_memory(gl.int64, [COUNT, 1], mbarrier.MBarrierLayout())
    for i in gl.static_range(COUNT):
        mbarrier.init(found.index(i), ARRIVALS)
    return found


@gluon.jit
def tiles(dtype: gl.constexpr, COUNT: gl.constexpr, BLOCK: gl.constexpr):
    """``COUNT`` tiles of shape ``BLOCK`` as TMA writes and wgmma reads them."""
    layout: gl.constexpr = gl.NVMMASharedLayout.get_default_for(BLOCK, dtype)
    SHAPE: gl.constexpr = [COUNT] + BLOCK  # noqa: RUF005
    return gl.allocate_shared_memory(dtype, SHAPE, layout)


@gluon.jit
def scale_tiles(COUNT: gl.constexpr, BLOCKS: gl.constexpr, BLOCK_N: gl.constexpr):
    """``BLOCKS`` scales of the tokens of ``COUNT`` tiles, at least one."""
    flat: gl.constexpr = gl.SwizzledSharedLayout(1, 1, 1, [0])
    SHAPE: gl.constexpr = [COUNT * BLOCKS if BLOCKS > 0 else 1, BLOCK_N]
    return gl.allocate_shared_memory(gl.float32, SHAPE, flat)


@gluon.jit
def hopper_decode_kernel(
    q,
    q_rope,
    k,
    rope,
    v,
    k_desc,
    rope_desc,
    v_desc,
    block_table,
    out,
    lse,
    partial_out,
    partial_sums,
    cache_seqlens,
    stride_length,
    batch,
    query_len,
    window_left,
    launched,
    window_right,
    softmax_scale,
    softcap,
    num_pages,
    max_pages,
    stride_qb,
    stride_ql,
    stride_qh,
    stride_rb,
    stride_rl,
    stride_rh,
    stride_kp,
    stride_kt,
    stride_kh,
    stride_op,
    stride_ot,
    stride_vp,
    stride_vt,
    stride_vh,
    k_scale,
    stride_ksp,
    stride_kst,
    stride_ksh,
    stride_ksn,
    v_scale,
    stride_vsp,
    stride_vst,
    stride_vsh,
    stride_vsn,
    stride_tb,
    stride_tp,
    KV_HEADS: gl.constexpr,
    GROUP: gl.constexpr,
    ROW_BLOCKS: gl.constexpr,
    HEADS: gl.constexpr,
    Q_DIM: gl.constexpr,
    K_DIM: gl.constexpr,
    ROPE_DIM: gl.constexpr,
    VALUE_DIM: gl.constexpr,
    Q_WIDTH: gl.constexpr,
    K_WIDTH: gl.constexpr,
    R_WIDTH: gl.constexpr,
    V_WIDTH: gl.constexpr,
    WIDTH: gl.constexpr,
    PART_M: gl.constexpr,
    PAGE_SIZE: gl.constexpr,
    CAUSAL: gl.constexpr,
    WINDOW: gl.constexpr,
    SOFTCAP: gl.constexpr,
    K_BLOCKS: gl.constexpr,
    V_BLOCKS: gl.constexpr,
    TIED: gl.constexpr,
    BALANCED: gl.constexpr,
    TMA: gl.constexpr,
    CP_ASYNC: gl.constexpr,
    UNIT: gl.constexpr,
    BLOCK_M: gl.constexpr,
    BLOCK_N: gl.constexpr,
    STAGES: gl.constexpr,
    Q_STAGES: gl.constexpr,
    CONSUMERS: gl.constexpr,
    CONSUMER_REGS: gl.constexpr,
    PRODUCER_REGS: gl.constexpr,
    K_RUN: gl.constexpr,
    K_RUN_BYTES: gl.constexpr,
    ROPE_RUN: gl.constexpr,
    ROPE_RUN_BYTES: gl.constexpr,
    V_RUN: gl.constexpr,
    V_RUN_BYTES: gl.constexpr,
    PREFETCH: gl.constexpr,
    MIN_TILES: gl.constexpr,
):
    """Items of ``BLOCK_M`` query rows of ``HEADS`` cached heads over tiles of ``BLOCK_N`` tokens.

    The cache is read by ``TMA``, else by ``CP_ASYNC``, else through registers. ``TIED``:
    keys are values too. ``K_WIDTH`` and so on are widths of tiles, ``K_DIM`` of the data in them.
    ``K_BLOCKS``, ``V_BLOCKS``: FP8 scales, as in ``hopper_load.Scales``.
    """
    dtype: gl.constexpr = q.dtype.element_ty
    HAS_ROPE: gl.constexpr = ROPE_DIM > 0
    AXIS: gl.constexpr = 0 if BLOCK_M >= 64 else 1
    work = first_work(
        cache_seqlens,
        stride_length,
        batch,
        KV_HEADS // HEADS * ROW_BLOCKS,
        query_len,
        # A constant where there is none: every role would keep it, and what follows from it.
        gl.to_tensor(window_left if WINDOW else -1),
        launched,
        BALANCED,
        BLOCK_N,
        MIN_TILES,
    )
    k_tiles = tiles(dtype, STAGES * HEADS, [1, BLOCK_N, 1, K_WIDTH])
    r_tiles = k_tiles
    q_rope_tiles = k_tiles
    v_tiles = k_tiles
    q_tiles = tiles(dtype, Q_STAGES * HEADS, [BLOCK_M, Q_WIDTH])
    if HAS_ROPE:
        r_tiles = tiles(dtype, STAGES, [1, BLOCK_N, R_WIDTH])
        q_rope_tiles = tiles(dtype, Q_STAGES * HEADS, [BLOCK_M, R_WIDTH])
    if not TIED:
        v_tiles = tiles(dtype, STAGES * HEADS, [1, BLOCK_N, 1, V_WIDTH])
    k_scales = Scales(
        k_scale,
        gl.to_tensor(stride_ksp),
        gl.to_tensor(stride_kst),
        gl.to_tensor(stride_ksh),
        gl.to_tensor(stride_ksn),
        scale_tiles(STAGES * HEADS, K_BLOCKS, BLOCK_N),
        K_BLOCKS,
        K_DIM // max(K_BLOCKS, 1),
    )
    v_scales = k_scales
    if not TIED:
        v_scales = Scales(
            v_scale,
            gl.to_tensor(stride_vsp),
            gl.to_tensor(stride_vst),
            gl.to_tensor(stride_vsh),
            gl.to_tensor(stride_vsn),
            scale_tiles(STAGES * HEADS, V_BLOCKS, BLOCK_N),
            V_BLOCKS,
            VALUE_DIM // max(V_BLOCKS, 1),
        )
    ring = Ring(
        k_tiles,
        r_tiles,
        v_tiles,
        k_scales,
        v_scales,
        barriers(STAGES, 1),
        barriers(STAGES, 1),
        STAGES,
        HEADS,
        BLOCK_N,
        TIED,
        HAS_ROPE,
        TMA,
        CP_ASYNC,
        PREFETCH,
    )
    queries = Queries(
        q_tiles,
        q_rope_tiles,
        barriers(Q_STAGES, 1),
        barriers(Q_STAGES, CONSUMERS),
        Q_STAGES,
        HEADS,
        BLOCK_M,
        GROUP,
        ROW_BLOCKS,
    )
    pages = Pages(
        block_table,
        gl.to_tensor(stride_tb),
        gl.to_tensor(stride_tp),
        gl.to_tensor(num_pages),
        gl.to_tensor(max_pages),
        PAGE_SIZE,
    )
    scores = Scores(
        gl.to_tensor(softmax_scale),
        gl.to_tensor(softcap),
        gl.to_tensor(window_left),
        gl.to_tensor(window_right),
        CAUSAL,
        WINDOW,
        SOFTCAP,
    )
    KV_Q_HEADS: gl.constexpr = KV_HEADS * GROUP
    results = Results(
        out, lse, partial_out, partial_sums, KV_Q_HEADS, GROUP, HEADS, VALUE_DIM, PART_M, WIDTH
    )
    load_args = (
        work,
        ring,
        queries,
        pages,
        source(q, stride_qb, stride_ql, stride_qh, Q_DIM, 1, 1, 0),
        source(q_rope, stride_rb, stride_rl, stride_rh, ROPE_DIM, 1, 1, 0),
        source(k, stride_kp, stride_kt, stride_kh, K_DIM, UNIT, K_RUN, K_RUN_BYTES),
        source(rope, stride_op, stride_ot, 0, ROPE_DIM, UNIT, ROPE_RUN, ROPE_RUN_BYTES),
        source(v, stride_vp, stride_vt, stride_vh, VALUE_DIM, UNIT, V_RUN, V_RUN_BYTES),
        k_desc,
        rope_desc,
        v_desc,
    )
    if CONSUMERS == 1:
        merge = Merge(q_tiles, q_tiles, queries.full, queries.empty)
        gl.warp_specialize(
            [
                (attend, (work, ring, queries, scores, results, merge, 0, 1, AXIS)),
                (produce, load_args),
            ],
            [4],
            [PRODUCER_REGS],
        )
    else:
        flat: gl.constexpr = gl.SwizzledSharedLayout(1, 1, 1, [1, 0])
        line: gl.constexpr = gl.SwizzledSharedLayout(1, 1, 1, [0])
        PIECES: gl.constexpr = max(v_scales.BLOCKS, 1)
        COLUMNS: gl.constexpr = V_WIDTH if PIECES == 1 else v_scales.WIDTH
        merge = Merge(
            gl.allocate_shared_memory(gl.float32, [HEADS * PIECES, COLUMNS, BLOCK_M], flat),
            gl.allocate_shared_memory(gl.float32, [2 * HEADS, BLOCK_M], line),
            barriers(1, 1).index(0),
            barriers(1, 1).index(0),
        )
        gl.warp_specialize(
            [
                (attend, (work, ring, queries, scores, results, merge, 0, 2, AXIS)),
                (attend, (work, ring, queries, scores, results, merge, 1, 2, AXIS)),
                (produce, load_args),
            ],
            [4, 4],
            [CONSUMER_REGS, PRODUCER_REGS],
        )


@gluon.jit
def source(
    base,
    stride_0,
    stride_1,
    stride_2,
    DIM: gl.constexpr,
    UNIT: gl.constexpr,
    RUN_TOKENS: gl.constexpr,
    RUN_BYTES: gl.constexpr,
):
    return Source(
        base,
        gl.to_tensor(stride_0),
        gl.to_tensor(stride_1),
        gl.to_tensor(stride_2),
        DIM,
        UNIT,
        RUN_TOKENS,
        RUN_BYTES,
    )


def decode(
    q: Tensor,
    q_rope: Tensor | None,
    k: Tensor,
    rope: Tensor | None,
    v: Tensor | None,
    block_table: Tensor,
    cache_seqlens: Tensor,
    *,
    k_scale: Tensor | None,
    v_scale: Tensor | None,
    softmax_scale: float,
    causal: bool,
    window_left: int,
    window_right: int,
    softcap: float,
    num_splits: int,
    out: Tensor,
    lse: Tensor,
    config: HopperConfig,
) -> None:
    """Fills ``out [B, L_q, h_q, d_v]`` and ``lse [B, L_q, h_q]``, both contiguous.

    ``rope [num_pages, page_size, d_r]`` with its part of the queries, or ``None``; ``v`` is
    ``None`` where the keys are the values, and with it ``v_scale``. ``k_scale`` and ``v_scale``:
    float32, what FP8 caches are to be multiplied by, as of ``paged_decode``.
    """
    _, query_len, q_heads, q_dim = q.shape
    num_pages, page_size, kv_heads, k_dim = k.shape
    group, value_dim = q_heads // kv_heads, out.shape[-1]
    caches = [x for x in (k, rope, v) if x is not None]
    load, unit = load_of(page_size, caches)
    capacity = block_table.shape[1] * page_size
    part_m = (
        config.block_m if config.heads == 1 else next_power_of_2(query_len * group * config.heads)
    )
    splits = Splits(
        q,
        k[:, :, :: config.heads],
        cache_seqlens,
        capacity,
        window_left,
        num_splits,
        value_dim,
        DecodeConfig(part_m, config.block_n, 4, 1, programs=config.programs),
    )
    descriptors = (None, None, None)
    if load == "tma":
        rows = min(page_size, config.block_n)
        descriptors = (
            descriptor(k, [1, rows, 1, config.k_width]),
            None if rope is None else descriptor(rope, [1, rows, config.r_width]),
            None if v is None else descriptor(v, [1, rows, 1, config.v_width]),
        )
    runs = prefetch_runs(k, rope, v, config, load)
    k_scale, k_scale_strides, k_blocks = scale_arguments(k_scale)
    v_scale, v_scale_strides, v_blocks = scale_arguments(v_scale)
    hopper_decode_kernel[splits.grid](
        q,
        q if q_rope is None else q_rope,
        k,
        k if rope is None else rope,
        k if v is None else v,
        *descriptors,
        block_table,
        out,
        lse,
        splits.partial_out,
        splits.partial_sums,
        *splits.lengths,
        window_right,
        softmax_scale,
        softcap,
        num_pages,
        block_table.shape[1],
        *q.stride()[:3],
        *((0, 0, 0) if q_rope is None else q_rope.stride()[:3]),
        *units(k, unit),
        *((0, 0) if rope is None else units(rope, unit)),
        *((0, 0, 0) if v is None else units(v, unit)),
        lse if k_scale is None else k_scale,
        *k_scale_strides,
        lse if v_scale is None else v_scale,
        *v_scale_strides,
        *block_table.stride(),
        KV_HEADS=kv_heads,
        GROUP=group,
        ROW_BLOCKS=splits.row_blocks,
        HEADS=config.heads,
        Q_DIM=q_dim,
        K_DIM=k_dim,
        ROPE_DIM=0 if rope is None else rope.shape[-1],
        VALUE_DIM=value_dim,
        Q_WIDTH=config.q_width,
        K_WIDTH=config.k_width,
        R_WIDTH=config.r_width,
        V_WIDTH=config.v_width,
        WIDTH=value_dim,
        PART_M=part_m,
        PAGE_SIZE=page_size,
        CAUSAL=causal,
        WINDOW=window_left >= 0 or window_right >= 0,
        SOFTCAP=softcap > 0,
        K_BLOCKS=k_blocks,
        V_BLOCKS=v_blocks,
        TIED=v is None,
        BALANCED=splits.balanced,
        TMA=load == "tma",
        CP_ASYNC=load != "load",
        UNIT=unit,
        BLOCK_M=config.block_m,
        BLOCK_N=config.block_n,
        STAGES=config.stages,
        Q_STAGES=config.q_stages,
        CONSUMERS=config.consumers,
        CONSUMER_REGS=config.consumer_regs,
        PRODUCER_REGS=config.producer_regs,
        **runs,
        MIN_TILES=MIN_TILES,
        num_warps=config.num_warps,
    )
    splits.combine(out, lse)


def prefetch_runs(
    k: Tensor, rope: Tensor | None, v: Tensor | None, config: HopperConfig, load: str
) -> dict[str, int]:
    """The distance of the prefetch and the runs of each cache, 16 bytes at a time."""
    k_run = rope_run = v_run = (1, 0)
    distance = 0 if load == "load" else config.prefetch
    if distance > 0:
        # A tile holds whole pages or lies in one where TMA copies it.
        block = min(k.shape[1], config.block_n) if load == "tma" else 1
        k_run = run_of(k, config.heads, block, joined=rope)
        if rope is not None and (k_run[0] == 1 or not follows(rope, k)):
            rope_run = run_of(rope[:, :, None], 1, block)
        if v is not None:
            v_run = run_of(v, config.heads, block)
    runs = {"K_RUN": k_run, "ROPE_RUN": rope_run, "V_RUN": v_run}
    tokens = {name: run[0] for name, run in runs.items()}
    return tokens | {f"{name}_BYTES": run[1] for name, run in runs.items()} | {"PREFETCH": distance}


def descriptor(x: Tensor, block: list[int]) -> TensorDescriptor:
    """Blocks of a cache for the tensor memory unit."""
    dtype = {torch.bfloat16: gl.bfloat16, torch.float16: gl.float16}[x.dtype]
    layout = gl.NVMMASharedLayout.get_default_for(block, dtype)
    return TensorDescriptor(x, list(x.shape), [*units(x, 1), 1], block, layout)


def units(x: Tensor, unit: int) -> list[int]:
    """Strides but the last, in units of ``unit`` elements; of a dim of size 1 any will do."""
    return [
        s // unit if n > 1 else 8 // unit for s, n in zip(x.stride()[:-1], x.shape, strict=False)
    ]
