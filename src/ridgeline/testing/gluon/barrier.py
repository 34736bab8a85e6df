"""mbarriers: phases, arrival counts and byte counts."""

from typing import Any

from ridgeline.testing.gluon.errors import BarrierError, LayoutError, RaceError
from ridgeline.testing.gluon.memory import synchronise_lanes
from ridgeline.testing.gluon.scheduler import Clock, current, join, machine
from ridgeline.testing.gluon.sites import Site, site
from ridgeline.testing.gluon.tensor import as_constant, unwrap
from ridgeline.testing.gluon.versions import gl
from ridgeline.testing.gluon.view import View

_LARGEST_COUNT = (1 << 20) - 1


class Barrier:
    """``phase`` counts completed phases; a phase ends with no arrival and no byte outstanding."""

    def __init__(self, name: str, count: int) -> None:
        self.name, self.count = name, count
        self.phase, self.pending, self.bytes = 0, count, 0
        me = current()
        self.known: Clock = dict(me.clock)  # to whoever saw the completed phases
        self.known_fenced: Clock = dict(me.fenced)
        self.arriving: Clock = {}  # what arrivals of the current phase bring
        self.arriving_fenced: Clock = {}
        self.copies: list[Site] = []  # copies in flight that will signal it

    def __str__(self) -> str:
        return (
            f"mbarrier {self.name} ({self.phase} phases completed, {self.pending} of {self.count} "
            f"arrivals and {self.bytes} bytes outstanding, {len(self.copies)} copies in flight)"
        )

    def arrive(self, count: int, clock: Clock, fenced: Clock, where: Site) -> None:
        join(self.arriving, clock)
        join(self.arriving_fenced, fenced)
        self.pending -= count
        self._advance(where)

    def complete(self, nbytes: int, where: Site) -> None:
        """Bytes of a copy have landed."""
        self.bytes -= nbytes
        self._advance(where)

    def _advance(self, where: Site) -> None:
        """``where``: the line that caused it, perhaps long ago."""
        if self.pending < 0:
            raise BarrierError(f"more arrivals than its count on {self}, at {where}")
        if self.pending or self.bytes > 0:
            return
        if self.bytes < 0:
            raise BarrierError(f"more bytes than were expected on {self}, at {where}")
        join(self.known, self.arriving)
        join(self.known_fenced, self.arriving_fenced)
        self.phase += 1
        self.known[self] = self.phase  # the copies that signalled this phase
        self.pending, self.arriving, self.arriving_fenced = self.count, {}, {}


def _key(bar: Any) -> tuple:
    if not isinstance(bar, View) or bar.dtype != gl.int64 or bar.shape != [1]:
        raise LayoutError(f"an mbarrier is int64 shared memory of shape [1], got {bar!r}")
    return id(bar.allocation), bar.offset


def barrier_of(bar: Any) -> Barrier:
    barriers, key = current().block.barriers, _key(bar)
    if key not in barriers:
        raise BarrierError(f"mbarrier {_name(bar)} used before init at {site()}")
    return barriers[key]


def _name(bar: View) -> str:
    return f"`{bar.allocation.name}`[{bar.offset // 8}]"


def init(bar: Any, count: Any) -> None:
    machine().switch()
    key, count = _key(bar), as_constant(count, "the count of an mbarrier")
    if key in current().block.barriers:
        raise BarrierError(f"mbarrier {_name(bar)} initialised twice, now at {site()}")
    if not 1 <= count <= _LARGEST_COUNT:
        raise BarrierError(f"mbarrier {_name(bar)} with a count of {count} at {site()}")
    bar.access("mbarrier.init", write=True)
    current().block.barriers[key] = Barrier(_name(bar), count)


def invalidate(bar: Any) -> None:
    machine().switch()
    barrier = barrier_of(bar)
    if barrier.copies:
        machine().report(RaceError, f"invalidate at {site()} of {barrier}")
    bar.access("mbarrier.invalidate", write=True)
    del current().block.barriers[_key(bar)]


def _arrive(bar: Any, count: int) -> None:
    me, barrier = current(), barrier_of(bar)
    bar.access("mbarrier.arrive", write=False)
    synchronise_lanes()
    barrier.arrive(count, me.clock, me.fenced, site())
    me.tick()


def arrive(bar: Any, *, count: Any = 1, pred: Any = True) -> None:
    machine().switch()
    if unwrap(pred):
        _arrive(bar, as_constant(count, "the count of an arrival"))


def expect(bar: Any, bytes: Any, pred: Any = True) -> None:
    """``mbarrier.arrive.expect_tx``: arrives as well."""
    machine().switch()
    if unwrap(pred):
        barrier_of(bar).bytes += as_constant(bytes, "the bytes to expect")
        _arrive(bar, 1)


def wait(bar: Any, phase: Any, pred: Any = True, deps: Any = ()) -> None:
    if not unwrap(pred):
        machine().switch()
        return
    barrier, parity, me = barrier_of(bar), int(unwrap(phase)), current()
    if parity not in (0, 1):
        raise BarrierError(f"mbarrier.wait with phase {parity}, expected 0 or 1, at {site()}")
    bar.access("mbarrier.wait", write=False)
    machine().switch(lambda: (barrier.phase & 1) != parity, lambda: f"phase {parity} of {barrier}")
    join(me.clock, barrier.known)
    join(me.fenced, barrier.known_fenced)


FUNCTIONS = {
    "init": init,
    "invalidate": invalidate,
    "arrive": arrive,
    "expect": expect,
    "wait": wait,
}
