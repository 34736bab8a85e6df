"""A server of each model under each cache budget, loaded twice: with new prompts, and once more."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from ridgeline.bench.serving import client, models, server
from ridgeline.bench.serving.client import Client, Load, Metrics
from ridgeline.bench.serving.models import NARROW, ServedShape
from ridgeline.models.config import ATTENTIONS
from ridgeline.ops.common import check
from ridgeline.serving.launch import ServeOptions, Start, prepare

OURS, ENGINE = "ridgeline", "engine"
DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
MIB = 2**20
NARROW_CONTEXT = 64  # tokens of a narrow model's prompts: next to no cache is read
# Without a worker process of its own, whose busy waiting would take one of few cores.
ON_CPU = {"VLLM_ENABLE_V1_MULTIPROCESSING": "0", "VLLM_CPU_OMP_THREADS_BIND": "nobind"}


@dataclass(frozen=True)
class ServeBenchOptions:
    """What ``ridgeline bench serve`` was given.

    Args:
        cache_mib: budgets of the cache. A variant that holds all requests of the largest load in
            one is not measured in a larger one, which would change nothing.
        contexts: tokens of a prompt; ``concurrency``: requests under way. Every pair is a load.
        output: tokens that a request asks for.
        prompts: requests of a load; as many as are under way if None.
        attention: "ridgeline", and "engine" for GQA with the engine's own attention, in the
            largest budget.
        overhead: serve a narrow twin of each model too, whose step is what the engine costs; with
            short prompts, as many requests under way and as many tokens asked for.
        engine: further options of the engine's server.
        timeout: seconds that a server has to start, and a load to end.

    Raises:
        ValueError, TypeError: a value out of range; the message names the option.
    """

    variants: tuple[str, ...] = ("gqa", "gta", "mla", "gla")
    attention: tuple[str, ...] = (OURS,)
    shape: ServedShape = field(default_factory=ServedShape)
    dtype: str = "bf16"
    cache_mib: tuple[int, ...] = (512,)
    contexts: tuple[int, ...] = (8192,)
    concurrency: tuple[int, ...] = (8,)
    output: int = 64
    prompts: int | None = None
    overhead: bool = False
    engine: tuple[str, ...] = ()
    timeout: float = 1800.0

    def __post_init__(self) -> None:
        for option, given, known in (
            ("--variants", self.variants, ATTENTIONS),
            ("--attention", self.attention, (OURS, ENGINE)),
            ("--dtype", (self.dtype,), tuple(DTYPES)),
        ):
            for name in given:
                if name not in known:
                    raise ValueError(f"{option}: expected one of {', '.join(known)}, got {name!r}")
        if ENGINE in self.attention and "gqa" not in self.variants:
            raise ValueError("--attention: expected gqa in --variants for the engine's attention")
        check.count("--output", self.output, minimum=1)
        if self.prompts is not None:
            check.count("--prompts", self.prompts, minimum=1)

    def loads(self, narrow: bool = False) -> list[Load]:
        """Each with a seed of its own, so that none finds another's prompts in the cache."""
        contexts = (NARROW_CONTEXT,) if narrow else self.contexts
        pairs = enumerate(product(contexts, self.concurrency))
        return [Load(n, self.output, self.prompts or many, many, i) for i, (n, many) in pairs]

    def served(self) -> list[tuple[str, str]]:
        """Variant and attention of every model."""
        ours = [(name, OURS) for name in self.variants if OURS in self.attention]
        twins = [(f"{name}{NARROW}", OURS) for name, _ in ours] if self.overhead else []
        return ours + twins + [("gqa", ENGINE)] * (ENGINE in self.attention)


