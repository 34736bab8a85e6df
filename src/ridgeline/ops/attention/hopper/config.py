"""What the Hopper kernels of ``attention`` support and how they are tiled; no Triton needed."""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ridgeline.ops.attention.fp8 import block_rows
from ridgeline.ops.common import check, device, hopper_config

MAX_DIM = 256
ROWS = 64  # query rows of a consumer: the M of a wgmma
SHARED_BYTES = 226 << 10  # of a program, less barriers
FP8_ROWS = 64  # keys of a tile at least: all of one scale
FP8_COLUMNS = 32  # the K of a wgmma
FP8_PART = 64  # columns of an output that are added up at a time
L2_BYTES = 32 << 20  # of keys and values that programs read at a time, of 50 MiB


@dataclass(frozen=True)
class ForwardConfig:
    """How the forward kernel is tiled."""

    consumers: int  # warpgroups, each with 64 query rows
    block_n: int  # keys of a tile
    stages: int  # tiles of keys, and of values, in shared memory
    pack: int  # heads of a kv head's group whose rows share a tile
    ping_pong: bool  # whether consumers issue their products in turns
    consumer_regs: int = 240  # of a thread; two consumers and the producer have 504
    producer_regs: int = 24

    @property
    def block_m(self) -> int:
        return self.consumers * ROWS


def unsupported(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    k_scale: Tensor | None = None,
    v_scale: Tensor | None = None,
) -> str | None:
    """Why the Hopper kernels cannot run the call, or ``None``."""
    for name, x in (("q", q), ("v", v)):
        if x.shape[-1] > MAX_DIM:
            return f"head dims are 1 to {MAX_DIM}, got {x.shape[-1]} for {name}"
    if q.dtype == check.FP8:
        return _unsupported_fp8(q, k, k_scale, v_scale) or hopper_config.no_device(q)
    if q.dtype not in (torch.bfloat16, torch.float16):
        got = str(q.dtype).removeprefix("torch.")
        other = "triton" if q.dtype == torch.float32 else "reference"
        return f"inputs are bfloat16 or float16, got {got}; use impl={other!r}"
    return hopper_config.no_device(q)


def _unsupported_fp8(
    q: Tensor, k: Tensor, k_scale: Tensor | None, v_scale: Tensor | None
) -> str | None:
    if q.shape[-1] % FP8_COLUMNS:
        return f"FP8 head dims are multiples of {FP8_COLUMNS}, got {q.shape[-1]} for q"
    rows = scaled_rows(k, k_scale, v_scale)
    if rows < FP8_ROWS:
        return f"FP8 scales are for {FP8_ROWS} keys or values and more, got one for {rows}"
    return None


def scaled_rows(k: Tensor, *scales: Tensor | None) -> int:
    """The fewest rows of ``k``, or of its values, that are sure to have one scale."""
    counts = [s.shape[1] for s in scales if s is not None and s.dim() == 3 and s.shape[1] > 1]
    return min((block_rows(k.shape[1], n) for n in counts), default=128)


def fp8_config(
    chosen: ForwardConfig, dim: int, value_dim: int, rows: int, tree: bool
) -> ForwardConfig:
    """``chosen`` for FP8: tiles of keys that share a scale, as many stages as fit.

    An output of width 128 and 64 columns of products are 96 registers a thread beside scores of 64
    x 128, one of width 256 160 beside 64 x 64; neither spills in loops. With the numbers of a tree,
    128 keys at width 128 did, 12 to 42 loads and stores a tile.

    Args:
        chosen: as for BF16.
        dim, value_dim: of a query row and of a value.
        rows: that are sure to share a scale.
        tree: whether there is a ``subtree_end``.
    """
    columns, value_columns = sum(device.pieces(dim)), sum(device.pieces(value_dim))
    block_n = 128 if value_columns <= (64 if tree else 128) and rows >= 128 else 64
    stages = (SHARED_BYTES - chosen.block_m * columns) // (block_n * (columns + value_columns))
    return replace(chosen, block_n=block_n, stages=min(4, stages))


def forward_config(dim: int, value_dim: int, rows: int, group: int) -> ForwardConfig:
    """The tiling of a call, from its shapes alone. Nothing in it is measured yet.

    Scores of 64 x 128 and an output of 64 x 128 are 64 registers a thread each, and probabilities
    32; an output of 64 x 256 is 128, beside which 64 keys fit. Three consumers have 160 registers
    each: at width 64, 168 bytes a thread were spilled. Tiles of keys that are no power of two, as
    176 = 128 + 32 + 16, would be products of their own: each reads its 64 rows of Q again, so that
    below 64 keys wgmma waits for shared memory, 108 cycles for 16 columns of 176 keys (one product
    would take 88) against 64 for 128 keys: no gain.

    Args:
        dim, value_dim: of a query row and of a value.
        rows: queries of a sequence, or their mean.
        group: query heads of a kv head.
    """
    columns, value_columns = sum(device.pieces(dim)), sum(device.pieces(value_dim))
    block_n = 128 if value_columns <= 128 and columns <= 192 else 64
    pack = packed_heads(rows, group, 2 * ROWS)
    consumers = 1 if rows * pack <= ROWS else 2
    queries = 2 * consumers * ROWS * columns
    stages = (SHARED_BYTES - queries) // (2 * block_n * (columns + value_columns))
    return ForwardConfig(consumers, block_n, min(4, stages), pack, max(dim, value_dim) <= 128)


def packed_heads(rows: int, group: int, block_m: int) -> int:
    """All heads of a group in one tile where that leaves fewer than 0.9 of the tiles, else 1."""
    if group == 1 or group & (group - 1) or group > ROWS:
        return 1
    return group if -(-rows * group // block_m) < 0.9 * group * -(-rows // block_m) else 1
