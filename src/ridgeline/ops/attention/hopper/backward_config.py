"""How the Hopper backward is tiled; no Triton needed."""

from dataclasses import dataclass

from ridgeline.ops.attention.hopper.config import SHARED_BYTES
from ridgeline.ops.common import device


@dataclass(frozen=True)
class BackwardConfig:
    """How the kernels of the gradient are tiled: each of two consumer warpgroups and a producer."""

    block_m: int  # query rows of a tile
    block_n: int  # keys of a program
    q_stages: int  # tiles of Q, and of dO, in shared memory
    d_stages: int
    shared: bool  # whether P and dS go to products through shared memory
    dq_block_n: int  # of the kernel of dQ alone, 128 rows a tile: keys of a tile
    dq_stages: int  # and its tiles of keys, and of values, in shared memory: three are in use
    producer_regs: int = 24  # of a thread; consumers have 240

    dq_block_m = 128
    num_warps = 8

    def __post_init__(self) -> None:
        if self.dq_stages < 3:
            raise ValueError(
                f"dq_stages: expected at least 3, got {self.dq_stages}: the kernel of dQ awaits a "
                "tile while two are in products"
            )


def backward_config(dim: int, value_dim: int) -> BackwardConfig:
    """The tiling of a call, from head dims alone. Nothing in it is measured yet.

    128 keys, 64 a warpgroup: dK and dV of width 128 are 128 registers a thread, S and dP of 64 rows
    32 each. Wider dims take 64 keys, and a warpgroup half of the columns of dK and dV: P and dS
    reach it through shared memory.

    A product of 64 rows by N takes N / 2 cycles for 16 columns; its operand B is N / 4 cycles of
    shared memory, its operand A 16, in registers none. With what is copied, cycles of 64 queries by
    64 keys at the roofs of wgmma and of shared memory: width 64 640 and 832, 96 960 and 1,408, 128
    1,280 and 1,472 (64 keys: 2,432), 192 and values of 128 1,664 and 3,456, 256 2,560 and 4,480.
    128 rows at width 64 would take 768, but spill.
    """
    columns, value_columns = sum(device.pieces(dim)), sum(device.pieces(value_dim))
    width = max(columns, value_columns)
    # Of the kernel of dQ: 128 rows of Q and dO beside three tiles of keys and values.
    fits = 2 * (128 + 3 * 64) * (columns + value_columns) <= SHARED_BYTES
    dq_block_n = 64 if columns <= 192 and fits else 32
    if width <= 128:
        return BackwardConfig(64, 128, 2, 2, False, dq_block_n, 3)
    return BackwardConfig(64, 64, 2, 2 if width <= 192 else 1, True, dq_block_n, 3)
