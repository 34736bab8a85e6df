"""How the Hopper backward is tiled; no Triton needed."""

from dataclasses import dataclass

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
    dq_stages: int  # and its tiles of keys, and of values, in shared memory
    producer_regs: int = 24  # of a thread; consumers have 240

    dq_block_m = 128
    num_warps = 8


def backward_config(dim: int, value_dim: int) -> BackwardConfig:
    """The tiling of a call, from head dims alone. Nothing in it is measured yet.

    128 keys, 64 a warpgroup: dK and dV of width 128 are 128 registers a thread, S and dP of 64 rows
    32 each. 128 rows would fit width 64 but for 208 bytes that a thread spills. Wider dims take 64
    keys, and a warpgroup half of the columns of dK and dV: P and dS reach it through shared memory.
    """
    width = max(sum(device.pieces(dim)), sum(device.pieces(value_dim)))
    if width <= 128:
        return BackwardConfig(64, 128, 2, 2, False, 64, 3)
    if width <= 192:
        return BackwardConfig(64, 64, 2, 2, True, 64, 3)
    return BackwardConfig(64, 64, 2, 1, True, 32, 3)
