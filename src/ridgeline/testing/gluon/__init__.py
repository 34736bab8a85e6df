"""An interpreter for Gluon kernels: Hopper's asynchrony on the CPU, adversarial and checked."""

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
    "reduce_add",
    "register",
    "run",
]
