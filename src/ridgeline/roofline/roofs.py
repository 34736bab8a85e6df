"""The two measured roofs of a decode step: moving memory, and multiplying matrices.

Roofline model: Williams, Waterman, Patterson, CACM 52(4), 2009. Both roofs are measured in the same
run as the kernels, on a CPU with the threads that they use: machines shift between speed states.
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
# On a GPU: a copy whose launch and ramp do not count, a product that fills every multiprocessor.
COPY_BYTES = 2 << 30
GPU_GEMM_SIZE = 8192


@dataclass(frozen=True)
class Roofs:
    """``memory``: bytes a second that all threads read, or that a GPU's copy reads and writes;
    ``gemm``: FLOP a second of torch.
    """

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


def copy(where: torch.device | str, nbytes: int | None = None) -> tuple[Callable[[], Tensor], int]:
    """A copy within a device's memory to time for the memory roof, and the bytes that it moves.

    These are ``nbytes`` read and as many written.
    """
    nbytes = COPY_BYTES if nbytes is None else nbytes
    source = torch.empty(nbytes // 8, dtype=torch.int64, device=where).random_()
    target = torch.empty_like(source)
    return lambda: target.copy_(source), 2 * source.nbytes


def gemm(
    dtype: torch.dtype, size: int | None = None, where: torch.device | str = "cpu"
) -> tuple[Callable[[], Tensor], int]:
    """A square ``torch.matmul`` to time for the compute roof, and its FLOPs.

    On a CPU in ``gemm_dtype``, on a GPU in ``dtype``. Entries are random: a GPU multiplies zeros
    faster, since they take less power.
    """
    on_cpu = torch.device(where).type == "cpu"
    if size is None:
        size = GEMM_SIZE if on_cpu else GPU_GEMM_SIZE
    used = gemm_dtype(dtype) if on_cpu else dtype
    a, b = (torch.randn(size, size, device=where).to(used) for _ in range(2))
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
