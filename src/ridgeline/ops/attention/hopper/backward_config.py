"""How the Hopper backward is tiled; no Triton needed."""

from dataclasses import dataclass

from ridgeline.ops.common import device


@dataclass(frozen=True)
class BackwardConfig:
    """How the kernel of dK, dV and dQ is tiled."""

    block_m: int  # query rows of a tile
    block_n: int  # keys of a program
    q_stages: int  # tiles of Q, and of dO, in shared memory
    d_stages: int
    dq_buffers: int  # tiles of columns of dQ in shared memory
    shared: bool  # whether P and dS go to products through shared memory
    producer_regs: int = 24  # of a thread; the two consumer warpgroups have 240

    num_warps = 8


def backward_config(dim: int, value_dim: int) -> BackwardConfig:
    """The tiling of a call, from head dims alone. Nothing in it is measured yet."""
    width = max(sum(device.pieces(dim)), sum(device.pieces(value_dim)))
    if width <= 64:
        return BackwardConfig(128, 128, 2, 2, 1, shared=False)
    if width <= 128:
        return BackwardConfig(64, 128, 2, 2, 1, shared=False)
    if width <= 192:
        return BackwardConfig(64, 64, 2, 2, 1, shared=True)
    return BackwardConfig(64, 64, 2, 1, 1, shared=True)
