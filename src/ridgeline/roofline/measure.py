"""This machine's roofs, and planned beside measured steps of ``ridgeline generate``.

A plan knows what was measured apart from the step: the rate at which torch reads weights in a
product with one token, the roof of memory, the decode kernel on a cache of the step's shape, and
the time of a step of a model too narrow for bytes or FLOPs to count. Steps and rates take turns, so
that a change of the machine's speed meets all of them.
"""

from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from types import SimpleNamespace

import torch
import torch.nn.functional as F
from torch import Tensor

from ridgeline.bench import machine, timing
from ridgeline.bench.files import Record, ms
from ridgeline.bench.inputs import DecodeInputs
from ridgeline.bench.shapes import DTYPES, DecodeShape
from ridgeline.models import RidgelineConfig, RidgelineForCausalLM
from ridgeline.models.generate import stream
from ridgeline.ops.common import check
from ridgeline.roofline import configs, roofs
from ridgeline.roofline.cost import Engine, StepCost, Work
from ridgeline.roofline.efficiency import Efficiency
from ridgeline.roofline.hardware import Hardware
from ridgeline.roofline.model import ModelShape

BALLAST = 2**28  # bytes that are read for the memory roof
NARROW = 64  # width of a model whose step is overhead alone
REPS = 9

Linear = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class MeasureOptions:
    """A Llama-like decoder for every variant, and how it is run.

    ``length``: tokens of the prompt; ``steps``: decode steps that are timed; ``dtype`` "auto" is
    bf16, or fp32 where torch multiplies that faster.
    """

    variants: tuple[str, ...] = ("gqa-8", "gta-8", "gla-2")
    layers: int = 4
    hidden: int = 2048
    intermediate: int = 5632
    heads: int = 32
    head_dim: int = 64
    vocab: int = 8192
    length: int = 4096
    steps: int = 24
    dtype: str = "auto"

    def __post_init__(self) -> None:
        check.count("steps", self.steps, minimum=1)
        check.count("length", self.length, minimum=1)
        if self.dtype not in ("auto", *DTYPES):
            raise ValueError(f"dtype: expected auto, {', '.join(DTYPES)}, got {self.dtype!r}")

    @property
    def dtype_name(self) -> str:
        if self.dtype != "auto":
            return self.dtype
        fast = roofs.gemm_dtype(torch.bfloat16)
        return next(name for name, dtype in DTYPES.items() if dtype == fast)

    def shape(self, label: str) -> ModelShape:
        """The planner's shape of a variant, a label of ``configs.with_attention``."""
        llama = ModelShape(
            name="decoder",
            variant="mha",
            layers=self.layers,
            hidden=self.hidden,
            heads=self.heads,
            kv_heads=self.heads,
            head_dim=self.head_dim,
            intermediate=self.intermediate,
            vocab=self.vocab,
            weight_dtype=self.dtype_name,
            cache_dtype=self.dtype_name,
        )
        return configs.with_attention(llama, label)


@dataclass(frozen=True)
class Rates:
    """What a plan is made from; seconds, and bytes or FLOP a second.

    ``kernels`` and ``overheads`` by variant: of the decode kernel over one layer's cache, and of a
    narrow model's whole step.
    """

    read: float
    gemv: float
    gemm: float
    kernels: Mapping[str, float]
    overheads: Mapping[str, float]


@dataclass(frozen=True)
class Planned:
    """The plan of a step of one variant and its measured median, in seconds.

    ``load``: columns that say what the step is of.
    """

    label: str
    load: Mapping[str, int]
    shape: ModelShape
    cost: StepCost
    measured: float
    rates: Rates

    @property
    def error(self) -> float:
        return self.cost.total / self.measured - 1


def this_machine() -> Hardware:
    """Its memory read and torch's GEMM rate, measured now."""
    samples = timing.interleave(roof_calls(torch.bfloat16), REPS)
    times = timing.medians(samples)
    return _hardware(BALLAST / times["read"], 2 * roofs.GEMM_SIZE**3 / times["gemm"])


def _hardware(read: float, gemm: float) -> Hardware:
    return Hardware(
        name=machine.cpu_model(), bf16=gemm, memory=machine.memory_bytes(), bandwidth=read
    )


def roof_calls(dtype: torch.dtype) -> dict[Hashable, Callable[[], object]]:
    """Calls to time: "read" of ``BALLAST`` bytes, and "gemm" of ``roofs.GEMM_SIZE``."""
    ballast = torch.ones(BALLAST, dtype=torch.uint8)
    gemm, _ = roofs.gemm(dtype)
    calls = {"read": lambda: roofs.read(ballast), "gemm": gemm}
    for call in calls.values():
        call()
    return calls


def run(options: MeasureOptions) -> list[Planned]:
    """Measure and plan every variant."""
    dtype = DTYPES[options.dtype_name]
    shapes = {label: options.shape(label) for label in options.variants}
    gemv, gemv_bytes = product(options.hidden, options.intermediate, dtype)
    calls = roof_calls(dtype) | {"gemv": gemv}
    for label, shape in shapes.items():
        calls["kernel", label] = kernel(shape, options.length)
        calls["overhead", label] = _Steps(_narrow(shape), 1, options.steps, dtype).next
        calls["step", label] = _Steps(shape, options.length, options.steps, dtype).next
    for call in calls.values():
        call()
    times = timing.medians(timing.interleave(calls, options.steps, _clock))
    rates = Rates(
        read=BALLAST / times["read"],
        gemv=gemv_bytes / times["gemv"],
        gemm=2 * roofs.GEMM_SIZE**3 / times["gemm"],
        kernels={label: times["kernel", label] for label in shapes},
        overheads={label: times["overhead", label] for label in shapes},
    )
    load = {"length": options.length}
    cached = options.length + options.steps / 2
    return [
        Planned(label, load, shape, plan(shape, label, rates, cached), times["step", label], rates)
        for label, shape in shapes.items()
    ]


