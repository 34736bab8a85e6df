"""What the interpreter reports. Every message names lines of the kernel."""


class GluonError(Exception):
    """Base of all reports, and a wrong use of the language."""


class DeadlockError(GluonError):
    """Nobody can go on; the message has each partition's line and what it waits for."""


class RaceError(GluonError):
    """Two accesses of one address, one of them a write, in no order."""


class MissingFenceError(RaceError):
    """An asynchronous access after a generic write without ``fence_async_shared`` in between."""


class UnwrittenReadError(GluonError):
    """Shared memory is read that nobody wrote."""


class BarrierError(GluonError):
    """An mbarrier used before its init, or with the wrong count of arrivals or bytes."""


class InFlightError(GluonError):
    """An asynchronous result is used, or abandoned, before the wait for it."""


class OutOfBoundsError(GluonError):
    """An address outside its tensor, or a box outside its descriptor where that was forbidden."""


class LayoutError(GluonError):
    """Shapes, types or layouts that the compiler would refuse."""


class UnsupportedError(GluonError):
    """A part of Gluon, or inline PTX, that the interpreter does not know."""
