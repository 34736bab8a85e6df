"""Arithmetic intensity of decode steps on the rooflines of devices."""

from matplotlib.figure import Figure

from ridgeline.bench.shapes import DecodeShape
from ridgeline.roofline.hardware import Hardware, data_sheets

DEVICES = ("H20", "H100", "H200")
STEPS = {
    "MHA": DecodeShape("mha", 128, 128, 128, 1, 8192),
    "GQA-8": DecodeShape("gqa", 128, 8, 128, 1, 8192),
    "GTA-8": DecodeShape("gta", 128, 8, 128, 1, 8192),
    "GLA-2": DecodeShape("gla", 128, 2, 128, 1, 8192),
    "MLA": DecodeShape("mla", 128, 1, 128, 1, 8192),
}


def data() -> dict[str, float]:
    """FLOP a byte of a step of 128 query heads over a BF16 cache."""
    return {name: step.intensity for name, step in STEPS.items()}


def attainable(device: Hardware, intensity: float) -> float:
    """BF16 FLOP a second at ``intensity``."""
    return min(device.bf16, device.bandwidth * intensity)


def draw() -> Figure:
    figure = Figure(figsize=(6.4, 3.8), layout="constrained")
    axes = figure.subplots()
    ends = (0.7, 700)
    for name in DEVICES:
        device = data_sheets()[name]
        corners = (ends[0], device.bf16 / device.bandwidth, ends[1])
        axes.plot(corners, [attainable(device, x) / 1e12 for x in corners], label=name)
    for name, intensity in data().items():
        axes.axvline(intensity, color="grey", lw=0.8, ls=":")
        axes.text(intensity, 1.1, name, rotation=90, va="bottom", ha="right", fontsize=8)
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_ylim(1, 2000)
    axes.set_xlabel("FLOP a byte of cache, 128 query heads, one query token")
    axes.set_ylabel("TFLOP/s, data sheets")
    axes.grid(alpha=0.3)
    axes.legend(loc="upper left")
    return figure