@dataclass(frozen=True)
class Row:
    """One load on one server.

    ``cache_bytes``: the budget. ``sizes``: fields of the model's configuration, with its dtype, of
    a model of ours. ``seen``: whether the same prompts had been sent before.
    ``result``: of the client. ``before``, ``after``: the engine's own counts.
    """

    name: str
    attention: str
    parameters: int | None
    cache_bytes: int | None
    sizes: Mapping[str, str | int]
    load: Load
    seen: bool
    result: dict[str, Any]
    before: Metrics
    after: Metrics

    @property
    def is_narrow(self) -> bool:
        return self.attention == OURS and self.name.endswith(NARROW)

    @property
    def rate(self) -> float:
        """Output tokens a second."""
        return self.result["output_throughput"]

    @property
    def bytes_per_token(self) -> float | None:
        """Bytes of a device's cache that a token takes, by the engine's own accounting."""
        if self.cache_bytes is None or not self.after.capacity:
            return None
        return self.cache_bytes / self.after.capacity

    @property
    def held(self) -> float | None:
        """Whole requests that fit into the cache at a time."""
        tokens = self.after.capacity
        return None if tokens is None else tokens / (self.load.context + self.load.output)

    @property
    def preemptions(self) -> int:
        return round(self.after.preemptions - self.before.preemptions)

    @property
    def hit_percent(self) -> float:
        """Of the prompts' tokens, those found in the prefix cache."""
        queried = self.after.queried - self.before.queried
        return 100 * (self.after.hit - self.before.hit) / queried if queried else 0.0


def measure(name: str, attention: str, options: ServeBenchOptions, driver: Client) -> list[Row]:
    """All loads on a server of ``name`` in each budget.

    Raises:
        ValueError: vLLM is not installed, or the sizes do not fit each other.
        RuntimeError: a server did not start, or a request failed.
    """
    loads = options.loads(name.endswith(NARROW))
    longest = max(load.context for load in loads) + options.output
    budgets = sorted(options.cache_mib)[-1 if attention == ENGINE else 0 :]
    rows: list[Row] = []
    with TemporaryDirectory(prefix="ridgeline-serve-") as folder:
        path = Path(folder, name)
        variant = models.save(
            options.shape,
            name,
            path,
            positions=longest,
            dtype=DTYPES[options.dtype],
        )
        sizes = {**variant.model, "dtype": options.dtype}
        builtin = "FLASH_ATTN" if torch.cuda.is_available() else "CPU_ATTN"
        choice = ("--attention-backend", builtin) if attention == ENGINE else ()
        for mib in budgets:
            with served(path, mib * MIB, longest, (*choice, *options.engine), options) as url:
                for load in loads:
                    about = (name, attention, variant.parameters, mib * MIB, sizes)
                    rows += drive(driver, url, str(path), path, load, about, options.timeout)
            if all(
                r.held is not None and r.held >= r.load.concurrency for r in rows[-2 * len(loads) :]
            ):
                break
    return rows


@contextmanager
def served(
    path: Path, cache_bytes: int, longest: int, engine: tuple[str, ...], options: ServeBenchOptions
) -> Iterator[str]:
    """The address of a server of the checkpoint ``path``."""
    port = server.free_port()
    line = ["--kv-cache-memory-bytes", str(cache_bytes), "--max-model-len", str(longest)]
    line += ["--dtype", str(DTYPES[options.dtype]).removeprefix("torch.")]
    environment: dict[str, str] = {}
    if not torch.cuda.is_available():
        line += ["--distributed-executor-backend", "uni"]
        environment = ON_CPU | {"OMP_NUM_THREADS": str(torch.get_num_threads())}
    start = prepare(ServeOptions(path, port=port, engine=(*line, *engine)))
    start = Start(start.line, {**start.environment, **environment})
    url = f"http://127.0.0.1:{port}"
    with server.running(start, url, path.with_suffix(".log"), options.timeout):
        yield url


def drive(
    driver: Client,
    url: str,
    model: str,
    tokenizer: Path,
    load: Load,
    about: tuple[str, str, int | None, int | None, Mapping[str, str | int]],
    timeout: float,
) -> Iterator[Row]:
    """``load`` with new prompts, then with the same ones; ``about``: the first fields of a row."""
    for seen in (False, True):
        before = client.metrics(url)
        result = driver.drive(url, model, tokenizer, load, timeout)
        yield Row(*about, load, seen, result, before, client.metrics(url))


def measure_endpoint(
    url: str, tokenizer: Path, options: ServeBenchOptions, driver: Client
) -> list[Row]:
    """All loads on a server that runs already."""
    model = client.first_model(url)
    about = (model, "", None, None, {})
    rows: list[Row] = []
    for load in options.loads():
        rows += drive(driver, url, model, tokenizer, load, about, options.timeout)
    return rows
