"""One shape: every way to compute it is checked, then all take turns, forward and backward."""

import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial
from math import nan

from torch import Tensor

from ridgeline.bench import files, timing
from ridgeline.bench.attention import accuracy, peers
from ridgeline.bench.attention.calls import FP8_BLOCK, Call, Inputs, eight_bit, ours, unpacked
from ridgeline.bench.attention.shapes import PASSES, AttentionShape, published
from ridgeline.bench.cuda import attention_peers
from ridgeline.bench.device import CPU, Device, first_line, unsupported
from ridgeline.bench.verify import (
    FP8_BUDGET,
    OURS_BUDGET,
    PEER_BUDGET,
    ROUNDING,
    relative_error,
)
from ridgeline.ops.common import check
from ridgeline.ops.common.dispatch import Impl
from ridgeline.roofline import roofs

FP8_IMPLS = ("hopper", "reference")
RMSE_HEADS = 2
SLOW = 10.0  # seconds; a peer that takes longer is timed once, before the loop


@dataclass(frozen=True)
class Row:
    """Medians of one pass of a shape; times in seconds, rates per second.

    ``peers``: other ways of the same row. ``absent``: why a peer has no time. On a GPU ``impl``
    names the implementation, ``failure`` says why it has no time (``seconds`` is then nan), and
    ``state`` holds columns of the device's clocks. ``rmse``: of a forward that has FP8 beside it,
    errors of each method of ``accuracy`` on inputs with outliers, in the row's length and dims.
    """

    shape: AttentionShape
    which: str
    seconds: float
    gemm: float
    peers: dict[str, float]
    error: float
    drift: float
    absent: dict[str, str] = field(default_factory=dict)
    impl: str = ""
    failure: str | None = None
    state: dict[str, str | int] = field(default_factory=dict)
    rmse: dict[str, float] = field(default_factory=dict)

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
    """What to run. ``backward=False``: the forward alone.

    ``impls``: on a GPU, in place of ``impl``: each is timed, and one that fails does not keep the
    others from it.
    """

    shapes: tuple[AttentionShape, ...] = tuple(published())
    reps: int = 7
    with_peers: bool = True
    backward: bool = True
    impl: Impl = "auto"
    impls: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        check.count("reps", self.reps, minimum=1)
        for impl in (self.impl, *self.impls):
            check.name_of_impl(impl)

    @property
    def ours(self) -> dict[str, str]:
        """The implementations to time, by the names of their calls."""
        return {impl: impl for impl in self.impls} or {"ours": self.impl}


def measure(shape: AttentionShape, options: AttentionOptions, device: Device = CPU) -> list[Row]:
    """The rows of a shape, one for each pass; measured again while the GEMM's rate drifts.

    Raises:
        RuntimeError: a result is wrong, so its time would mean nothing; of ``options.impls`` the
            row says so instead.
    """
    passes = PASSES if options.backward else PASSES[:1]
    calls, once, errors, absent, failed = {}, {}, {}, {}, {}
    for call, want, budget in _ways(Inputs(shape, device.where), options):
        for which in passes:
            key = call.name, which
            try:
                errors[key], took = _check(call, which, shape, want, budget, device)
            except _Absent as e:
                absent[key] = str(e)
            except Exception as e:  # compilers and drivers have exceptions of their own
                if not options.impls:
                    raise
                ours = call.name in options.ours and not unsupported(e)
                (failed if ours else absent)[key] = first_line(e)
            else:
                if took > SLOW and call.name not in options.ours:
                    once[key] = took
                else:
                    calls[key] = partial(call.run, which)
    for which in passes:
        if all((name, which) in absent for name in options.ours):
            first = next(iter(options.ours)), which
            failed[first] = absent.pop(first)
    gemm, gemm_flops = roofs.gemm(shape.torch_dtype, where=device.where)
    gemm()
    calls["gemm", ""] = gemm
    samples, drift = timing.steady(calls, options.reps, [("gemm", "")], device.seconds)
    times = timing.medians(samples) | once
    state = device.state()
    return [
        Row(
            shape=shape,
            which=which,
            seconds=times.get((name, which), nan),
            gemm=gemm_flops / times["gemm", ""],
            peers={n: x for (n, of), x in times.items() if of == which and n != name},
            error=errors.get((name, which), nan),
            drift=drift,
            absent={n: why for (n, of), why in absent.items() if of == which and n != name},
            impl=name if options.impls else "",
            failure=failed.get((name, which)),
            state=state,
            rmse=_rmse(shape, name, device) if (f"{name} fp8", which) in calls else {},
        )
        for name in options.ours
        for which in passes
        if (name, which) in calls or (name, which) in failed
    ]


def _rmse(shape: AttentionShape, impl: Impl, device: Device) -> dict[str, float]:
    """Errors of one seed; none of a mask or a width that ``accuracy`` does not know."""
    if shape.mask == "tree" or shape.head_dim & (shape.head_dim - 1):
        return {}
    options = accuracy.AccuracyOptions(
        heads=RMSE_HEADS,
        head_dim=shape.head_dim,
        causal=shape.mask == "causal",
        seeds=1,
        block=FP8_BLOCK,
        impl=impl,
    )
    found = accuracy.measure(shape.length, options, device.where)
    return {row.method: row.error for row in found}


class _Absent(Exception):
    """A peer that cannot run here, and why."""


def _check(
    call: Call,
    which: str,
    shape: AttentionShape,
    want: dict[str, Tensor],
    budget: float,
    device: Device,
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
        raise _Absent(first_line(e)) from e
    took = time.perf_counter() - start
    if took > SLOW:
        took = device.seconds(partial(call.run, which))  # the first may have compiled something
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
    for name, impl in options.ours.items():
        yield ours(inputs, impl, name), want, budget
        if options.impls and impl in FP8_IMPLS and dtype == "bf16":
            yield eight_bit(inputs, impl, f"{name} fp8", quantize=False), want, FP8_BUDGET
            yield eight_bit(inputs, impl, f"{name} quantize fp8", quantize=True), want, FP8_BUDGET
    if tree:
        plain = Inputs(shape.causal(), inputs.where)
        want_plain = peers.exact(plain)
        for name, impl in options.ours.items():
            start = "" if name == "ours" else f"{name} "
            yield ours(plain, impl, f"{start}causal"), want_plain, budget
            yield unpacked(inputs, impl, f"{start}unpacked"), want, budget
    if not options.with_peers:
        return
    budget = PEER_BUDGET * ROUNDING[dtype]
    if options.impls:
        for peer in attention_peers.peers(inputs):
            yield peer, want, budget
        return
    sdpa = peers.sdpa_unpacked if tree else peers.sdpa
    for name in dict.fromkeys((dtype, "fp32")):
        yield sdpa(inputs, name), want, PEER_BUDGET * ROUNDING[name]
    if tree:
        yield peers.flex(inputs), want, budget


def record(row: Row) -> files.Record:
    """One row as flat columns; a unit ends the name where there is one."""
    shape = row.shape
    columns: files.Record = {"impl": row.impl} if row.impl else {}
    columns |= {
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
    }
    if row.failure is not None:
        return columns | {"failure": row.failure}
    columns |= {
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
    for method, error in row.rmse.items():
        columns[f"rmse_{_column(method.replace(',', ''))}"] = float(f"{error:.2e}")
    return columns | row.state


def _column(peer: str) -> str:
    start = "torch_" if peer.startswith(("sdpa", "flex")) else ""
    return start + peer.replace(" ", "_").replace("-", "_")
