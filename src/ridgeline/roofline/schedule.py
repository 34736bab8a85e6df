"""One data-parallel rank's requests: queue, admission, chunks of prompts, growth, preemption."""

from collections import deque
from dataclasses import dataclass, field

from ridgeline.ops.common import check
from ridgeline.roofline.cost import Work


@dataclass(frozen=True)
class Policy:
    """How the engine schedules.

    Args:
        chunk: prompt tokens of a step, shared out evenly over data-parallel ranks.
        mixed: sequences decode in a step that also has a chunk, as in vLLM; otherwise a rank with
            prompt tokens to compute does nothing else, as in SGLang.
        page_size: tokens of a page of the cache.
        reserve: share of a request's outstanding output that is kept free for it. 1 never
            preempts; 0 admits every prompt that fits.
        max_sequences: running at once on one rank.
        draft: tokens drafted for each sequence and step; ``acceptance``: chance that one is
            accepted given that those before it were. The draft model's time is not counted.
    """

    chunk: int = 8192
    mixed: bool = False
    page_size: int = 64
    reserve: float = 1.0
    max_sequences: int = 1024
    draft: int = 0
    acceptance: float = 0.0

    def __post_init__(self) -> None:
        for name in ("chunk", "page_size", "max_sequences"):
            check.count(name, getattr(self, name), minimum=1)
        check.flag("mixed", self.mixed)
        check.count("draft", self.draft)
        for name in ("reserve", "acceptance"):
            if check.finite(name, getattr(self, name), minimum=0.0) > 1:
                raise ValueError(f"{name}: expected at most 1, got {getattr(self, name)}")
        if self.acceptance and not self.draft:
            raise ValueError("acceptance: expected together with draft")

    @property
    def query_len(self) -> int:
        return 1 + self.draft

    @property
    def tokens_per_step(self) -> float:
        """Expected, of one sequence: the accepted drafts and one token more (Leviathan, Kalman,
        Matias, arXiv 2211.17192, equation 1).
        """
        return float(sum(self.acceptance**i for i in range(self.query_len)))


@dataclass(eq=False)
class Request:
    """One request and what has become of it; times in seconds."""

    index: int
    arrival: float
    prompt: int
    output: int
    computed: int = 0  # tokens in the cache
    generated: int = 0
    target: int = 0  # tokens to compute before it decodes: the prompt, and after a preemption more
    first_token: float | None = None
    last_token: float = 0.0
    finish: float | None = None

    def __post_init__(self) -> None:
        self.target = self.prompt

    @property
    def decodes(self) -> bool:
        return self.computed >= self.target

    @property
    def remaining(self) -> int:
        return self.output - self.generated


@dataclass
class Rank:
    """The scheduler of one data-parallel rank, whose cache holds ``capacity`` tokens."""

    policy: Policy
    capacity: int
    queue: deque[Request] = field(default_factory=deque)
    running: list[Request] = field(default_factory=list)
    preemptions: int = 0
    used: int = 0  # pages

    @property
    def pages(self) -> int:
        return self.capacity // self.policy.page_size

    def check_fits(self, prompt: int, output: int) -> None:
        """Raises ``ValueError`` for a request that could never run."""
        if self._pages_for(prompt + output) > self.pages:
            raise ValueError(
                f"workload: expected requests of at most {self.pages * self.policy.page_size} "
                f"tokens, what a rank's cache holds, got {prompt} + {output}; more tensor-parallel "
                "ranks or a smaller cache a token hold more"
            )

    def admit(self) -> None:
        """Start waiting requests, in order, while the first of them fits."""
        free = self.pages - sum(self._reserved(r) for r in self.running)
        while self.queue and len(self.running) < self.policy.max_sequences:
            need = self._reserved(self.queue[0])
            if need > free:
                return
            free -= need
            self.running.append(self.queue.popleft())

    def next_chunk(self, budget: int) -> tuple[list[tuple[Request, int]], Work]:
        """Prompt tokens of one step, first come first served, at most ``budget``."""
        parts: list[tuple[Request, int]] = []
        new_pairs = old_pairs = 0.0
        for r in self.running:
            if r.decodes or budget == 0:
                continue
            n = min(budget, r.target - r.computed)
            pairs = n * r.computed + n * (n + 1) / 2
            if r.computed:
                old_pairs += pairs
            else:
                new_pairs += pairs
            parts.append((r, n))
            budget -= n
        work = Work(prefill=sum(n for _, n in parts), new_pairs=new_pairs, old_pairs=old_pairs)
        return parts, work

    @property
    def decoding(self) -> list[Request]:
        return [r for r in self.running if r.decodes]

    def make_room(self, steps: int) -> int:
        """How many steps, at most ``steps``, all decoding sequences can grow by.

        Where there is room for none the youngest requests lose their cache, to be computed again
        before all others that wait.
        """
        while True:
            growing = self.decoding
            if not growing:
                return steps
            free = self.pages - sum(self._held(r) for r in self.running)
            if self._growth(growing, steps) <= free:
                return steps
            low, high = 0, steps - 1
            while low < high:  # the most steps whose pages are free
                middle = -(-(low + high) // 2)
                if self._growth(growing, middle) <= free:
                    low = middle
                else:
                    high = middle - 1
            if low:
                return low
            self._preempt(self.running[-1])

    def _growth(self, growing: list[Request], steps: int) -> int:
        """Pages for ``steps`` steps; what is drafted beyond a request's end is not kept."""
        tokens = steps * self.policy.query_len
        ends = (r.computed + min(tokens, r.remaining) for r in growing)
        return sum(self._pages_for(n) - self._held(r) for n, r in zip(ends, growing, strict=True))

    def _preempt(self, r: Request) -> None:
        self.running.remove(r)
        r.target = r.prompt + r.generated
        r.computed = 0
        self.queue.appendleft(r)
        self.preemptions += 1

    def _pages_for(self, tokens: int) -> int:
        return -(-tokens // self.policy.page_size)

    def _held(self, r: Request) -> int:
        """Pages of what is computed and, of a prompt, of what will be."""
        return self._pages_for(max(r.computed, r.target))

    def _reserved(self, r: Request) -> int:
        outstanding = int(self.policy.reserve * r.remaining)
        return self._pages_for(max(r.computed, r.target) + outstanding)
