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
from ridgeline.ops.attention.hopper.consumer import Scores, Turns, attend
from ridgeline.ops.attention.hopper.paged_config import part_rows
from ridgeline.ops.attention.hopper.pages import load_pages, load_pages_of_values
from ridgeline.ops.attention.hopper.results import Results
from ridgeline.ops.attention.hopper.ring import make_ring
from ridgeline.ops.attention.hopper.scales import Scaling, make_scales, scale_numbers
from ridgeline.ops.attention.hopper.tensors import descriptors, readable, turned_descriptors
from ridgeline.ops.attention.hopper.turned import turned
from ridgeline.ops.attention.hopper.work import make_work
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
from ridgeline.ops.common.hopper_load import Pages

CONSTANTS = ("PACKED", "LEFT", "RIGHT", "TREE", "SOFTCAP", "SCALED", "VALUE_DIM")


@gluon.jit
def load_keys(ring, n, desc0, desc1, work, pages, item, tile):
    """A tile of an item's keys, as tile n of the ring."""
    head = work.kv_head(item)
    if work.PAGED:
        load_pages(ring, n, desc0, desc1, work, pages, item, tile, head)
    else:
        row = item.start_k.to(gl.int32) + tile * work.BLOCK_N
        ring.load(n, desc0, desc1, item.b * (0 if work.PACKED else 1), row, head)


