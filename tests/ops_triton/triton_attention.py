"""Small cases of ``attention`` with several tiles, and tiles for them."""

from dataclasses import replace
from typing import Any

import torch

from ridgeline.testing import AttentionCase, attention_case
from ridgeline.testing.layouts import clone

TILES = ["triton-16", "triton-32x16", "triton-16x32"]
PLAIN = {"magnitude": 1.0, "softcap": 0.0, "window": None, "softmax_scale": None, "tree": None}
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def small(seed: int, **chosen: Any) -> AttentionCase:
    """A case of three short sequences that still have several tiles."""
    shape = {"kv_heads": 1, "group": 2, "dim": 24, "value_dim": 40, "dtype": torch.float32}
    shape |= {"packed": True, "lengths": [(33, 33), (0, 3), (20, 37)], "with_dlse": True}
    return attention_case(seed, **PLAIN | shape | {"strides": True, "causal": True} | chosen)


def changed(case: AttentionCase, **garbage: tuple[Any, float]) -> AttentionCase:
    """The case with ``x[index] = value`` for every ``x=(index, value)``, strides kept."""
    made = {}
    for name, (index, value) in garbage.items():
        made[name] = clone(getattr(case, name))
        made[name][index] = value
    return replace(case, **made)
