"""A profile: every way gives the same gradients, then all take turns."""

from collections.abc import Callable
from dataclasses import dataclass, field
from importlib.util import find_spec

import torch
from torch import Tensor, nn

from ridgeline.bench import files, timing
from ridgeline.bench.dpo.profiles import PROFILES, Profile
from ridgeline.bench.dpo.ways import BEST, FLEX, MASKED, OURS, TRL, ModelShape, Pairs, Way
from ridgeline.bench.verify import relative_error
from ridgeline.ops.common import check
from ridgeline.roofline import roofs

# Of all gradients together in float32, against those of transformers' SDPA on padded rows: sums in
# another order, over as many layers.
BUDGET = 2.0**-12


@dataclass(frozen=True)
class DpoOptions:
    """What to run.

    Attributes:
        profiles: lengths.
        pairs: pairs of a step, TRL's default batch by default.
        tokens: of a step's medians without sharing, to which lengths are scaled down.
        spread: deviation of the lengths' logarithms.
        model: sizes.
        reps: steps of each way that are timed.
        with_peers: time TRL and PyTorch's ways of shared rows, too.
    """

    profiles: tuple[Profile, ...] = tuple(PROFILES.values())
    pairs: int = 8
    tokens: int = 960
    spread: float = 0.5
    model: ModelShape = field(default_factory=ModelShape)
    reps: int = 3
    with_peers: bool = True

    def __post_init__(self) -> None:
        for name in ("pairs", "tokens", "reps"):
            check.count(name, getattr(self, name), minimum=1)
        check.finite("spread", self.spread, minimum=0.0)


@dataclass(frozen=True)
class Row:
    """Medians of the steps of one profile, by way; times in seconds.

    Attributes:
        scale: of the profile's lengths.
        tokens: that each way computes a step.
        logical, physical: tokens without and with sharing, padding left out.
        absent: why a way has no time.
        error: the largest of the gradients, relative.
        drift: of the GEMM's rate.
    """

    profile: Profile
    options: DpoOptions
    scale: float
    parameters: int
    seconds: dict[str, float]
    tokens: dict[str, int]
    logical: int
    physical: int
    absent: dict[str, str]
    error: float
    gemm: float
    drift: float

    def rate(self, way: str) -> float:
        """Pairs a second."""
        return self.options.pairs / self.seconds[way]

    def speedup(self, way: str, over: str) -> float | None:
        """How many times as fast; ``None`` where one has no time."""
        if way in self.seconds and over in self.seconds:
            return self.seconds[over] / self.seconds[way]
        return None

    @property
    def token_bound(self) -> float:
        """Tokens that are drawn, without sharing over with."""
        return self.logical / self.physical

    @property
    def percent_of_bound(self) -> float:
        """The gain of sharing in packed rows, of the profile's bound."""
        return 100 * self.speedup(BEST, "packed") / self.profile.bound


def measure(profile: Profile, options: DpoOptions) -> list[Row]:
    """The profile's row.

    Raises:
        RuntimeError: a way's gradients are wrong, so its time would mean nothing.
    """
    model = options.model.build()
    scale = profile.scale(options.pairs, options.tokens)
    ids = profile.draw(options.pairs, scale, options.spread, seed=0, vocab=options.model.vocab)
    pairs = Pairs(model, ids)
    found, absent = pairs.ways(), {}
    if not options.with_peers:
        found = [way for way in found if way.name != MASKED]
    found[0].step()
    want = _gradients(model)
    errors = [_error(way, want) for way in found[1:]]
    for name, make in _peers() * options.with_peers:
        try:
            way = make(pairs)
            errors.append(_error(way, want))
        except (ModuleNotFoundError, NotImplementedError) as e:
            absent[name] = str(e).splitlines()[0]
        else:
            found.append(way)
    gemm, flops = roofs.gemm(torch.float32)
    gemm()
    samples = timing.interleave(
        {way.name: way.step for way in found} | {"gemm": gemm}, options.reps
    )
    times = timing.medians(samples)
    rate = flops / times.pop("gemm")
    return [
        Row(
            profile=profile,
            options=options,
            scale=scale,
            parameters=sum(p.numel() for p in model.parameters()),
            seconds=times,
            tokens={way.name: way.tokens for way in found},
            logical=sum(map(len, pairs.alone)),
            physical=sum(map(len, pairs.shared)),
            absent=absent,
            error=max(errors),
            gemm=rate,
            drift=timing.drift(samples["gemm"]),
        )
    ]


def _peers() -> tuple[tuple[str, Callable[[Pairs], Way]], ...]:
    """What may not run here: its name and what makes it."""
    if find_spec("trl") is None:

        def missing(pairs: Pairs) -> Way:
            raise ModuleNotFoundError("trl is not installed")

        return (TRL, missing), (OURS, missing), (FLEX, Pairs.flex)
    from ridgeline.bench.dpo import trainers

    return (TRL, trainers.trl), (OURS, trainers.ridgeline), (FLEX, Pairs.flex)


def _error(way: Way, want: Tensor) -> float:
    """Of the gradients that a way gives."""
    way.step()
    return relative_error(f"{way.name}: gradients", _gradients(way.model), want, BUDGET)


def _gradients(model: nn.Module) -> Tensor:
    return torch.cat([p.grad.flatten() for p in model.parameters()])


def record(row: Row) -> files.Record:
    """One profile as flat columns; a unit ends the name where there is one."""
    o = row.options
    columns: files.Record = {
        "profile": row.profile.name,
        "median_length": row.profile.length,
        "rho": row.profile.rho,
        "scale": round(row.scale, 4),
        "spread": o.spread,
        "pairs": o.pairs,
        "parameters": row.parameters,
        "logical_tokens": row.logical,
        "physical_tokens": row.physical,
        "bound": round(row.profile.bound, 3),
        "token_bound": round(row.token_bound, 3),
        "percent_of_bound": round(row.percent_of_bound, 1),
        "published_packed_speedup": row.profile.published,
        "gemm_GFLOP/s": round(row.gemm / 1e9, 1),
        "gemm_drift": round(row.drift, 3),
        "relative_error": float(f"{row.error:.2e}"),
    }
    for name, seconds in row.seconds.items():
        column = name.lower().replace(" ", "_")
        columns[f"{column}_tokens"] = row.tokens[name]
        columns[f"{column}_ms"] = files.ms(seconds)
        columns[f"{column}_samples/s"] = round(row.rate(name), 3)
    for name, why in row.absent.items():
        columns[f"{name.lower()}_absent"] = why
    return columns
