"""What share of its roofs software reaches, and what it costs beside them."""

from dataclasses import dataclass, field
from pathlib import Path

from ridgeline.ops.common import check
from ridgeline.roofline import fields


@dataclass(frozen=True)
class Kernel:
    """A decode kernel: ``fixed`` seconds a call, then the slower of its two roofs' shares.

    Args:
        memory, compute: shares of bandwidth and of the dense rate that it reaches.
        fixed: seconds of a call beside its tokens: launch, ramp, merge of splits.
        tile_rows: query rows of a cached head are padded to a multiple of it.
        blocks: thread blocks that run at once. A batch with fewer tiles is split along its
            tokens, and each split writes a partial output that a merge reads again; 0 for never.
    """

    memory: float = 0.85
    compute: float = 0.65
    fixed: float = 5e-6
    tile_rows: int = 1
    blocks: int = 0

    def __post_init__(self) -> None:
        fields.share(memory=self.memory, compute=self.compute)
        check.finite("fixed", self.fixed, minimum=0.0)
        check.count("tile_rows", self.tile_rows, minimum=1)
        check.count("blocks", self.blocks)


@dataclass(frozen=True)
class Efficiency:
    """Shares of the roofs, in (0, 1], and overheads in seconds.

    The defaults are assumptions for a tuned GPU engine; ``published.CALIBRATED`` and
    ``measured`` have constants that were fitted and measured.

    Args:
        linear_memory, linear_compute: of matrix products with weights, bound by their bytes and
            by their FLOPs.
        decode: the decode kernel; ``prefill``: share of the dense rate of prefill attention.
        link: of the links' rate, by collectives.
        layer_overhead, step_overhead: beside the kernels, of a layer and of a step.
        memory_fraction: of the device's memory, for weights and cache.
        absorbed_prefill: a latent variant's chunk with cached tokens before it attends over the
            latents themselves, with the wider heads of the absorbed form.
    """

    linear_memory: float = 0.85
    linear_compute: float = 0.6
    decode: Kernel = field(default_factory=Kernel)
    prefill: float = 0.6
    link: float = 0.75
    layer_overhead: float = 10e-6
    step_overhead: float = 1e-3
    memory_fraction: float = 0.9
    absorbed_prefill: bool = False

    def __post_init__(self) -> None:
        for name in ("linear_memory", "linear_compute", "prefill", "link", "memory_fraction"):
            fields.share(**{name: getattr(self, name)})
        check.finite("layer_overhead", self.layer_overhead, minimum=0.0)
        check.finite("step_overhead", self.step_overhead, minimum=0.0)
        check.flag("absorbed_prefill", self.absorbed_prefill)


def load(path: Path) -> Efficiency:
    """A TOML file with fields of ``Efficiency``, ``decode`` a table with those of ``Kernel``.

    Raises:
        ValueError, TypeError: a field is unknown or impossible; the message names it.
    """
    table = fields.read_toml(path)
    if isinstance(table.get("decode"), dict):
        table["decode"] = fields.build(Kernel, f"{path.name} [decode]", table["decode"])
    return fields.build(Efficiency, path.name, table)
