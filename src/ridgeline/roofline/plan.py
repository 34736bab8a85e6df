"""What an engine holds, which roof binds in each phase, and how long its steps take."""

from collections.abc import Sequence
from dataclasses import dataclass

from ridgeline.roofline.cost import Engine, StepCost, Work
from ridgeline.roofline.model import ModelShape


@dataclass(frozen=True)
class Phase:
    """One kind of step. ``intensity``: attention's FLOP per byte of cache that it reads;
    ``binding``: the roof, "memory" or "gemm", that its attention runs against.
    """

    name: str
    tokens: int
    intensity: float
    binding: str
    cost: StepCost


def phases(engine: Engine, sequences: int, length: int, chunk: int) -> tuple[Phase, Phase]:
    """A decode step of ``sequences`` on each data-parallel rank with ``length`` cached tokens, and
    a prefill step whose ``chunk`` tokens are shared out over the ranks, each behind
    ``length - chunk`` cached tokens of its prompt where it is that long.
    """
    dp = engine.parallel.dp
    decode = Work(sequences=sequences, cached=float(sequences * length))
    n = min(max(1, chunk // dp), length)
    old = length - n
    pairs = n * old + n * (n + 1) / 2
    prefill = Work(prefill=n, **({"old_pairs": pairs} if old else {"new_pairs": pairs}))
    return (
        _phase(engine, "decode", decode, engine.decode_flops(decode.cached, 1), decode.cached),
        _phase(engine, "prefill", prefill, engine.prefill_flops(prefill), float(length)),
    )


def _phase(engine: Engine, name: str, work: Work, flops: float, cached: float) -> Phase:
    nbytes = engine.decode_bytes(cached)
    roofs = engine.hardware.roofs(engine.model.cache_dtype)
    return Phase(
        name=name,
        tokens=work.tokens * engine.parallel.dp,
        intensity=flops / nbytes,
        binding=roofs.binding(nbytes, flops),
        cost=engine.step([work] * engine.parallel.dp),
    )


def cache_by_tp(model: ModelShape, tps: Sequence[int]) -> dict[int, int]:
    """Bytes of cache a token, in all layers, on one rank of each tensor-parallel degree."""
    return {tp: model.cache_bytes(tp) for tp in tps}


def record(engine: Engine, found: Sequence[Phase]) -> dict[str, str | int | float]:
    """Flat columns of an engine and its phases; times in ms."""
    columns: dict[str, str | int | float] = {
        "model": engine.model.name,
        "variant": engine.model.variant,
        "hardware": engine.hardware.name,
        "parallel": engine.parallel.label,
        "parameters": engine.model.parameters,
        "active_parameters": engine.model.active_parameters,
        "weight_GB_per_device": round(engine.weight_bytes / 1e9, 3),
        "cache_bytes_per_token_and_device": engine.cache_bytes_per_token,
        "cache_tokens_per_group": engine.cache_tokens,
        "cache_tokens": engine.cache_tokens * engine.parallel.dp,
    }
    for phase in found:
        cost = phase.cost
        parts = {
            "weights_ms": cost.weights,
            "attention_ms": cost.attention,
            "collectives_ms": cost.collectives,
            "overhead_ms": cost.overhead,
            "step_ms": cost.total,
        }
        columns |= {
            f"{phase.name}_flop_per_byte": round(phase.intensity, 2),
            f"{phase.name}_binding_roof": phase.binding,
            **{f"{phase.name}_{name}": round(1e3 * x, 4) for name, x in parts.items()},
            f"{phase.name}_tokens/s": round(phase.tokens / cost.total, 1),
        }
    return columns