@gluon.jit
def load_values(ring, n, desc0, desc1, work, pages, item, tile, changed):
    """As ``load_keys``, of values; ``changed`` as in ``pages.load_pages_of_values``."""
    head = work.kv_head(item)
    if work.PAGED:
        changed = load_pages_of_values(
            ring, n, desc0, desc1, work, pages, item, tile, head, changed
        )
    else:
        start = item.start_k.to(gl.int32)
        if ring.TURNED and work.PACKED:
            start = (start // 16 + item.b) * 16  # as in ``turned``
        row = start + tile * work.BLOCK_N
        ring.load(n, desc0, desc1, item.b * (0 if work.PACKED else 1), row, head)
    return changed


@gluon.jit
def produce(work, queries, keys, values, pages, q0, q1, k0, k1, v0, v1):
    """The producer warp: every item's queries, then keys one tile ahead of values."""
    CONSUMERS: gl.constexpr = queries.STAGES
    STEP: gl.constexpr = queries.x0.shape[2]  # tokens of a consumer's rows
    n = 0
    q = 0
    changed = gl.to_tensor(0)  # tiles of values, by ``pages``
    for i in range(work.rounds()):
        t = work.nth(i)
        if t >= 0:
            item = work.item(t)
            if (item.begin >= 0) & (item.count > 0):
                # Packed sequences are rows of one.
                b = item.b * (0 if work.PACKED else 1)
                query = item.start_q.to(gl.int32) + item.begin // work.PACK
                reader = item.entity * work.PACK
                tile = work.tile(item, 0)
                queries.load(q, q0, q1, b, query, reader)
                load_keys(keys, n, k0, k1, work, pages, item, tile)
                for c in gl.static_range(1, CONSUMERS):
                    queries.load(q + c, q0, q1, b, query + c * STEP, reader)
                for j in range(1, item.count):
                    following = work.tile(item, j)
                    load_keys(keys, n + j, k0, k1, work, pages, item, following)
                    changed = load_values(
                        values, n + j - 1, v0, v1, work, pages, item, tile, changed
                    )
                    tile = following
                n += item.count
                changed = load_values(values, n - 1, v0, v1, work, pages, item, tile, changed)
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
    items,
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
    block_table,
    stride_tb,
    stride_tp,
    num_pages,
    max_pages,
    PAGE_SIZE: gl.constexpr,
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

    FP8 inputs have scales, and values are ``turned``. ``PAGE_SIZE``: keys and values are pages of
    so many tokens, or 0; then ``cu_k`` has the lengths.
    """
    EIGHT: gl.constexpr = q0.dtype == gl.float8e4nv
    PAGED: gl.constexpr = PAGE_SIZE > 0
    PARTS: gl.constexpr = BLOCK_N // k0.block_type.shape[1]
    work = make_work(
        cu_q,
        cu_k,
        stride_cuq,
        stride_cuk,
        batch,
        query_len,
        key_len,
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
        items,
        PACKED,
        LEFT,
        RIGHT,
        TREE,
        PACK,
        GROUP,
        CONSUMERS * 64,
        BLOCK_N,
        PAGED,
    )
    pages = Pages(
        block_table,
        gl.to_tensor(stride_tb),
        gl.to_tensor(stride_tp),
        gl.to_tensor(num_pages),
        gl.to_tensor(max_pages),
        PAGE_SIZE,
    )
    queries = make_ring(q0, q1, CONSUMERS, K_COLUMNS, 1)
    keys = make_ring(k0, k1, STAGES, K_COLUMNS, CONSUMERS, False, PARTS)
    OWN: gl.constexpr = 1 if PAGED else 0
    values = make_ring(v0, v1, STAGES, V_COLUMNS, CONSUMERS, EIGHT, PARTS, OWN)
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
    COUNT: gl.constexpr = not PAGED and (PACKED or LEFT or RIGHT or TREE)
    results = Results(out, lse, spoilt, HEADS, VALUE_DIM, COUNT)
    load = (work, queries, keys, values, pages, q0, q1, k0, k1, v0, v1)
    # A number is a constant only where it stands in the tuple that is given to a partition.
    if CONSUMERS == 1:
        gl.warp_specialize(
            [
                (attend, (work, queries, keys, values, turns, scores, scaling, results, 0)),
                (produce, load),
            ],
            [1],
            [PRODUCER_REGS],
        )
    else:
        gl.warp_specialize(
            [
                (attend, (work, queries, keys, values, turns, scores, scaling, results, 0)),
                (attend, (work, queries, keys, values, turns, scores, scaling, results, 1)),
                (produce, load),
            ],
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
    tree: bool = False,
) -> ForwardConfig:
    """The tiling of a call, from shapes alone; ``tree``: it has ``subtree_end``."""
    rows = q.shape[-3] if q.dim() == 4 else -(-q.shape[0] // max(batch, 1))
    group = q.shape[-2] // k.shape[-2]
    chosen = forward_config(q.shape[-1], v.shape[-1], rows, group)
    if q.dtype == check.FP8:
        scaled = scaled_rows(k, k_scale, v_scale)
        chosen = fp8_config(chosen, q.shape[-1], v.shape[-1], scaled, tree)
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
    block_table: Tensor | None = None,
    cache_seqlens: Tensor | None = None,
    config: ForwardConfig | None = None,
) -> None:
    """Fills ``out [..., h_q, d_v]`` and ``lse [..., h_q]``, both contiguous.

    Scales are those of FP8 inputs; the tiles of ``config`` have to divide their blocks of keys.
    ``config`` replaces the tiling that ``config_for`` chooses; it changes the result within
    rounding. With ``block_table [B, max_pages]`` and ``cache_seqlens [B]``, int32, ``k`` and ``v``
    are pages ``[num_pages, page_size, h_kv, d]``, which ``paged_config`` takes.
    """
    if lse.numel() == 0:
        return
    paged = block_table is not None
    if k.numel() == 0 or (paged and block_table.numel() == 0):
        out.zero_()
        lse.fill_(float("-inf"))
        return
    batch = q.shape[0] if cu_seqlens_q is None else cu_seqlens_q.shape[0] - 1
    config = config or config_for(q, k, v, batch, k_scale, v_scale, subtree_end is not None)
    eight = q.dtype == check.FP8
    q = readable(q)
    if not paged:
        k, v = readable(k), v if eight else readable(v)
    page_size = k.shape[1] if paged else 0
    key_len = block_table.shape[1] * page_size if paged else k.shape[-3]
    options = (softmax_scale, causal, window_left, window_right, softcap)
    layout = (cu_seqlens_q, cu_seqlens_k, subtree_end)
    problem = Problem(q, k, v, *layout, *options, key_len=key_len, group=config.pack)
    heads = q.shape[-2]
    entities = heads // config.pack
    constants = {name: problem.constants[name] for name in CONSTANTS}
    constants |= {"GROUP": heads // k.shape[-2], "HEADS": heads}
    starts = (cu_seqlens_q, cache_seqlens if paged else cu_seqlens_k)
    strides = (0, cache_seqlens.stride(0)) if paged else problem.layout[2:4]
    numbers = (
        *(lse if x is None else x for x in starts),
        *strides,
        *problem.layout[4:],
        *problem.options,
    )
    pages = (lse, 0, 0, 0, 0)
    if paged:
        pages = (block_table, *block_table.stride(), k.shape[0], block_table.shape[1])
    # Whether a tile may have keys that some row of it does not see.
    masked = not paged and any(constants[name] for name in ("PACKED", "LEFT", "RIGHT", "TREE"))
    spoilt = torch.zeros(1, dtype=torch.int32, device=q.device) if masked else lse
    scales = [
        number
        for scale, x in ((q_scale, q), (k_scale, k), (v_scale, v))
        for number in (scale_numbers(scale, x) if eight else (lse, 0, 0, 0, 0))
    ]
    block = part_rows(page_size, config.block_n) if paged else config.block_n
    if eight:
        value_tiles = turned_descriptors(turned(v, problem), config.block_n)
    else:
        value_tiles = descriptors(v, block)
    for ends, lists, *band, row_tiles in problem.bands(config.block_m, config.block_n):
        hopper_forward_kernel[(min(processors(q), row_tiles * entities),)](
            *descriptors(q, ROWS // config.pack, config.pack),
            *descriptors(k, block),
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
            section(problem, heads // k.shape[-2] // config.pack, entities),
            row_tiles * entities,
            *scales,
            *pages,
            PAGE_SIZE=page_size,
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


def section(problem: Problem, readers: int, entities: int) -> int:
    """Entities whose keys and values, of a sequence of mean length, fit L2; ``readers`` share one
    kv head's."""
    keys = -(-problem.key_len // problem.batch) if problem.packed else problem.key_len
    k, v = problem.k, problem.v
    size = keys * (k.shape[-1] + v.shape[-1]) * k.element_size()
    return min(entities, max(1, L2_BYTES // size) * readers)