def plan(
    shape: ModelShape, label: str, rates: Rates, cached: float, sequences: int = 1
) -> StepCost:
    """A step of ``sequences`` with ``cached`` tokens each, from ``rates`` alone."""
    fastest = max(rates.read, rates.gemv)
    efficiency = Efficiency(
        linear_memory=rates.gemv / fastest,
        linear_compute=1.0,
        layer_overhead=rates.overheads[label] / shape.layers,
        step_overhead=0.0,
    )
    engine = Engine(
        shape,
        _hardware(fastest, rates.gemm),
        efficiency=efficiency,
        kernel_time=lambda _, __: rates.kernels[label],
    )
    return engine.step([Work(sequences=sequences, cached=sequences * cached)])


def _clock(call: Callable[[], object]) -> float:
    """A generated token's own seconds where the call knows them."""
    seconds = timing.seconds(call)
    steps = getattr(call, "__self__", None)
    return steps.seconds if isinstance(steps, _Steps) else seconds


class _Steps:
    """``ridgeline generate`` on a model with random weights, a token at a time."""

    def __init__(self, shape: ModelShape, length: int, steps: int, dtype: torch.dtype) -> None:
        torch.manual_seed(0)
        new = steps + 2  # the prompt's, and one to warm up
        model = RidgelineForCausalLM(_config(shape, length + new)).to(dtype).eval()
        prompt = _Letters.LETTER * length
        self._text = stream(model, _Letters(), prompt, max_new_tokens=new, temperature=0)
        self._pieces: Iterator[str] = iter(self._text)
        self.seconds = 0.0
        next(self._pieces)

    def next(self) -> None:
        """One token; ``seconds`` is then its decode step's."""
        before = self._text.stats.decode_seconds
        next(self._pieces)
        self.seconds = self._text.stats.decode_seconds - before


class _Letters:
    """A tokenizer for which every token is the same letter, so that each step gives a piece."""

    LETTER = "a"
    eos_token_id = None

    def __call__(self, text: str) -> SimpleNamespace:
        return SimpleNamespace(input_ids=[0] * len(text))

    def decode(self, tokens: Sequence[int], **_: object) -> str:
        return self.LETTER * len(tokens)


def _config(shape: ModelShape, context: int) -> RidgelineConfig:
    counted = "num_latent_heads" if shape.is_latent else "num_key_value_heads"
    return RidgelineConfig(
        vocab_size=shape.vocab,
        hidden_size=shape.hidden,
        intermediate_size=shape.intermediate,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        head_dim=shape.head_dim,
        attention=shape.variant,
        max_position_embeddings=context,
        **{counted: shape.kv_heads},
    )


def _narrow(shape: ModelShape) -> ModelShape:
    """As many layers, and the same operations with next to nothing to compute."""
    return replace(
        shape,
        hidden=NARROW,
        heads=shape.kv_heads,
        head_dim=16,
        intermediate=NARROW,
        latent_dim=None,
        rope_dim=None,
        value_dim=None,
    )


def kernel(shape: ModelShape, length: int, batch: int = 1) -> Callable[[], object]:
    """The decode kernel of one layer with ``batch`` sequences, its cache cold."""
    decode = DecodeShape(
        variant=shape.variant,
        heads=shape.heads,
        kv_heads=shape.kv_heads,
        head_dim=shape.head_dim,
        batch=batch,
        length=length,
        dtype=shape.cache_dtype,
    )
    return DecodeInputs(decode, cold_bytes=machine.cold_bytes()).decode


def torch_linear(weight: Tensor) -> Linear:
    return lambda x: F.linear(x, weight)


def product(
    hidden: int,
    intermediate: int,
    dtype: torch.dtype,
    tokens: int = 1,
    linear: Callable[[Tensor], Linear] = torch_linear,
) -> tuple[Callable[[], object], int]:
    """``tokens`` through matrices of an MLP's shape, each of them cold, and the matrices' bytes.

    ``linear``: of ``weight [intermediate, hidden]``, the product with it.
    """
    one = hidden * intermediate * dtype.itemsize
    copies = 1 + machine.cold_bytes() // one
    products = [linear(torch.randn(intermediate, hidden, dtype=dtype)) for _ in range(copies)]
    x = torch.randn(tokens, hidden, dtype=dtype)
    return lambda: [call(x) for call in products], copies * one


def record(p: Planned) -> Record:
    """Flat columns of one plan."""
    cost, rates = p.cost, p.rates
    return {
        "variant": p.label,
        **p.load,
        "layers": p.shape.layers,
        "dtype": p.shape.cache_dtype,
        "parameters": p.shape.parameters,
        "cache_bytes_per_token": p.shape.cache_bytes(),
        "planned_ms": ms(cost.total),
        "measured_ms": ms(p.measured),
        "error_percent": round(100 * p.error, 1),
        "planned_weights_ms": ms(cost.weights),
        "planned_attention_ms": ms(cost.attention),
        "planned_overhead_ms": ms(cost.overhead),
        "memory_roof_GB/s": round(rates.read / 1e9, 3),
        "gemv_GB/s": round(rates.gemv / 1e9, 3),
        "gemm_roof_GFLOP/s": round(rates.gemm / 1e9, 1),
    }
