"""What the Triton kernels of ``attention`` support and how they are tiled; no Triton needed."""

from dataclasses import dataclass, replace
from typing import Literal

from torch import Tensor

from ridgeline.ops.common import device

MAX_DIM = 256
Pass = Literal["forward", "dkdv", "dq"]


@dataclass(frozen=True)
class AttentionConfig:
    """The tiling of one kernel."""

    block_m: int  # query rows of a tile: pairs of a query and a head of the kv head's group
    block_n: int  # keys of a tile
    num_warps: int
    num_stages: int

    def constants(self) -> dict[str, int]:
        """What a kernel is compiled for."""
        return {
            "BLOCK_M": self.block_m,
            "BLOCK_N": self.block_n,
            "num_warps": self.num_warps,
            "num_stages": self.num_stages,
        }


def unsupported(q: Tensor, k: Tensor, v: Tensor, interpret: bool) -> str | None:
    """Why the Triton kernels cannot run the call, or ``None``.

    ``interpret``: whether tensors on the CPU may go to Triton's interpreter where it is active.
    """
    for name, x in (("q", q), ("v", v)):
        if x.shape[-1] > MAX_DIM:
            return f"head dims are 1 to {MAX_DIM}, got {x.shape[-1]} for {name}"
    return device.unsupported(q, k, (MAX_DIM,), interpret)


def config_for(q: Tensor, k: Tensor, v: Tensor, kernel: Pass) -> AttentionConfig:
    """The tiling of a call, from shapes and device alone."""
    config = INTERPRETED
    if not device.interpreting():
        dtype = str(q.dtype).removeprefix("torch.")
        config = tiling(device.arch(q), q.shape[-1], v.shape[-1], dtype, kernel)
        config = fit_rows(config, q.shape[-3] * (q.shape[-2] // k.shape[-2]), kernel)
    return device.as_tuned(kernel, config)


def fit_rows(config: AttentionConfig, rows: int, kernel: Pass) -> AttentionConfig:
    """A tile no taller than the ``rows`` there can be, and then no warp without 16 rows."""
    block_m = max(16, device.next_power_of_2(rows))
    if block_m >= config.block_m:
        return config
    if kernel == "dkdv":  # warps share out the keys
        return replace(config, block_m=block_m)
    return replace(config, block_m=block_m, num_warps=min(config.num_warps, max(4, block_m // 16)))


def tiling(arch: int, dim: int, value_dim: int, dtype: str, kernel: Pass) -> AttentionConfig:
    """The tiling of a kernel.

    Nothing here is measured yet: the sizes are predictions from registers (an accumulator of 64
    KiB is 64 registers a thread in eight warps), shared memory (160 KiB on compute capability 8.0,
    96 on 8.6 and 8.9, 224 from 9.0) and what compilers report as spilled.

    Args:
        arch: compute capability, 90 for 9.0.
        dim, value_dim: head dims of the queries and the values.
        dtype: "bfloat16", "float16" or "float32".
        kernel: "forward", "dkdv" or "dq".
    """
    width = max(sum(device.pieces(dim)), sum(device.pieces(value_dim)))
    if dtype == "float32":
        # Without tensor cores: operands of the products live in registers, so tiles stay small.
        block_m = 16 if kernel != "dkdv" and width > 64 else 32
        return AttentionConfig(block_m, 32 if width <= 64 else 16, 8, 1)
    roomy = arch in (80, 90) or 100 <= arch < 120  # data-centre parts
    large = 90 <= arch < 120  # and with asynchronous tensor cores
    match kernel:
        case "forward" if width <= 64:
            # Scores of 128 x 128 are 64 registers a thread in eight warps; a third stage spills.
            return AttentionConfig(128, 128 if arch == 90 else 64, 8, 2 if arch == 90 else 3)
        case "forward" if width <= 128:
            # From tensor memory, accumulators pass through registers: fewer keys there.
            return AttentionConfig(128, 128 if arch == 90 else 64, 8, 2)
        case "forward":
            # 64 registers a thread of accumulators; Q takes 32 KiB, a stage of 64 keys 64.
            return AttentionConfig(64, 64 if large else 32, 8, 2)
        case "dkdv" if width <= 64:
            return AttentionConfig(64 if large else 32, 128 if large else 64, 8, 2)
        case "dkdv" if width <= 128:
            # dK and dV of 128 keys are 128 KiB of registers, half of all there are.
            return AttentionConfig(64 if roomy else 32, 128 if large else 64, 8, 2)
        case "dkdv":
            # 64 keys would be half of the registers, and spill as many again.
            return AttentionConfig(32, 32, 8, 1)
        case "dq" if width <= 64:
            return AttentionConfig(128, 64, 8, 2)
        case "dq" if width <= 128:
            return AttentionConfig(128 if large else 64, 64 if roomy else 32, 8, 2)
        case "dq":
            return AttentionConfig(32, 32, 8, 1)
    raise ValueError(f"kernel: expected forward, dkdv or dq, got {kernel!r}")


# In the interpreter: small, so that the sequences of tests have several tiles.
INTERPRETED = AttentionConfig(block_m=32, block_n=32, num_warps=4, num_stages=1)
