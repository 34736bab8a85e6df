"""The two measured roofs of a decode step: reading memory, and multiplying matrices.

Roofline model: Williams, Waterman, Patterson, CACM 52(4), 2009. Both roofs are measured with the
threads that the kernels use, in the same run as the kernels: machines shift between speed states.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor

from ridgeline.ops.common import core

GEMM_SIZE = 2048
PROBE_SIZE = 256


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
    """A square ``torch.matmul`` in ``gemm_dtype`` to time for the compute roof, and its FLOPs."""
    size = GEMM_SIZE if size is None else size
    a, b = (torch.randn(size, size).to(gemm_dtype(dtype)) for _ in range(2))
    return lambda: a @ b, 2 * size**3


@cache
def gemm_dtype(dtype: torch.dtype) -> torch.dtype:
    """``dtype``, or float32 where torch multiplies that faster.

    Where a CPU has no instruction for bfloat16 or float16, torch multiplies their matrices a
    hundred times slower than float32: no roof to hold a kernel against.
    """
    times = {}
    for x in (dtype, torch.float32):
        a = torch.ones(PROBE_SIZE, PROBE_SIZE, dtype=x)
        times[x] = min(_seconds(lambda a=a: a @ a) for _ in range(3))
    return min(times, key=times.__getitem__)


def _seconds(call: Callable[[], object]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start
