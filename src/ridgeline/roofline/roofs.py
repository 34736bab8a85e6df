"""The two measured roofs of a decode step: reading memory, and multiplying matrices.

Roofline model: Williams, Waterman, Patterson, CACM 52(4), 2009. Both roofs are measured with the
threads that the kernels use, in the same run as the kernels: machines shift between speed states.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from ridgeline.ops.common import core

GEMM_SIZE = 2048


@dataclass(frozen=True)
class Roofs:
    """``memory``: bytes a second that all threads read; ``gemm``: FLOP a second of torch."""

    memory: float
    gemm: float

    def seconds(self, nbytes: float, flops: float) -> float:
        """The least time that reading ``nbytes`` and computing ``flops`` at once can take."""
        return max(nbytes / self.memory, flops / self.gemm)

    def binding(self, nbytes: float, flops: float) -> str:
        """``"memory"`` or ``"gemm"``: the roof that sets ``seconds``."""
        return "memory" if nbytes / self.memory >= flops / self.gemm else "gemm"

    def percent(self, nbytes: float, flops: float, seconds: float) -> float:
        """What share of the binding roof a call of ``seconds`` reached."""
        return 100 * self.seconds(nbytes, flops) / seconds


def read(x: Tensor) -> None:
    """Reads every byte of contiguous ``x`` once with all threads; time it for the memory roof.

    Without the compiled core torch's sum of 64-bit integers stands in: it too is bound by memory.
    """
    if core.missing() is None:
        core.load().read_all(x.data_ptr(), x.nbytes, core.num_threads())
    else:
        flat = x.view(torch.uint8).flatten()
        flat[: flat.numel() // 8 * 8].view(torch.int64).sum()


def gemm(dtype: torch.dtype, size: int | None = None) -> tuple[Callable[[], Tensor], int]:
    """A square ``torch.matmul`` to time for the compute roof, and its FLOPs.

    float16 is held against float32: torch multiplies float16 matrices on a CPU a hundred times
    slower than that where the CPU has no instruction for it.
    """
    dtype = torch.float32 if dtype == torch.float16 else dtype
    size = GEMM_SIZE if size is None else size
    a, b = (torch.randn(size, size).to(dtype) for _ in range(2))
    return lambda: a @ b, 2 * size**3
