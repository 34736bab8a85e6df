"""Partitions as threads of which one runs at a time, asynchronous events, vector clocks.

At every operation that others could notice, a seeded scheduler picks who goes on: a partition that
can, or a pending event (a copy that lands, a wgmma that reads). Each has a random weight over four
orders of magnitude, so that some seeds have slow producers, late copies, or one block far ahead.
"""

import random
import threading
from collections.abc import Callable, Hashable
from typing import Any

import numpy as np
import torch

from ridgeline.testing.gluon.errors import DeadlockError, GluonError
from ridgeline.testing.gluon.sites import Site, locate, site

Clock = dict[Hashable, float]
_running: list["Machine"] = []


def machine() -> "Machine":
    return _running[-1]


def current() -> "Partition":
    return _running[-1].current


def join(clock: Clock, other: Clock) -> None:
    for agent, epoch in other.items():
        if epoch > clock.get(agent, 0):
            clock[agent] = epoch


def _prepare_thread() -> None:
    np.seterr(all="ignore")
    torch.set_num_threads(1)  # partitions take turns


class _AbortError(BaseException):
    """Unwinds a partition after another one failed."""


class Event:
    """Something asynchronous that may happen from now on."""

    def __init__(self, fire: Callable[[], None], weight: float) -> None:
        self.fire, self.weight = fire, weight


class Once:
    """An asynchronous act: an event that happens at the latest when somebody waited for it."""

    def __init__(self, act: Callable[[], None], site: Site, number: int) -> None:
        self.act, self.site, self.number, self.done = act, site, number, False

    def __call__(self) -> None:
        if not self.done:
            self.done = True
            self.act()


class Partition:
    """The warps that run one function: a block's default partition or a worker."""

    def __init__(
        self,
        owner: "Machine",
        block: Any,
        path: tuple,
        function: Callable[[], Any],
        num_warps: int,
        parent: "Partition | None" = None,
    ) -> None:
        self.block, self.path, self.function, self.num_warps = block, path, function, num_warps
        self.parent = parent
        self.id = len(owner.partitions) + 1
        self.name = f"block {block.index} {path[-1]}"
        self.weight = owner.weight()
        # What this partition knows to have happened, and what of it is fenced for the async proxy.
        self.clock: Clock = dict(parent.clock) if parent else {}
        self.fenced: Clock = dict(parent.fenced) if parent else {}
        self.clock[self.id] = 1
        self.queues: dict[str, Any] = {}  # of wgmma, TMA stores and cp.async: see ``queue``
        self.unrolled: list[int] = []  # indices of the static_range loops around
        self.done, self.blocked_on, self.waits_for, self.site = False, None, None, Site(None, 0)
        self.result: Any = None
        self._gate = threading.Lock()
        self._gate.acquire()
        owner.partitions.append(self)
        owner.live.append(self)
        self.thread = threading.Thread(target=self._main, args=(owner,), daemon=True)
        self.thread.start()

    def queue(self, name: str, make: Callable[[], Any]) -> Any:
        if name not in self.queues:
            self.queues[name] = make()
        return self.queues[name]

    def tick(self) -> None:
        self.clock[self.id] += 1

    def resume(self) -> None:
        self._gate.release()

    def sleep(self) -> None:
        self._gate.acquire()

    def _main(self, owner: "Machine") -> None:
        _prepare_thread()
        self.sleep()
        try:
            if not owner.failure:
                self.result = self.function()
                owner.at_end(self)
        except _AbortError:
            pass
        except BaseException as error:
            if isinstance(error, GluonError):
                locate(error)
            owner.fail(error)
        self.done = True
        owner.live.remove(self)
        owner.dispatch(self)


class Machine:
    """The scheduler of one launch."""

    def __init__(self, seed: int, collect: bool, max_steps: int) -> None:
        self.random = random.Random(seed)
        self.collect, self.max_steps = collect, max_steps
        self.partitions: list[Partition] = []
        self.live: list[Partition] = []  # those not done
        self.events: list[Event] = []
        self.steps, self.failure = 0, None
        self.findings: dict[tuple[type, str], int] = {}
        self.current: Partition = None
        self.at_end: Callable[[Partition], None] = lambda partition: None
        self.sites: set[Site] | None = None  # where partitions could be interrupted, when recorded
        self._finished = threading.Lock()
        self._finished.acquire()
        self._over = False

    def weight(self) -> float:
        return 10.0 ** self.random.uniform(-2, 2)

    def fail(self, error: BaseException) -> None:
        self.failure = self.failure or error

    def report(self, kind: type[GluonError], message: str) -> None:
        """A finding after which the run could go on: raised, or noted where those are collected."""
        if not self.collect:
            raise kind(f"[{self.current.name}] {message}")
        self.findings[kind, message] = self.findings.get((kind, message), 0) + 1

    def later(self, fire: Callable[[], None]) -> None:
        self.events.append(Event(fire, self.weight()))

    def switch(
        self,
        ready: Callable[[], bool] | None = None,
        waits_for: Callable[[], str] | None = None,
    ) -> None:
        """Lets others run; returns when it is this partition's turn and ``ready`` holds."""
        me = self.current
        if self.sites is not None:
            self.sites.add(site())
        if ready is not None:
            me.blocked_on, me.waits_for, me.site = ready, waits_for, site()
        self.dispatch(me)
        me.blocked_on = None
        if self.failure:
            raise _AbortError

    def dispatch(self, me: Partition | None) -> None:
        while not self.failure:
            self.steps += 1
            if self.steps > self.max_steps:
                self.fail(DeadlockError(f"no end after {self.max_steps} steps:\n{self._waiting()}"))
                break
            chosen = self._choose()
            if chosen is None:
                if self.live:
                    self.fail(DeadlockError(f"every partition waits:\n{self._waiting()}"))
                break
            if isinstance(chosen, Event):
                self.events.remove(chosen)
                try:
                    chosen.fire()
                except Exception as error:
                    self.fail(error)
                continue
            self.current = chosen
            if chosen is not me:
                chosen.resume()
                if me and not me.done:
                    me.sleep()
            return
        if not self._over:
            self._over = True
            for partition in list(self.live):  # each leaves the list when it wakes
                if partition is not me:
                    partition.resume()
            self._finished.release()

    def _choose(self) -> Partition | Event | None:
        ready: list[Partition | Event] = [
            p for p in self.live if p.blocked_on is None or p.blocked_on()
        ]
        ready += self.events
        if len(ready) <= 1:
            return ready[0] if ready else None
        left = self.random.random() * sum(c.weight for c in ready)
        for candidate in ready:
            left -= candidate.weight
            if left < 0:
                return candidate
        return ready[-1]

    def _waiting(self) -> str:
        return "\n".join(
            f"  {p.name}: at {p.site} for {p.waits_for() if p.waits_for else 'its turn'}"
            for p in self.live
        )

    def run(self, start: Callable[[], None]) -> None:
        """Runs what ``start`` starts to its end; raises the first failure."""
        _running.append(self)
        before = torch.get_num_threads()
        try:
            start()
            self.dispatch(None)
            self._finished.acquire()
            for partition in self.partitions:
                partition.thread.join()
        finally:
            _running.pop()
            torch.set_num_threads(before)
        if self.failure:
            raise self.failure
