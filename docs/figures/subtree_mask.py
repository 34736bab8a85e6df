"""Which keys each query of a preference pair sees, by ``subtree_end``."""

import torch
from matplotlib.figure import Figure
from torch import Tensor

from ridgeline import subtree_end

PROMPT, CHOSEN, REJECTED = 6, 4, 3


def data() -> Tensor:
    """``[L, L]`` bool: query i sees key j."""
    ends = subtree_end.of_pair(PROMPT, CHOSEN, REJECTED).subtree_end
    query, key = torch.arange(len(ends))[:, None], torch.arange(len(ends))
    return (key <= query) & (query < ends)


def draw() -> Figure:
    figure = Figure(figsize=(4.4, 3.8), layout="constrained")
    axes = figure.subplots()
    seen = data()
    axes.imshow(seen.numpy(), cmap="Greens", vmin=0, vmax=1.6)
    axes.set_xticks(range(len(seen)), range(len(seen)), fontsize=8)
    labels = ["prompt"] * PROMPT + ["chosen"] * CHOSEN + ["prompt[-1]"] + ["rejected"] * REJECTED
    axes.set_yticks(range(len(seen)), labels, fontsize=8)
    axes.set_xlabel("key")
    axes.set_ylabel("query")
    return figure
