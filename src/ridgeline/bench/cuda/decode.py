"""``ridgeline bench decode --device cuda``: a row for every implementation of a shape."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial
from math import nan
from typing import Any

import torch
from torch import Tensor

from ridgeline.bench import files, timing
from ridgeline.bench.cuda import decode_peers, packages, prefetch
from ridgeline.bench.cuda.shapes import PAGE_SIZES, decode_shapes
from ridgeline.bench.cuda.trials import Trials
from ridgeline.bench.decode import Row as MeasuredRow
from ridgeline.bench.decode import measured_columns, shape_columns
from ridgeline.bench.device import Device
from ridgeline.bench.inputs import DecodeInputs
from ridgeline.bench.peers import Dense, oracle
from ridgeline.bench.shapes import DecodeShape
from ridgeline.bench.verify import OURS_BUDGET, PEER_BUDGET, ROUNDING
from ridgeline.ops.common import check
from ridgeline.roofline import roofs

IMPLS = ("triton", "hopper")
PREFETCH = (0, 1, 2, 4)  # tiles
PREFETCHED = " prefetch "  # between an implementation and a distance, in the name of a call


@dataclass(frozen=True)
class CudaDecodeOptions:
    """What to run. ``prefetch``: distances of L2 prefetch in tiles; none to leave it as it is."""

    shapes: tuple[DecodeShape, ...] = tuple(decode_shapes())
    page_sizes: tuple[int, ...] = PAGE_SIZES
    impls: tuple[str, ...] = IMPLS
    prefetch: tuple[int, ...] = PREFETCH
    reps: int = 30
    with_peers: bool = True

    def __post_init__(self) -> None:
        check.count("reps", self.reps, minimum=1)
        for page_size in self.page_sizes:
            check.count("page_size", page_size, minimum=1)
        for distance in self.prefetch:
            check.count("prefetch", distance)
        for impl in self.impls:
            check.name_of_impl(impl)

    def work(self) -> Iterator[tuple[DecodeShape, int]]:
        """Shapes and page sizes, those of one shape together."""
        for shape in self.shapes:
            for page_size in self.page_sizes:
                yield shape, page_size


@dataclass(frozen=True)
class Row(MeasuredRow):
    """One implementation of one shape and page size.

    ``prefetch``: seconds by distance in tiles; ``broken``: why such a call has none though it
    should. ``failure``: why there is no time at all; ``seconds`` is then nan. ``absent`` and
    ``eager``: why a peer has no time, or is no CUDA graph. ``rmse``: errors against float64, of the
    row's implementation and its peers by name.
    """

    impl: str = ""
    page_size: int = 0
    prefetch: dict[int, float] = field(default_factory=dict)
    broken: dict[str, str] = field(default_factory=dict)
    absent: dict[str, str] = field(default_factory=dict)
    eager: dict[str, str] = field(default_factory=dict)
    rmse: dict[str, float] = field(default_factory=dict)
    failure: str | None = None
    state: dict[str, str | int] = field(default_factory=dict)


def measure(
    shape: DecodeShape, page_size: int, options: CudaDecodeOptions, device: Device
) -> list[Row]:
    """The rows of a shape: all calls take turns in one loop, each finding L2 cold."""
    inputs = DecodeInputs(shape, page_size=page_size, cold_bytes=0, where=device.where)
    trials = Trials(device, truth(inputs))
    _admit_ours(trials, inputs, options)
    ours = [impl for impl in options.impls if impl in trials.runs]
    if all(impl in trials.absent for impl in options.impls):
        first = options.impls[0]
        trials.failed[first] = trials.absent.pop(first)
    if options.with_peers and ours:
        _admit_peers(trials, inputs)
    times, roof, drift = _time(trials, shape, options.reps)
    common = {"shape": shape, "page_size": page_size, "roofs": roof, "drift": drift}
    common |= {"no_prefetch": None, "samples": {}, "state": device.state(), "eager": trials.eager}
    return [
        Row(impl=impl, **common, **_of(impl, trials, times))
        for impl in options.impls
        if impl in ours or impl in trials.failed
    ]


def _of(impl: str, trials: Trials, times: dict[str, float]) -> dict[str, Any]:
    """What a row says of ``impl``, and of the others beside it."""
    start = impl + PREFETCHED
    own = {name: x for name, x in times.items() if name.startswith(start)}
    return {
        "seconds": times.get(impl, nan),
        "error": trials.errors.get(impl, nan),
        "failure": trials.failed.get(impl),
        "peers": {n: x for n, x in times.items() if n != impl and PREFETCHED not in n},
        "prefetch": {int(name.removeprefix(start)): x for name, x in own.items()},
        "broken": {name: why for name, why in trials.failed.items() if name.startswith(start)},
        "rmse": {n: x for n, x in trials.rmse.items() if PREFETCHED not in n},
        "absent": trials.absent | {n: why for n, why in trials.failed.items() if n != impl},
    }


def truth(inputs: DecodeInputs) -> Tensor:
    """Float64 attention, ``[B, L_q, h_q, d_v]``, one sequence at a time: scores take room."""
    each = (slice(b, b + 1) for b in range(inputs.shape.batch))
    return torch.cat([oracle(Dense(inputs, torch.float64, sequences=b)) for b in each])


def _admit_ours(trials: Trials, inputs: DecodeInputs, options: CudaDecodeOptions) -> None:
    budget = OURS_BUDGET * ROUNDING[inputs.shape.dtype]
    for impl in options.impls:
        plain = trials.ours(impl, partial(inputs.decode, impl), budget)
        if plain is None:
            continue
        for n in options.prefetch:
            name = f"{impl}{PREFETCHED}{n}"
            found = trials.ours(name, partial(prefetch.decode, inputs, impl, n), budget)
            if found is not None and not torch.equal(found, plain):
                trials.reject(name, f"{name}: changed the result")


def _admit_peers(trials: Trials, inputs: DecodeInputs) -> None:
    budget = PEER_BUDGET * ROUNDING[inputs.shape.dtype]
    try:
        found = decode_peers.torch_peers(inputs)
    except torch.OutOfMemoryError as e:  # the dense cache is a second one
        trials.absent["sdpa"] = str(e)
    else:
        for name, (call, canonical) in found.items():
            trials.peer(name, lambda call=call: call, budget, canonical)
    for name, adapter in decode_peers.ADAPTERS.items():
        if packages.installed(name):
            make = partial(_adapted, name, adapter, inputs)
            trials.peer(name, make, budget)


def _adapted(name: str, adapter: decode_peers.Adapter, inputs: DecodeInputs) -> decode_peers.Call:
    return adapter(packages.load(name), inputs)


def _time(
    trials: Trials, shape: DecodeShape, reps: int
) -> tuple[dict[str, float], roofs.Roofs, float]:
    """Medians of what was admitted, the roofs of the same loop, and the roofs' drift."""
    device = trials.device
    copy, copied = roofs.copy(device.where)
    gemm, flops = roofs.gemm(shape.torch_dtype, where=device.where)
    calls = {name: device.ready(call).run for name, call in (("copy", copy), ("gemm", gemm))}
    samples, drift = timing.steady(
        {**trials.runs, **calls}, reps, tuple(calls), clock=device.seconds
    )
    times = timing.medians(samples)
    roof = roofs.Roofs(copied / times.pop("copy"), flops / times.pop("gemm"))
    return times, roof, drift


def record(row: Row) -> files.Record:
    """One row as flat columns."""
    columns: files.Record = {"impl": row.impl, "page_size": row.page_size}
    columns |= shape_columns(row.shape)
    if row.failure is not None:
        return columns | {"failure": row.failure}
    columns |= measured_columns(row)
    columns["rmse"] = float(f"{row.rmse[row.impl]:.3e}")
    for distance, seconds in row.prefetch.items():
        columns[f"prefetch_{distance}_ms"] = files.ms(seconds)
    for name, seconds in row.peers.items():
        columns[f"{_column(name)}_ms"] = files.ms(seconds)
        columns[f"{_column(name)}_ratio"] = round(row.speedup(name), 3)
        columns[f"{_column(name)}_rmse"] = float(f"{row.rmse[name]:.3e}")
    for ending, reasons in (("absent", row.absent), ("eager", row.eager)):
        columns |= {f"{_column(name)}_{ending}": why for name, why in reasons.items()}
    return columns | row.state


def _column(peer: str) -> str:
    start = "torch_" if peer.startswith(("sdpa", "eager")) else ""
    return start + peer.replace(" ", "_").replace("-", "_")
