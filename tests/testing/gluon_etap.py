"""A transposed decode kernel, as an end-to-end test: tokens on M, query rows on N.

One warp loads tiles of keys by TMA; two warpgroups each own every other tile, with their own
running maximum, sum and O^T; the first merges the second's and stores by TMA.
"""

import math

import torch
from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import (
    fence_async_shared,
    mbarrier,
    tma,
    warpgroup_mma,
    warpgroup_mma_wait,
)
from triton.experimental.gluon.nvidia.hopper import TensorDescriptor
from triton.language.core import _aggregate as aggregate

WORKERS = gl.constexpr(2)
LINE = gl.constexpr(gl.SwizzledSharedLayout(1, 1, 1, [0]))


@aggregate
class Config:
    BLOCK_H: gl.constexpr  # query rows
    BLOCK_N: gl.constexpr  # tokens
    D: gl.constexpr
    D_V: gl.constexpr
    STAGES: gl.constexpr
    ACC: gl.constexpr

    @gluon.constexpr_function
    def __init__(self, BLOCK_H, BLOCK_N, D, D_V, STAGES):
        self.BLOCK_H = gl.constexpr(BLOCK_H)
        self.BLOCK_N = gl.constexpr(BLOCK_N)
        self.D = gl.constexpr(D)
        self.D_V = gl.constexpr(D_V)
        self.STAGES = gl.constexpr(STAGES)
        self.ACC = gl.constexpr(gl.NVMMADistributedLayout([3, 0], [4, 1], [16, BLOCK_H, 16]))


