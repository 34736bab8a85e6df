"""``cp.async``: copies by the threads of a partition, in groups or signalling an mbarrier.

They write through the generic proxy: wgmma needs a ``fence_async_shared`` after them, as after a
store.
"""

from collections import deque
from typing import Any

from ridgeline.testing.gluon import dtypes
from ridgeline.testing.gluon.allocation import Access
from ridgeline.testing.gluon.barrier import barrier_of
from ridgeline.testing.gluon.errors import BarrierError, LayoutError
from ridgeline.testing.gluon.memory import Points, gather, lanes, resolve
from ridgeline.testing.gluon.scheduler import Once, current, machine
from ridgeline.testing.gluon.sites import site
from ridgeline.testing.gluon.tensor import as_constant, as_tensor, layout_of, unwrap
from ridgeline.testing.gluon.view import View

_THREADS_PER_WARP = 32


class Copies:
    """A partition's copies: those not committed, and committed groups not waited for."""

    def __init__(self, agent: tuple) -> None:
        self.agent, self.issued = agent, 0
        self.signalling = 0  # the last copy that an mbarrier arrival waits for
        self.open: list[Once] = []
        self.groups: deque[list[Once]] = deque()

    def outstanding(self) -> list[Once]:
        return [copy for group in self.groups for copy in group] + self.open


def copies_of(partition: Any) -> Copies:
    return partition.queue("cp.async", lambda: Copies(("cp.async", partition.id)))


def copy(smem: Any, pointer: Any, mask: Any = None, **_: Any) -> None:
    """``async_copy_global_to_shared``: zeros where ``mask`` is false."""
    owner, me = machine(), current()
    owner.switch()
    mask = unwrap(mask)
    if not isinstance(smem, View) or smem.shape != pointer.shape:
        raise LayoutError(f"cp.async of pointers {pointer.shape} into shared memory {smem.shape}")
    if smem.dtype != pointer.buffer.dtype:
        raise LayoutError(f"cp.async of {pointer.buffer.dtype} into {smem.dtype}")
    if mask is not None:
        layout_of(pointer, as_tensor(mask), "cp.async")
    copies, buffer = copies_of(me), pointer.buffer
    copies.issued += 1
    access: Access = smem.access("cp.async", write=True, agent=copies.agent, epoch=copies.issued)
    smem.poison()
    off, wanted = resolve(pointer, mask, "cp.async")
    if wanted.any():
        buffer.memory.read(Points(buffer, off[wanted]), "cp.async", lanes(me))

    def land() -> None:
        values = gather(buffer, off, wanted, 0)
        smem.write_generic(dtypes.encode(values, smem.dtype), access)

    copies.open.append(Once(land, site(), copies.issued))
    owner.later(copies.open[-1])


def commit_group() -> None:
    machine().switch()
    copies = copies_of(current())
    copies.groups.append(copies.open)
    copies.open = []


def wait_group(num_outstanding: Any = 0) -> None:
    machine().switch()
    me = current()
    copies, left = copies_of(me), as_constant(num_outstanding, "the number of pending groups")
    while len(copies.groups) > left:
        for landed in copies.groups.popleft():
            landed()
            me.clock[copies.agent] = landed.number


def mbarrier_arrive(barrier: Any, increment_count: Any = True) -> None:
    """Every thread arrives once its copies so far have landed.

    With ``increment_count`` the barrier's pending count grows by as much at once, so that its own
    count is met by other arrivals.
    """
    owner, me = machine(), current()
    owner.switch()
    signal, copies = barrier_of(barrier), copies_of(me)
    barrier.access("cp.async mbarrier_arrive", write=False)
    threads = _THREADS_PER_WARP * me.num_warps
    if unwrap(increment_count):
        signal.pending += threads
    elif threads > signal.count:
        raise BarrierError(f"{threads} threads arrive on {signal}, at {site()}")
    outstanding, where = copies.outstanding(), site()
    copies.signalling = copies.issued
    signal.copies.append(where)
    clock, fenced = dict(me.clock), dict(me.fenced)
    clock[copies.agent] = copies.issued
    me.tick()

    def arrive() -> None:
        for landed in outstanding:
            landed()
        signal.copies.remove(where)
        signal.arrive(threads, clock, fenced, where)

    owner.later(arrive)


def abandoned(partition: Any) -> list[Once]:
    """Copies that neither a wait nor an mbarrier covers when the partition ends."""
    copies = copies_of(partition)
    return [c for c in copies.outstanding() if c.number > copies.signalling]


FUNCTIONS = {
    "async_copy_global_to_shared": copy,
    "commit_group": commit_group,
    "wait_group": wait_group,
    "mbarrier_arrive": mbarrier_arrive,
}
