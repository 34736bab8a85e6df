"""What can be said about the Hopper decode kernel without importing Triton: tiling and limits."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from importlib.util import find_spec
from itertools import product

import torch
from torch import Tensor

from ridgeline.ops.common import device
from ridgeline.ops.common.device import next_power_of_2

ARCH = 90  # compute capability
SHARED_BYTES = 225 << 10  # of a program, less barriers and what reductions exchange
# Of a thread of the second of two consumers and the producer, by heads of an item: those of a few
# that were compiled with which least is spilled. The first consumer, which merges, has the rest:
# more than the second where its outputs are pieces, each with scales of its own.
REGISTERS = {1: (200, 104), 2: (224, 56), 4: (184, 136)}
PIECES_REGISTERS = (168, 104)  # of one head
SCALED_COLUMNS = (64, 128, 256)  # that share an FP8 scale: of a product of their own
BLOCK_N = 64  # tokens of a tile: the M of a wgmma


@dataclass(frozen=True)
class HopperConfig:
    """How the Hopper decode kernel is tiled."""

    block_m: int  # query rows of a cached head in an item
    heads: int  # cached heads of an item
    stages: int  # tiles of the ring
    q_stages: int  # items whose queries are in shared memory
    consumers: int  # warpgroups that compute
    q_width: int  # columns of the tiles
    k_width: int
    r_width: int
    v_width: int
    scales: int = 0  # of a token and head, by block
    pieces: int = 1  # of a value, by its scales
    block_n: int = BLOCK_N
    programs: int = 1  # a processor, of the balanced schedule
    prefetch: int = 0
    # Of a thread; three warpgroups have 504, of which the first consumer takes what is left.
    consumer_regs: int = 208
    producer_regs: int = 88

    @property
    def transposed(self) -> bool:
        """Whether query rows are on the N side of wgmma."""
        return self.block_m < 64

    @property
    def num_warps(self) -> int:
        """Of the first consumer. Rows on M take two warpgroups, which share every tile."""
        return 4 if self.transposed else 8

    @property
    def warpgroups(self) -> int:
        """Over which an accumulator is spread."""
        return self.num_warps // 4


def width(dim: int, least: int) -> int:
    return max(least, next_power_of_2(dim))


def tile_bytes(c: HopperConfig, tied: bool) -> int:
    """Of a stage of the ring."""
    elements = c.heads * (c.k_width + (0 if tied else c.v_width)) + c.r_width
    return c.block_n * (2 * elements + 4 * c.heads * c.scales)


def fixed_bytes(c: HopperConfig) -> int:
    """Of queries, probabilities and the merge of two consumers."""
    queries = 2 * c.q_stages * c.heads * c.block_m * (c.q_width + c.r_width)
    probabilities = 2 * c.consumers * c.pieces * c.block_m * c.block_n
    merge = 4 * (c.consumers - 1) * c.heads * c.block_m * (c.v_width + 2)
    return queries + probabilities + merge


def layouts(rows: int) -> list[tuple[int, int]]:
    """Query rows of an item and consumers, best first.

    Up to 32 rows are transposed. More are rows on M, where 64 of a wide state fill the registers.
    ``device.tuned("hopper_decode", block_m=...)`` chooses the rows, and with them the side.
    """
    tuned = device.tuned_field("hopper_decode", "block_m")
    block_m = tuned or min(max(8, next_power_of_2(rows)), 128)
    if block_m <= 32:
        return [(block_m, 2), (block_m, 1)]
    return [(block_m, 1)] if tuned or block_m == 64 else [(block_m, 1), (64, 1)]


def blocks(scale: Tensor | None) -> int:
    """FP8 scales of a token and head; 0 where one holds for all tokens."""
    return scale.shape[3] if scale is not None and scale.dim() == 4 else 0


def decode_config(
    rows: int,
    kv_heads: int,
    q_dim: int,
    k_dim: int,
    rope_dim: int,
    value_dim: int,
    *,
    tied: bool,
    k_blocks: int = 0,
    v_blocks: int = 0,
) -> HopperConfig:
    """The tiling of a call from its shapes alone.

    Nothing here is measured yet. An accumulator takes at most 128 registers a thread, and a ring at
    least two stages; of what fits, the order of preference is a second consumer, heads that share a
    RoPE key, a second stage of queries.

    Args:
        rows: query rows of one cached head, ``L_q * h_q / h_kv``.
        kv_heads: cached heads.
        q_dim, k_dim, rope_dim, value_dim: widths of a query row, without its RoPE part, of a
            cached key, of a RoPE key, and of a value.
        tied: keys are the values.
        k_blocks, v_blocks: FP8 scales of a token and head of the keys, and of values apart.

    Raises:
        ValueError: there is none, for the shared memory, or for scales whose columns are not those
            of whole products.
    """
    for dim, n in ((k_dim, k_blocks), (value_dim, v_blocks)):
        if n > 1 and dim // n not in SCALED_COLUMNS:
            expected = " or ".join(map(str, SCALED_COLUMNS))
            raise ValueError(
                f"FP8 scales are one a token and head or one for {expected} of its columns, got "
                f"one for {dim // n}"
            )
    v_width = width(value_dim, 64)
    k_width = v_width if tied else width(k_dim, 64)
    q_width, r_width = min(k_width, width(q_dim, 64)), width(rope_dim, 16) if rope_dim else 0
    widths = (q_width, k_width, r_width, v_width)
    scales = (k_blocks + v_blocks, max(k_blocks if tied else v_blocks, 1))
    alone = rows if tied and rope_dim else 0  # heads share a RoPE key where their rows fit a tile
    for block_m, consumers in layouts(rows):
        shared = [h for h in (4, 2) if kv_heads % h == 0] if 0 < alone <= block_m else []
        # Beside accumulators of 32 rows, the addresses of a second stage of queries are spilled.
        for heads, q_stages in product([*shared, 1], (1,) if block_m == 32 else (2, 1)):
            config = HopperConfig(block_m, heads, 0, q_stages, consumers, *widths, *scales)
            stages = (SHARED_BYTES - fixed_bytes(config)) // tile_bytes(config, tied)
            accumulated = heads * v_width * block_m // (128 * config.warpgroups)
            if stages >= 2 and accumulated <= 128:
                # A stage is always the same consumer's.
                stages = min(stages, 8) // consumers * consumers
                config = replace(config, stages=stages)
                if consumers == 2:
                    apart = heads == 1 and config.pieces > 1
                    second, producer = PIECES_REGISTERS if apart else REGISTERS[heads]
                    config = replace(config, consumer_regs=second, producer_regs=producer)
                return device.as_tuned("hopper_decode", config)
    raise ValueError(f"no tiling of {rows} rows of widths {widths} fits the shared memory")


def load_of(page_size: int, caches: Sequence[Tensor]) -> tuple[str, int]:
    """How pages are read, and the elements of which all strides are multiples, 8 or 1.

    "tma", "cp.async", or "load" through registers: of FP8, which is converted there, and of rows
    that are not whole 16 bytes.
    """
    unit, kind = 8, "tma"
    for cache in caches:
        strides = [s for s, n in zip(cache.stride(), cache.shape[:-1], strict=False) if n > 1]
        if cache.data_ptr() % 16 or any(x % 8 for x in (*strides, cache.shape[-1])):
            unit, kind = 1, "load"
        elif cache.element_size() == 1:
            kind = "load"
    fits = page_size % BLOCK_N == 0 or (page_size >= 8 and BLOCK_N % page_size == 0)
    whole = all(cache.numel() and min(cache.stride()[:-1]) > 0 for cache in caches)
    return (kind if kind == "load" or (fits and whole) else "cp.async"), unit


def unsupported(q: Tensor, config: Callable[[], HopperConfig]) -> str | None:
    """Why the Hopper kernels cannot run a decode of ``q``, or ``None``."""
    reason = no_device(q)
    if reason is not None:
        return reason
    if q.dtype not in (torch.bfloat16, torch.float16):
        got = str(q.dtype).removeprefix("torch.")
        return f"queries are bfloat16 or float16, got {got}; use impl='triton'"
    try:
        config()
    except ValueError as error:
        return f"{error}; use impl='triton'"
    return None


def no_device(q: Tensor) -> str | None:
    """Why no Hopper kernel can run where ``q`` is, or ``None``."""
    if not q.is_cuda:
        return f"tensors are on {q.device}, this implementation runs on a Hopper GPU"
    if device.arch(q) != ARCH:
        return f"the GPU has compute capability {device.arch(q) / 10}, expected 9.0 (Hopper)"
    return None if find_spec("triton") else "Triton is not installed; `pip install triton`"