@aggregate
class Ring:
    """Tiles in shared memory, each with a barrier for full and one for empty."""

    tiles: gl.shared_memory_descriptor
    full: gl.shared_memory_descriptor
    empty: gl.shared_memory_descriptor
    STAGES: gl.constexpr

    @gluon.constexpr_function
    def __init__(self, tiles, full, empty, STAGES):
        self.tiles = tiles
        self.full = full
        self.empty = empty
        self.STAGES = gl.constexpr(STAGES)

    @gluon.jit
    def create(desc, STAGES: gl.constexpr):
        shape: gl.constexpr = desc.block_type.shape
        tiles = gl.allocate_shared_memory(gl.bfloat16, [STAGES, shape[0], shape[1]], desc.layout)
        full = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
        empty = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
        for i in gl.static_range(STAGES):
            mbarrier.init(full.index(i), 1)
            mbarrier.init(empty.index(i), 1)
        return Ring(tiles, full, empty, STAGES)

    @gluon.jit
    def load(self, desc, i, row):
        stage = i % self.STAGES
        mbarrier.wait(self.empty.index(stage), ((i // self.STAGES) & 1) ^ 1)
        full = self.full.index(stage)
        mbarrier.expect(full, desc.block_type.nbytes)
        tma.async_copy_global_to_shared(desc, [row, 0], full, self.tiles.index(stage))

    @gluon.jit
    def acquire(self, i):
        stage = i % self.STAGES
        mbarrier.wait(self.full.index(stage), (i // self.STAGES) & 1)
        return self.tiles.index(stage)

    @gluon.jit
    def release(self, i):
        mbarrier.arrive(self.empty.index(i % self.STAGES))


@gluon.jit
def load_tiles(k_desc, ring, first_row, num_tiles, BLOCK_N: gl.constexpr):
    for i in range(num_tiles):
        ring.load(k_desc, i, first_row + i * BLOCK_N)


@gluon.jit
def attend(cfg, q, ring, worker: gl.constexpr, num_tokens, scale_log2):
    """The running (m, l, O^T) of every second tile."""
    # [BLOCK_N, BLOCK_H]: B operand of the second product
    p_smem = gl.allocate_shared_memory(
        gl.bfloat16,
        [cfg.BLOCK_N, cfg.BLOCK_H],
        gl.NVMMASharedLayout.get_default_for([cfg.BLOCK_N, cfg.BLOCK_H], gl.bfloat16),
    )
    m = gl.full([cfg.BLOCK_H], float("-inf"), gl.float32, gl.SliceLayout(0, cfg.ACC))
    l = gl.zeros([cfg.BLOCK_H], gl.float32, gl.SliceLayout(0, cfg.ACC))
    o = gl.zeros([cfg.D_V, cfg.BLOCK_H], gl.float32, cfg.ACC)
    tokens = gl.arange(0, cfg.BLOCK_N, gl.SliceLayout(1, cfg.ACC))
    for i in range(worker, gl.cdiv(num_tokens, cfg.BLOCK_N), WORKERS):
        k = ring.acquire(i)
        s = gl.zeros([cfg.BLOCK_N, cfg.BLOCK_H], gl.float32, cfg.ACC)
        s = warpgroup_mma(k, q.permute((1, 0)), s, is_async=True)
        s = warpgroup_mma_wait(0, [s]) * scale_log2
        s = gl.where(tokens[:, None] < num_tokens - i * cfg.BLOCK_N, s, float("-inf"))
        m_new = gl.maximum(m, gl.max(s, 0))
        alpha = gl.exp2(m - m_new)
        p = gl.exp2(s - m_new[None, :])
        l = l * alpha + gl.sum(p, 0)
        m = m_new
        p_smem.store(p.to(gl.bfloat16))
        fence_async_shared()
        v = k.slice(0, cfg.D_V, 1)
        o = warpgroup_mma(v.permute((1, 0)), p_smem, o * alpha[None, :], is_async=True)
        o = warpgroup_mma_wait(0, [o])
        ring.release(i)
    return m, l, o


@gluon.jit
def second_worker(cfg, q, ring, exchange, given, num_tokens, scale_log2):
    m, l, o = attend(cfg, q, ring, 1, num_tokens, scale_log2)
    exchange[0].store(m)
    exchange[1].store(l)
    exchange[2].store(o)
    mbarrier.arrive(given)


@gluon.jit
def first_worker(cfg, q, ring, exchange, given, num_tokens, scale_log2, out_desc, lse_ptr, pid):
    m, l, o = attend(cfg, q, ring, 0, num_tokens, scale_log2)
    mbarrier.wait(given, 0)
    m_1 = exchange[0].load(gl.SliceLayout(0, cfg.ACC))
    m_all = gl.maximum(m, m_1)
    alpha = gl.exp2(m - m_all)
    alpha_1 = gl.exp2(m_1 - m_all)
    l = l * alpha + exchange[1].load(gl.SliceLayout(0, cfg.ACC)) * alpha_1
    o = o * alpha[None, :] + exchange[2].load(cfg.ACC) * alpha_1[None, :]
    out = gl.allocate_shared_memory(gl.bfloat16, [cfg.BLOCK_H, cfg.D_V], out_desc.layout)
    out.permute((1, 0)).store((o / l[None, :]).to(gl.bfloat16))
    fence_async_shared()
    tma.async_copy_shared_to_global(out_desc, [pid * cfg.BLOCK_H, 0], out)
    heads = gl.arange(0, cfg.BLOCK_H, gl.SliceLayout(0, cfg.ACC))
    gl.store(lse_ptr + pid * cfg.BLOCK_H + heads, m_all + gl.log2(l))
    tma.store_wait(0)


@gluon.jit
def decode(
    q_desc,
    k_desc,
    out_desc,
    lse_ptr,
    lengths_ptr,
    tokens_per_row,
    scale_log2,
    BLOCK_H: gl.constexpr,
    BLOCK_N: gl.constexpr,
    D: gl.constexpr,
    D_V: gl.constexpr,
    STAGES: gl.constexpr,
):
    cfg = Config(BLOCK_H, BLOCK_N, D, D_V, STAGES)
    pid = gl.program_id(0)
    num_tokens = gl.load(lengths_ptr + pid)
    q = gl.allocate_shared_memory(gl.bfloat16, [BLOCK_H, D], q_desc.layout)
    ring = Ring.create(k_desc, STAGES)
    bars = gl.allocate_shared_memory(gl.int64, [2, 1], mbarrier.MBarrierLayout())
    mbarrier.init(bars.index(0), 1)
    mbarrier.init(bars.index(1), 1)
    exchange = (
        gl.allocate_shared_memory(gl.float32, [BLOCK_H], LINE),
        gl.allocate_shared_memory(gl.float32, [BLOCK_H], LINE),
        gl.allocate_shared_memory(
            gl.float32, [D_V, BLOCK_H], gl.SwizzledSharedLayout(1, 1, 1, [1, 0])
        ),
    )
    mbarrier.expect(bars.index(0), q_desc.block_type.nbytes)
    tma.async_copy_global_to_shared(q_desc, [pid * BLOCK_H, 0], bars.index(0), q)
    mbarrier.wait(bars.index(0), 0)
    given = bars.index(1)
    num_tiles = gl.cdiv(num_tokens, BLOCK_N)
    second = (cfg, q, ring, exchange, given, num_tokens, scale_log2)
    first = (cfg, q, ring, exchange, given, num_tokens, scale_log2, out_desc, lse_ptr, pid)
    gl.warp_specialize(
        [
            (first_worker, first),
            (second_worker, second),
            (load_tiles, (k_desc, ring, pid * tokens_per_row, num_tiles, BLOCK_N)),
        ],
        [4, 1],
        [192, 24],
    )


def problem(
    lengths: tuple[int, ...], heads: int = 16, dim: int = 64, dim_v: int = 64, seed: int = 0
) -> tuple[tuple, dict[str, int]]:
    """Arguments of a launch and its constants; the output and lse are the third and fourth."""
    generator = torch.Generator().manual_seed(seed)
    rows = max(lengths)
    q = torch.randn(len(lengths) * heads, dim, generator=generator).bfloat16()
    k = torch.randn(len(lengths) * rows, dim, generator=generator).bfloat16()
    out = torch.full((len(lengths) * heads, dim_v), float("nan")).bfloat16()
    lse = torch.full((len(lengths) * heads,), float("nan"))
    scale_log2 = math.log2(math.e) / math.sqrt(dim)

    def described(tensor: torch.Tensor, block: list[int]) -> TensorDescriptor:
        layout = gl.NVMMASharedLayout.get_default_for(block, gl.bfloat16)
        return TensorDescriptor.from_tensor(tensor, block, layout)

    arguments = (
        described(q, [heads, dim]),
        described(k, [64, dim]),
        described(out, [heads, dim_v]),
        lse,
        torch.tensor(lengths, dtype=torch.int32),
        rows,
        scale_log2,
    )
    constants = {"BLOCK_H": heads, "BLOCK_N": 64, "D": dim, "D_V": dim_v, "STAGES": 2}
    return arguments, constants


def expected(arguments: tuple, constants: dict[str, int]) -> tuple[torch.Tensor, torch.Tensor]:
    """The float64 result and its log-sum-exp in base 2."""
    q_desc, k_desc, _, _, lengths, rows, scale_log2 = arguments
    heads, dim_v = constants["BLOCK_H"], constants["D_V"]
    q = q_desc.base.double().unflatten(0, (-1, heads))
    k = k_desc.base.double().unflatten(0, (-1, rows))
    scores = torch.einsum("bhd,bnd->bhn", q, k) * scale_log2
    unseen = torch.arange(rows) >= lengths[:, None, None]
    scores = scores.masked_fill(unseen, float("-inf"))
    lse = torch.logsumexp(scores * math.log(2), -1) / math.log(2)
    p = torch.exp2(scores - lse[..., None])
    return (p @ k[..., :dim_v]).flatten(0, 1), lse.flatten()
