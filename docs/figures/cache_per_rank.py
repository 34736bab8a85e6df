"""Bytes of cache a token, layer and rank over the tensor-parallel degree."""

import torch
from matplotlib.figure import Figure

from ridgeline import CacheSpec

RANKS = (1, 2, 4, 8)
# The XL model of arXiv 2505.21487: 16 query heads of 128.
SPECS = {
    "MHA": lambda tp: CacheSpec.gqa(16, 128, tp=tp),
    "GQA-4": lambda tp: CacheSpec.gqa(4, 128, tp=tp),
    "MLA": lambda tp: CacheSpec.mla(512, 64, tp=tp),
    "GLA-2": lambda tp: CacheSpec.gla(2, 256, 64, tp=tp),
    "GTA-4": lambda tp: CacheSpec.gta(4, 128, 64, tp=tp),
}


def data() -> dict[str, list[int]]:
    """Bytes in BF16 of each variant at each of ``RANKS``."""
    return {
        name: [spec(tp).bytes_per_token(torch.bfloat16) for tp in RANKS]
        for name, spec in SPECS.items()
    }


def draw() -> Figure:
    figure = Figure(figsize=(6.4, 3.6), layout="constrained")
    axes = figure.subplots()
    for name, nbytes in data().items():
        axes.plot(RANKS, nbytes, marker="o", label=name)
    axes.set_xscale("log", base=2)
    axes.set_yscale("log", base=2)
    axes.set_xticks(RANKS, [str(tp) for tp in RANKS])
    axes.set_yticks(ticks := [2**n for n in range(8, 14)], [f"{tick:,}" for tick in ticks])
    axes.set_xlabel("tensor-parallel ranks")
    axes.set_ylabel("bytes a token, layer and rank")
    axes.grid(alpha=0.3)
    axes.legend()
    return figure
