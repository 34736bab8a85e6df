"""Planned beside measured steps of the engine's server, from a file of ``ridgeline bench serve``.

A plan knows the time between two tokens of no model that it plans. It is made from what this
process measures, the engine's own products of as many tokens as requests decode, weights cold, and
the decode kernel on a cold cache of the step's shape; and from the engine's overhead: the time
between two tokens of a model too narrow for bytes or FLOPs to count, behind the same server, with
as many requests (``ridgeline bench serve --overhead``). All on a CPU.
"""

from collections import defaultdict
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from torch import Tensor, nn

from ridgeline.bench import timing
from ridgeline.bench.serving.measure import OURS
from ridgeline.bench.serving.models import NARROW
from ridgeline.bench.shapes import DTYPES
from ridgeline.roofline import configs, fields, roofs
from ridgeline.roofline.measure import (
    BALLAST,
    Linear,
    Planned,
    Rates,
    kernel,
    plan,
    product,
    roof_calls,
)
from ridgeline.roofline.model import ModelShape
from ridgeline.serving.launch import require_engine

ROUNDS = 31  # calls of a few milliseconds, which another process easily doubles
SEEN = 90  # percent of the prompts' tokens found in the cache: the rest takes a step or two
SIZES = (
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "vocab_size",
)
OPTIONAL_SIZES = ("num_key_value_heads", "num_latent_heads", "q_rank")


@dataclass(frozen=True)
class ServedStep:
    """A decode step of ``concurrency`` requests, each behind ``context`` prompt tokens.

    ``output``: tokens that each asks for; ``seconds``: the median time between two of them;
    ``overhead``: that of the narrow model.
    """

    shape: ModelShape
    context: int
    output: int
    concurrency: int
    seconds: float
    overhead: float

    @property
    def load(self) -> dict[str, int]:
        return {"context": self.context, "output": self.output, "concurrency": self.concurrency}

    @property
    def cached(self) -> float:
        """Tokens of a request in the middle of its output."""
        return self.context + self.output / 2


def read(path: Path) -> list[ServedStep]:
    """The steps of a CSV file of ``ridgeline bench serve --overhead`` that decode alone.

    These are of Ridgeline's attention, with prompts that are in the prefix cache, and with all
    requests in the cache at once: nothing else happens between two tokens of the median.

    Raises:
        ValueError: a column is missing, a cell is no number, no row is such a step, or one has no
            narrow twin; the message names it.
    """
    rows = list(enumerate(fields.read_rows(path), start=1))
    for column in ("model", "attention", "prompts_are", "variant", "dtype"):
        if column not in rows[0][1]:
            raise ValueError(f"{path}: expected a column {column!r}, found {', '.join(rows[0][1])}")
    ours = [(i, row) for i, row in rows if row["attention"] == OURS]
    narrow: dict[tuple[str, int], list[float]] = defaultdict(list)
    for i, row in ours:
        if row["model"].endswith(NARROW):
            narrow[row["variant"], _count(path, i, row, "concurrency")].append(_itl(path, i, row))
    steps = [
        _step(path, i, row, narrow)
        for i, row in ours
        if not row["model"].endswith(NARROW) and _decodes_alone(path, i, row)
    ]
    if not steps:
        raise ValueError(
            f"{path}: expected a row with prompts_are seen, prefix_hit_percent of at least {SEEN}, "
            "requests_held of at least concurrency and no preemptions; found none"
        )
    return steps


def _decodes_alone(path: Path, i: int, row: Mapping[str, str]) -> bool:
    if row["prompts_are"] != "seen" or row.get("preemptions") != "0":
        return False
    held = fields.number(path, i, row, "requests_held")
    return held >= _count(path, i, row, "concurrency") and float(row["prefix_hit_percent"]) >= SEEN


def _step(
    path: Path, i: int, row: Mapping[str, str], narrow: Mapping[tuple[str, int], Sequence[float]]
) -> ServedStep:
    variant, concurrency = row["variant"], _count(path, i, row, "concurrency")
    if (variant, concurrency) not in narrow:
        raise ValueError(
            f"{path}, row {i}: expected rows of {variant}{NARROW} at concurrency {concurrency}; "
            "`ridgeline bench serve --overhead` writes them"
        )
    return ServedStep(
        shape=_shape(path, i, row),
        context=_count(path, i, row, "context"),
        output=_count(path, i, row, "output"),
        concurrency=concurrency,
        seconds=_itl(path, i, row),
        overhead=median(narrow[variant, concurrency]),
    )


def _shape(path: Path, i: int, row: Mapping[str, str]) -> ModelShape:
    """All models that ``ridgeline bench serve`` makes tie their embeddings."""
    names = {short: name for name, short in configs.DTYPES.items()}
    if row["dtype"] not in names:
        expected = ", ".join(names)
        raise ValueError(f"{path}, row {i}: dtype: expected {expected}, got {row['dtype']!r}")
    present = [name for name in OPTIONAL_SIZES if row.get(name)]
    config = {name: _count(path, i, row, name) for name in (*SIZES, *present)}
    config |= {"attention": row["variant"], "dtype": names[row["dtype"]]}
    try:
        return configs.from_config(
            {"model_type": "ridgeline", "tie_word_embeddings": True, **config}, row["model"]
        )
    except (ValueError, TypeError) as e:
        raise ValueError(f"{path}, row {i}: {e}") from None


def _count(path: Path, i: int, row: Mapping[str, str], column: str) -> int:
    x = fields.number(path, i, row, column)
    if x != int(x):
        raise ValueError(f"{path}, row {i}: {column}: expected a whole number, got {row[column]!r}")
    return int(x)


def _itl(path: Path, i: int, row: Mapping[str, str]) -> float:
    return fields.number(path, i, row, "p50_itl_ms") / 1e3


def engine_linear(weight: Tensor) -> Linear:
    """The product that the engine's layers choose on this processor; ``weight [out, in]``."""
    from vllm.model_executor.layers.utils import dispatch_cpu_unquantized_gemm

    layer = nn.Module()
    layer.weight = nn.Parameter(weight, requires_grad=False)
    dispatch_cpu_unquantized_gemm(layer, remove_weight=True)
    return lambda x: layer.cpu_linear(x, layer.weight, None)


def run(steps: Sequence[ServedStep]) -> list[Planned]:
    """Measure what the plans of ``steps``, all of one dtype, are made from, and plan.

    Raises:
        ValueError: vLLM is not installed, whose products these are.
    """
    require_engine()
    dtype = DTYPES[steps[0].shape.weight_dtype]
    calls: dict[Hashable, Callable[[], object]] = roof_calls(dtype)
    nbytes: list[int] = []
    for i, step in enumerate(steps):
        shape, tokens = step.shape, step.concurrency
        calls["product", i], moved = product(
            shape.hidden, shape.intermediate, dtype, tokens, engine_linear
        )
        calls["kernel", i] = kernel(shape, round(step.cached), tokens)
        nbytes.append(moved)
    for call in calls.values():
        call()
    times = timing.medians(timing.interleave(calls, ROUNDS))
    found = []
    for i, step in enumerate(steps):
        label = step.shape.name
        rates = Rates(
            read=BALLAST / times["read"],
            gemv=nbytes[i] / times["product", i],
            gemm=2 * roofs.GEMM_SIZE**3 / times["gemm"],
            kernels={label: times["kernel", i]},
            overheads={label: step.overhead},
        )
        cost = plan(step.shape, label, rates, step.cached, step.concurrency)
        found.append(Planned(label, step.load, step.shape, cost, step.seconds, rates))
    return found
