"""A server as discrete events: clients, ranks that queue and batch, steps of the cost model.

Data-parallel ranks step together, since they meet in the MLPs, so a step lasts as long as the
fullest rank's. Decode steps between two events are taken in blocks whose time is that of their
middle, at most ``STRIDE`` steps.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from importlib.util import find_spec
from typing import TYPE_CHECKING

import numpy as np

from ridgeline.roofline.cost import Engine, Work
from ridgeline.roofline.schedule import Policy, Rank, Request
from ridgeline.roofline.workload import Workload

if TYPE_CHECKING:
    import simpy

STRIDE = 256


@dataclass(frozen=True)
class Served:
    """What a simulated run gave. Times in seconds; a latency is an array over requests, ``itl``
    over tokens after the first, as gaps and how many tokens saw each.
    """

    e2e: np.ndarray
    ttft: np.ndarray
    gaps: np.ndarray
    gap_counts: np.ndarray
    seconds: float
    output_tokens: int
    preemptions: int
    peak_tokens: int
    mean_waiting: float
    requests: tuple[Request, ...] = field(repr=False)

    @property
    def throughput(self) -> float:
        """Output tokens a second."""
        return self.output_tokens / self.seconds

    def itl(self, percent: float) -> float:
        """A percentile of the time between two tokens; 0 where no request had two."""
        if not len(self.gaps):
            return 0.0
        order = np.argsort(self.gaps)
        counts = self.gap_counts[order].cumsum()
        return float(self.gaps[order][np.searchsorted(counts, percent / 100 * counts[-1])])

    @property
    def mean_itl(self) -> float:
        return float(np.average(self.gaps, weights=self.gap_counts)) if len(self.gaps) else 0.0


def require_simpy() -> None:
    """Raises ``ValueError``, saying what to install, where there is no simpy."""
    if find_spec("simpy") is None:
        raise ValueError("simpy is not installed here: pip install 'ridgeline[plan]'")


def simulate(engine: Engine, workload: Workload, policy: Policy, *, seed: int = 0) -> Served:
    """Serve every request of ``workload``; ``seed``: of arrivals and accepted drafts.

    Raises:
        ValueError: a request is longer than a rank's cache.
    """
    run = _Run(engine, workload, policy, seed)
    return run.serve()


class _Run:
    def __init__(self, engine: Engine, workload: Workload, policy: Policy, seed: int) -> None:
        self.engine, self.workload, self.policy = engine, workload, policy
        self.ranks = [Rank(policy, engine.cache_tokens) for _ in range(engine.parallel.dp)]
        for prompt, output in zip(workload.prompts, workload.outputs, strict=True):
            self.ranks[0].check_fits(prompt, output)
        import simpy  # of the extra `plan`; other plans do without it

        self.env = simpy.Environment()
        self.generator = np.random.default_rng(seed)
        self.requests: list[Request] = []
        self.done: dict[int, simpy.Event] = {}
        self.arrived = self.env.event()
        self.gaps: dict[float, int] = {}
        self.peak_tokens = 0
        self.waited = 0.0  # request seconds in queues

    def serve(self) -> Served:
        if self.workload.concurrency is None:
            self.env.process(self._arrivals())
        else:
            sizes = iter(zip(self.workload.prompts, self.workload.outputs, strict=True))
            for _ in range(self.workload.concurrency):
                self.env.process(self._client(sizes))
        self.env.run(self.env.process(self._serve()))
        found = self.requests
        return Served(
            e2e=np.array([r.finish - r.arrival for r in found]),
            ttft=np.array([r.first_token - r.arrival for r in found]),
            gaps=np.array(list(self.gaps)),
            gap_counts=np.array(list(self.gaps.values())),
            seconds=max(r.finish for r in found) - found[0].arrival,
            output_tokens=sum(r.generated for r in found),
            preemptions=sum(rank.preemptions for rank in self.ranks),
            peak_tokens=self.peak_tokens,
            mean_waiting=self.waited / self.env.now,
            requests=tuple(found),
        )

    def _client(self, sizes: Iterator[tuple[int, int]]) -> Iterator["simpy.Event"]:
        for prompt, output in sizes:
            yield self._submit(prompt, output)

    def _arrivals(self) -> Iterator["simpy.Event"]:
        for prompt, output in zip(self.workload.prompts, self.workload.outputs, strict=True):
            yield self.env.timeout(self.generator.exponential(1 / self.workload.rate))
            self._submit(prompt, output)

    def _submit(self, prompt: int, output: int) -> "simpy.Event":
        """A new request, to the ranks in turn; the event is its end."""
        r = Request(len(self.requests), self.env.now, prompt, output)
        self.requests.append(r)
        self.ranks[r.index % len(self.ranks)].queue.append(r)
        self.done[r.index] = self.env.event()
        if not self.arrived.triggered:
            self.arrived.succeed()
        return self.done[r.index]

    def _serve(self) -> Iterator["simpy.Event"]:
        total = len(self.workload.prompts)
        while True:
            yield self.env.timeout(0)  # what ended now may be followed by new requests
            self.arrived = self.env.event()
            for rank in self.ranks:
                rank.admit()
            if not any(rank.running for rank in self.ranks):
                if len(self.requests) == total and not any(rank.queue for rank in self.ranks):
                    return
                yield self.arrived
                continue
            yield from self._step()

    def _step(self) -> Iterator["simpy.Event"]:
        """One step with chunks of prompts, or a block of decode steps."""
        chunks, works, decoding = [], [], []
        for rank in self.ranks:
            parts, work = rank.next_chunk(max(1, self.policy.chunk // len(self.ranks)))
            rank_decodes = self.policy.mixed or not parts
            chunks.append(parts)
            works.append(work)
            decoding.append(rank_decodes)
        has_prompts = any(chunks)
        steps = 1 if has_prompts else self._horizon()
        for rank, decodes in zip(self.ranks, decoding, strict=True):
            if decodes:
                steps = min(steps, rank.make_room(steps))
        batches = [
            rank.decoding if decodes else []
            for rank, decodes in zip(self.ranks, decoding, strict=True)
        ]
        # A preempted request has no prompt's part in this step any more.
        chunks = [
            [(r, n) for r, n in parts if r in rank.running]
            for rank, parts in zip(self.ranks, chunks, strict=True)
        ]
        cost = self._cost(works, batches, steps)
        start = self.env.now
        if steps == 1:
            yield self.env.timeout(cost)
        else:
            yield self.env.timeout(steps * cost) | self.arrived
            taken = (self.env.now - start) / cost
            steps = min(steps, max(1, int(np.ceil(taken - 1e-9))))
            if (rest := start + steps * cost - self.env.now) > 0:
                yield self.env.timeout(rest)
        self._count_waiting(start)
        for batch in batches:
            self._advance(batch, steps, start, cost)
        for parts in chunks:
            for r, n in parts:
                self._computed(r, n)
        self._watch_capacity()
        self._finish()

    def _horizon(self) -> int:
        """Steps until the first request may end."""
        left = min(r.remaining for rank in self.ranks for r in rank.decoding)
        return max(1, min(STRIDE, left // self.policy.query_len))

    def _cost(self, works: list[Work], batches: list[list[Request]], steps: int) -> float:
        """Seconds of one step: of the block's middle."""
        ahead = (steps - 1) / 2 * self.policy.tokens_per_step
        query_len = self.policy.query_len
        full = [
            Work(
                sequences=len(batch),
                cached=sum(r.computed + query_len for r in batch) + ahead * len(batch),
                query_len=query_len,
                prefill=work.prefill,
                new_pairs=work.new_pairs,
                old_pairs=work.old_pairs,
            )
            for work, batch in zip(works, batches, strict=True)
        ]
        return self.engine.step(full).total

    def _advance(self, batch: list[Request], steps: int, start: float, cost: float) -> None:
        """``steps`` decode steps of ``batch``."""
        for r in batch:
            tokens = min(self._accepted(steps), r.remaining)
            first = start + cost - r.last_token
            rest = steps * cost - cost
            self._gap(first, 1)
            if tokens > 1:
                self._gap(rest / (tokens - 1) if rest else 0.0, tokens - 1)
            r.generated += tokens
            r.computed += tokens
            r.last_token = start + steps * cost

    def _accepted(self, steps: int) -> int:
        """Tokens of one sequence in ``steps`` steps."""
        if not self.policy.draft:
            return steps
        hits = self.generator.random((steps, self.policy.draft)) < self.policy.acceptance
        return steps + int(np.cumprod(hits, axis=1).sum())

    def _computed(self, r: Request, n: int) -> None:
        """``n`` more tokens of a prompt; its last gives the request's next token."""
        r.computed += n
        if r.decodes:
            if r.first_token is None:
                r.first_token = self.env.now
            else:
                self._gap(self.env.now - r.last_token, 1)
            r.generated += 1
            r.last_token = self.env.now

    def _gap(self, seconds: float, tokens: int) -> None:
        seconds = round(seconds, 7)
        self.gaps[seconds] = self.gaps.get(seconds, 0) + tokens

    def _count_waiting(self, start: float) -> None:
        waiting = sum(len(rank.queue) for rank in self.ranks)
        self.waited += waiting * (self.env.now - start)

    def _watch_capacity(self) -> None:
        for rank in self.ranks:
            self.peak_tokens = max(self.peak_tokens, sum(r.computed for r in rank.running))

    def _finish(self) -> None:
        for rank in self.ranks:
            ended = [r for r in rank.running if r.decodes and r.remaining <= 0]
            for r in ended:
                rank.running.remove(r)
                r.finish = self.env.now
                self.done.pop(r.index).succeed()
