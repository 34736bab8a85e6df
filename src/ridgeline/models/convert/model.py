"""A whole model: which configuration it gets, what a text says about its layers, the errors."""

import copy
import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from ridgeline.models.config import RidgelineConfig
from ridgeline.models.convert.layers import Source, convert_layer
from ridgeline.models.modeling import RidgelineForCausalLM
from ridgeline.ops.common import check

TARGETS = ("gta", "mla", "gla")
SOURCES = ("mha", "mqa", "gqa")
# Their frequencies depend on nothing but the frequency before.
ROPE_TYPES = ("default", "linear", "llama3")
BATCH = 4  # windows of the calibration text in a forward pass


@dataclass(frozen=True)
class LayerError:
    """Relative errors of a layer: Frobenius norms of differences over those of the original.

    ``key`` and ``value`` are of the projections' weights; neither counts that some dims no longer
    rotate, nor the latents' RMSNorm. ``output_errors`` does.
    """

    layer: int
    key: float
    value: float


@torch.no_grad()
def convert(
    model: RidgelineForCausalLM, to: str, *, rows: Tensor | None = None, **sizes: int | None
) -> tuple[RidgelineForCausalLM, list[LayerError]]:
    """The model with another attention, its weights as close to the old function as they come.

    Args:
        model: an mha, mqa or gqa model.
        to: "gta", "mla" or "gla".
        rows: ``[B, L]`` token ids of a text, whose statistics say which directions matter; without
            it a layer's inputs count as normed white noise.
        sizes: ``num_key_value_heads`` (gta, default as before), ``num_latent_heads``,
            ``latent_dim`` (gla and mla) and ``rope_dim``, as of ``RidgelineConfig``.

    Raises:
        ValueError, TypeError: the model, ``to`` or a size is one that cannot be converted.
    """
    config = target_config(model.config, to, **sizes)
    if rows is not None:
        check.shape("rows", rows, ("B", "L"))
    moments = _moments(model, rows)
    with torch.device("meta"):
        target = RidgelineForCausalLM(config)
    kept = {k: v.clone() for k, v in model.state_dict().items() if ".self_attn." not in k}
    errors = []
    for i, layer in enumerate(model.model.layers):
        source = Source.of(
            layer.self_attn, layer.input_layernorm.weight.detach().double(), moments[i]
        )
        new = convert_layer(source, config)
        prefix = f"model.layers.{i}.self_attn."
        kept |= {prefix + name: x.to(model.dtype) for name, x in new.weights.items()}
        errors.append(LayerError(i, _relative(new.key, source.k), _relative(new.value, source.v)))
    target.load_state_dict(kept, assign=True)
    target.tie_weights()
    target.generation_config = copy.deepcopy(model.generation_config)
    return target.train(model.training), errors


def target_config(source: RidgelineConfig, to: str, **sizes: int | None) -> RidgelineConfig:
    """``source`` with the attention ``to``; see ``convert``."""
    if to not in TARGETS:
        raise ValueError(f"to: expected one of {', '.join(TARGETS)}, got {to!r}")
    if source.attention not in SOURCES:
        raise ValueError(
            f"attention: expected a model with one of {', '.join(SOURCES)} to convert, got "
            f"{source.attention!r}"
        )
    rope = dict(source.rope_parameters)
    if rope["rope_type"] not in ROPE_TYPES:
        raise ValueError(
            f"rope_parameters: expected a rope_type of {', '.join(ROPE_TYPES)} to convert, got "
            f"{rope['rope_type']!r}"
        )
    fields = {k: v for k, v in source.to_diff_dict().items() if k not in ("model_type", "dtype")}
    fields |= {"attention": to, "num_key_value_heads": None, "dtype": source.dtype}
    if to == "gta":
        fields["num_key_value_heads"] = source.num_key_value_heads
    fields |= {name: size for name, size in sizes.items() if size is not None}
    config = RidgelineConfig(**fields)
    if config.rope_dim > config.head_dim:
        raise ValueError(
            f"rope_dim: expected at most head_dim ({config.head_dim}), got {config.rope_dim}"
        )
    if to != "gta" and config.latent_dim > config.hidden_size:
        raise ValueError(
            f"latent_dim: expected at most hidden_size ({config.hidden_size}), got "
            f"{config.latent_dim}"
        )
    theta = rope["rope_theta"] ** (config.rope_dim / config.head_dim)
    config.rope_parameters = {**rope, "rope_theta": theta}
    return config


def _moments(model: RidgelineForCausalLM, rows: Tensor | None) -> list[Tensor]:
    """The second moment of each layer's normed inputs, ``[D, D]`` float64."""
    layers = model.model.layers
    if rows is None:
        return [torch.diag(layer.input_layernorm.weight.double().square()) for layer in layers]
    size = model.config.hidden_size
    sums = [torch.zeros(size, size, dtype=torch.float64) for _ in layers]

    def add(i: int, x: Tensor, rotary: Any, out: Tensor) -> None:
        x = x.double().flatten(0, 1)
        sums[i] += x.T @ x

    _run(model, rows, add)
    return [total / rows.numel() for total in sums]


@torch.no_grad()
def output_errors(
    model: RidgelineForCausalLM, target: RidgelineForCausalLM, rows: Tensor
) -> list[float]:
    """Relative errors of each layer's attention in ``target``, its inputs those of ``model``.

    ``rows``: ``[B, L]`` token ids.
    """
    layers = target.model.layers
    wrong, size = torch.zeros(2, len(layers), dtype=torch.float64)
    positions = torch.arange(rows.shape[1])[None]

    def compare(i: int, x: Tensor, rotary: Any, out: Tensor) -> None:
        tables = target.model.rotary(positions.expand(len(x), -1))
        ours = layers[i].self_attn(x, tables)
        wrong[i] += (ours - out).double().square().sum()
        size[i] += out.double().square().sum()

    _run(model, rows, compare)
    return [
        math.sqrt(w / s) if s else 0.0 for w, s in zip(wrong.tolist(), size.tolist(), strict=True)
    ]


def _run(model: RidgelineForCausalLM, rows: Tensor, seen: Any) -> None:
    """Forward passes over ``rows``; ``seen(layer, x, rotary, out)`` for each attention."""
    with _hooks(model, seen):
        for part in rows.split(BATCH):
            model.model(input_ids=part, use_cache=False)


@contextmanager
def _hooks(model: RidgelineForCausalLM, seen: Any) -> Iterator[None]:
    def hook(i: int, _: nn.Module, args: tuple, out: Tensor) -> None:
        seen(i, args[0], args[1], out)

    handles = [
        layer.self_attn.register_forward_hook(partial(hook, i))
        for i, layer in enumerate(model.model.layers)
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _relative(found: Tensor, expected: Tensor) -> float:
    size = expected.norm().item()
    return (found - expected).norm().item() / size if size else 0.0
