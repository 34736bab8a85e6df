"""One shape: every way to compute it is checked, then all take turns, forward and backward."""

import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial

from torch import Tensor

from ridgeline.bench import files, timing
from ridgeline.bench.attention import peers
from ridgeline.bench.attention.calls import Call, Inputs, ours, unpacked
from ridgeline.bench.attention.shapes import PASSES, AttentionShape, published
from ridgeline.bench.verify import OURS_BUDGET, PEER_BUDGET, ROUNDING, relative_error
from ridgeline.ops.common import check
from ridgeline.ops.common.dispatch import Impl
from ridgeline.roofline import roofs

SLOW = 10.0  # seconds; a peer that takes longer is timed once, before the loop


@dataclass(frozen=True)
class Row:
    """Medians of one pass of a shape; times in seconds, rates per second.

    ``peers``: other ways of the same row. ``absent``: why a peer has no time.
    """

    shape: AttentionShape
    which: str
    seconds: float
    gemm: float
    peers: dict[str, float]
    error: float
    drift: float
    absent: dict[str, str] = field(default_factory=dict)

    @property
    def flop_rate(self) -> float:
        return self.shape.flops(self.which) / self.seconds

    @property
    def percent(self) -> float:
        """Of the rate of torch's GEMM in the same loop."""
        return 100 * self.flop_rate / self.gemm

    def speedup(self, peer: str) -> float:
        return self.peers[peer] / self.seconds


@dataclass(frozen=True)
class AttentionOptions:
    """What to run. ``backward=False``: the forward alone."""

    shapes: tuple[AttentionShape, ...] = tuple(published())
    reps: int = 7
    with_peers: bool = True
    backward: bool = True
    impl: Impl = "auto"

    def __post_init__(self) -> None:
        check.count("reps", self.reps, minimum=1)
        check.name_of_impl(self.impl)


def measure(shape: AttentionShape, options: AttentionOptions) -> list[Row]:
    """The rows of a shape, one for each pass; measured again while the GEMM's rate drifts.

    Raises:
        RuntimeError: a result is wrong, so its time would mean nothing.
    """
    passes = PASSES if options.backward else PASSES[:1]
    calls, once, errors, absent = {}, {}, {}, {}
    for call, want, budget in _ways(Inputs(shape), options):
        for which in passes:
            key = call.name, which
            try:
                errors[key], took = _check(call, which, shape, want, budget)
            except _Absent as e:
                absent[key] = str(e)
            else:
                if took > SLOW and call.name != "ours":
                    once[key] = took
                else:
                    calls[key] = partial(call.run, which)
    gemm, gemm_flops = roofs.gemm(shape.torch_dtype)
    gemm()
    calls["gemm", ""] = gemm
    samples, drift = timing.steady(calls, options.reps, [("gemm", "")])
    times = timing.medians(samples) | once
    return [
        Row(
            shape=shape,
            which=which,
            seconds=times["ours", which],
            gemm=gemm_flops / times["gemm", ""],
            peers={n: x for (n, of), x in times.items() if of == which and n != "ours"},
            error=errors["ours", which],
            drift=drift,
            absent={n: why for (n, of), why in absent.items() if of == which},
        )
        for which in passes
    ]


class _Absent(Exception):
    """A peer that cannot run here, and why."""


def _check(
    call: Call, which: str, shape: AttentionShape, want: dict[str, Tensor], budget: float
) -> tuple[float, float]:
    """The largest error of what a pass gives, and roughly its seconds."""
    if which == "backward" and call.forward_only:
        raise _Absent(call.forward_only)
    start = time.perf_counter()
    try:
        found = call.results(which)
    except RuntimeError as e:  # of a compiler, too
        if not call.optional:
            raise
        raise _Absent(str(e).strip().splitlines()[0]) from e
    took = time.perf_counter() - start
    if took > SLOW:
        took = timing.seconds(partial(call.run, which))  # the first may have compiled something
    errors = (
        relative_error(
            f"{call.name}: {name}", peers.checked_heads(name, x, shape), want[name], budget
        )
        for name, x in found.items()
    )
    return max(errors), took


def _ways(
    inputs: Inputs, options: AttentionOptions
) -> Iterator[tuple[Call, dict[str, Tensor], float]]:
    """The calls to time, ours first; what each must give, and how far it may be from it."""
    shape, dtype = inputs.shape, inputs.shape.dtype
    want, budget = peers.exact(inputs), OURS_BUDGET * ROUNDING[dtype]
    tree = shape.mask == "tree"
    yield ours(inputs, options.impl), want, budget
    if tree:
        plain = Inputs(shape.causal())
        yield ours(plain, options.impl, "causal"), peers.exact(plain), budget
        yield unpacked(inputs, options.impl), want, budget
    if not options.with_peers:
        return
    sdpa = peers.sdpa_unpacked if tree else peers.sdpa
    for name in dict.fromkeys((dtype, "fp32")):
        yield sdpa(inputs, name), want, PEER_BUDGET * ROUNDING[name]
    if tree:
        yield peers.flex(inputs), want, PEER_BUDGET * ROUNDING[dtype]


def record(row: Row) -> files.Record:
    """One row as flat columns; a unit ends the name where there is one."""
    shape = row.shape
    columns: files.Record = {
        "mask": shape.mask,
        "pairs": " ".join("+".join(map(str, pair)) for pair in shape.pairs),
        "dtype": shape.dtype,
        "batch": shape.batch,
        "length": shape.length,
        "heads": shape.heads,
        "kv_heads": shape.kv_heads,
        "head_dim": shape.head_dim,
        "value_dim": shape.width,
        "pass": row.which,
        "visible_pairs": shape.visible_pairs,
        "GFLOP": round(shape.flops(row.which) / 1e9, 4),
        "ms": files.ms(row.seconds),
        "GFLOP/s": round(row.flop_rate / 1e9, 1),
        "percent_of_gemm": round(row.percent, 1),
        "gemm_GFLOP/s": round(row.gemm / 1e9, 1),
        "gemm_drift": round(row.drift, 3),
        "relative_error": float(f"{row.error:.2e}"),
    }
    for name, seconds in row.peers.items():
        column = _column(name)
        columns[f"{column}_ms"] = files.ms(seconds)
        columns[f"{column}_ratio"] = round(row.speedup(name), 2)
    for name, why in row.absent.items():
        columns[f"{_column(name)}_absent"] = why
    return columns


def _column(peer: str) -> str:
    return ("" if peer in ("causal", "unpacked") else "torch_") + peer.replace(" ", "_")
