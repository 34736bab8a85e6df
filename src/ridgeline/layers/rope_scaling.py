"""Frequencies of rotary embeddings under the usual context-extension methods.

The arithmetic is float32 in the order of transformers' own functions, so that pretrained weights
meet the very angles they were trained with.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from ridgeline.ops.common import check

_REQUIRED = {
    "default": set(),
    "linear": {"factor"},
    "dynamic": {"factor"},
    "yarn": {"factor"},
    "longrope": {"short_factor", "long_factor"},
    "llama3": {"factor", "low_freq_factor", "high_freq_factor"},
}
_OPTIONAL = {
    "yarn": {"attention_factor", "beta_fast", "beta_slow", "mscale", "mscale_all_dim", "truncate"},
    "longrope": {"factor", "attention_factor"},
}
_EXTENDED = ("yarn", "longrope", "llama3")  # these know the length of the first training


@dataclass(frozen=True)
class RopeFrequencies:
    """Frequencies ``[dim / 2]`` in radians a token, and the factor of cos and sin.

    Where the frequencies depend on the sequence, ``long_inv_freq`` replaces ``inv_freq`` beyond
    ``original_max_position`` tokens (longrope), or ``dynamic_factor`` grows ``base`` (dynamic).
    """

    inv_freq: Tensor
    attention_factor: float
    base: float
    original_max_position: int
    long_inv_freq: Tensor | None = None
    dynamic_factor: float | None = None

    def to(self, device: torch.device) -> "RopeFrequencies":
        if self.inv_freq.device == device:
            return self
        long = None if self.long_inv_freq is None else self.long_inv_freq.to(device)
        return replace(self, inv_freq=self.inv_freq.to(device), long_inv_freq=long)

    def of_sequences(self, position_ids: Tensor) -> Tensor:
        """Frequencies for ``position_ids [B, L]``: ``[dim / 2]``, or ``[B, 1, dim / 2]``."""
        if self.long_inv_freq is None and self.dynamic_factor is None:
            return self.inv_freq
        original = self.original_max_position
        length = position_ids.amax(dim=1)[:, None, None] + 1
        if self.long_inv_freq is not None:
            return torch.where(length > original, self.long_inv_freq, self.inv_freq)
        dim, factor = 2 * self.inv_freq.shape[0], self.dynamic_factor
        stretch = factor * length.clamp(min=original) / original - (factor - 1)
        base = self.base * stretch ** (dim / (dim - 2))
        return 1.0 / base ** _exponents(dim).to(length.device)


def rope_frequencies(
    dim: int, base: float, scaling: Mapping[str, Any] | None, max_position: int
) -> RopeFrequencies:
    """Frequencies for ``scaling``, a dict under the names of transformers' ``rope_parameters``.

    Raises:
        ValueError, TypeError: an unknown ``rope_type`` or field, a missing field, or a bad value.
    """
    check.count("dim", dim, minimum=2)
    if dim % 2:
        raise ValueError(f"dim: expected an even rotary dim, got {dim}")
    check.count("max_position", max_position, minimum=1)
    fields = {k: v for k, v in (scaling or {}).items() if v is not None}
    kind = fields.pop("rope_type", fields.pop("type", "default"))
    fields.pop("type", None)
    _check_fields(kind, fields, dim)
    base = _number("base", fields.pop("rope_theta", base), above=1.0)
    original = fields.pop("original_max_position_embeddings", max_position)

    inv_freq = 1.0 / base ** _exponents(dim)
    factor = fields.get("factor", 1.0)
    match kind:
        case "linear":
            return RopeFrequencies(inv_freq / factor, 1.0, base, original)
        case "dynamic":
            if dim == 2:
                raise ValueError("dim: expected at least 4 for dynamic scaling, got 2")
            return RopeFrequencies(inv_freq, 1.0, base, max_position, dynamic_factor=factor)
        case "yarn":
            freqs = _yarn(
                dim, base, original, **_only(fields, "factor beta_fast beta_slow truncate")
            )
            return RopeFrequencies(freqs, _yarn_attention(fields), base, original)
        case "longrope":
            factor = fields.get("factor", max_position / original)
            attention = fields.get("attention_factor", _longrope_attention(factor, original))
            short, long = (
                1.0 / (_float32(fields[name]) * base ** _exponents(dim))
                for name in ("short_factor", "long_factor")
            )
            return RopeFrequencies(short, attention, base, original, long_inv_freq=long)
        case "llama3":
            return RopeFrequencies(_llama3(inv_freq, original, **fields), 1.0, base, original)
    return RopeFrequencies(inv_freq, 1.0, base, original)


# Device and dtype are named, since models are made under torch.device("meta") and a 16-bit default.
def _float32(values: Sequence[float] | range) -> Tensor:
    return torch.tensor(values, dtype=torch.float32, device="cpu")


def _exponents(dim: int) -> Tensor:
    return _float32(range(0, dim, 2)) / dim


def _only(fields: Mapping[str, Any], names: str) -> dict[str, Any]:
    return {name: fields[name] for name in names.split() if name in fields}


def _number(name: str, x: object, above: float = 0.0) -> float:
    if check.finite(name, x) <= above:
        raise ValueError(f"{name}: expected a number above {above:g}, got {x}")
    return float(x)


def _check_fields(kind: str, fields: Mapping[str, Any], dim: int) -> None:
    if kind not in _REQUIRED:
        raise ValueError(
            f"scaling['rope_type']: expected one of {', '.join(_REQUIRED)}, got {kind!r}"
        )
    known = _REQUIRED[kind] | _OPTIONAL.get(kind, set()) | {"rope_theta"}
    if kind in _EXTENDED:
        known.add("original_max_position_embeddings")
    for name in sorted(_REQUIRED[kind] - fields.keys()):
        raise ValueError(f"scaling[{name!r}]: expected a value for rope_type {kind!r}, got none")
    for name, value in fields.items():
        label = f"scaling[{name!r}]"
        match name:
            case _ if name not in known:
                raise ValueError(f"scaling: unknown field {name!r} for rope_type {kind!r}")
            case "short_factor" | "long_factor":
                if not isinstance(value, Sequence) or len(value) != dim // 2:
                    raise ValueError(f"{label}: expected {dim // 2} numbers, got {value!r}")
                for i, x in enumerate(value):
                    _number(f"{label}[{i}]", x)
            case "original_max_position_embeddings":
                check.count(label, value, minimum=2)
            case "truncate":
                check.flag(label, value)
            case "mscale" | "mscale_all_dim":
                check.finite(label, value, minimum=0.0)
            case "rope_theta":
                _number(label, value, above=1.0)
            case _:
                _number(label, value)


def _yarn(
    dim: int,
    base: float,
    original: int,
    factor: float,
    beta_fast: float = 32,
    beta_slow: float = 1,
    truncate: bool = True,
) -> Tensor:
    """YaRN (Peng et al., arXiv 2309.00071): interpolate slow dims only, with a ramp between."""

    def dim_of(rotations: float) -> float:
        return dim * math.log(original / (rotations * 2 * math.pi)) / (2 * math.log(base))

    low, high = dim_of(beta_fast), dim_of(beta_slow)
    if truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, dim - 1)
    if low == high:
        high += 0.001
    keep = 1 - ((_float32(range(dim // 2)) - low) / (high - low)).clamp(0, 1)
    wavelength = base ** _exponents(dim)
    return 1.0 / (factor * wavelength) * (1 - keep) + 1.0 / wavelength * keep


def _yarn_attention(fields: Mapping[str, Any]) -> float:
    def mscale(weight: float) -> float:
        factor = fields["factor"]
        return 1.0 if factor <= 1 else 0.1 * weight * math.log(factor) + 1.0

    if "attention_factor" in fields:
        return fields["attention_factor"]
    over, under = fields.get("mscale"), fields.get("mscale_all_dim")
    return mscale(over) / mscale(under) if over and under else mscale(1)


def _longrope_attention(factor: float, original: int) -> float:
    """LongRoPE (Ding et al., arXiv 2402.13753)."""
    return 1.0 if factor <= 1 else math.sqrt(1 + math.log(factor) / math.log(original))


def _llama3(
    inv_freq: Tensor, original: int, factor: float, low_freq_factor: float, high_freq_factor: float
) -> Tensor:
    """Llama 3.1 (arXiv 2407.21783): long waves slowed by ``factor``, a smooth band between."""
    wavelength = 2 * math.pi / inv_freq
    slowed = torch.where(wavelength > original / low_freq_factor, inv_freq / factor, inv_freq)
    smooth = (original / wavelength - low_freq_factor) / (high_freq_factor - low_freq_factor)
    between = (1 - smooth) * slowed / factor + smooth * slowed
    short, long = wavelength < original / high_freq_factor, wavelength > original / low_freq_factor
    return torch.where(short | long, slowed, between)
