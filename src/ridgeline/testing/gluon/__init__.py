"""An interpreter for Gluon kernels: Hopper's asynchrony on the CPU, adversarial and checked."""

from ridgeline.ops.common.gluon import async_reduce_add, pack_e4m3, warpgroup_mma_wait
from ridgeline.testing.gluon import asm, wgmma
from ridgeline.testing.gluon.errors import (
    BarrierError,
    DeadlockError,
    GluonError,
    InFlightError,
    LayoutError,
    MissingFenceError,
    OutOfBoundsError,
    RaceError,
    UnsupportedError,
    UnwrittenReadError,
)
from ridgeline.testing.gluon.launch import Report, interpreted, run
from ridgeline.testing.gluon.namespace import register
from ridgeline.testing.gluon.tma import reduce_add

register(async_reduce_add, reduce_add)
register(pack_e4m3, asm.pack_e4m3)
register(warpgroup_mma_wait, wgmma.warpgroup_mma_wait)

__all__ = [
    "BarrierError",
    "DeadlockError",
    "GluonError",
    "InFlightError",
    "LayoutError",
    "MissingFenceError",
    "OutOfBoundsError",
    "RaceError",
    "Report",
    "UnsupportedError",
    "UnwrittenReadError",
    "interpreted",
    "register",
    "run",
]
