"""How a model lies on the devices of a node."""

from dataclasses import dataclass

from ridgeline.ops.common import check
from ridgeline.roofline.model import ModelShape


@dataclass(frozen=True)
class Parallelism:
    """``dp`` groups of ``tp`` ranks attend each for requests of their own; the MLPs, or experts,
    lie over all ``tp * dp`` devices (data-parallel attention, as SGLang has it).

    ``dp=1`` is pure tensor parallelism.
    """

    tp: int = 1
    dp: int = 1

    def __post_init__(self) -> None:
        check.count("tp", self.tp, minimum=1)
        check.count("dp", self.dp, minimum=1)

    @property
    def devices(self) -> int:
        return self.tp * self.dp

    @property
    def label(self) -> str:
        return f"TP{self.tp}" + (f",DP{self.dp}" if self.dp > 1 else "")

    def check_fits(self, model: ModelShape) -> None:
        """Raises ``ValueError`` where the heads or MLPs of ``model`` cannot be shared out so."""
        if model.heads % self.tp:
            possible = [n for n in range(1, model.heads + 1) if model.heads % n == 0]
            raise ValueError(
                f"tp: expected a divisor of the {model.heads} query heads "
                f"({', '.join(map(str, possible))}), got {self.tp}"
            )
        shared = model.kv_heads
        if self.tp % shared and shared % self.tp:
            raise ValueError(
                f"tp: expected a divisor or a multiple of the {shared} cached heads, got {self.tp}"
            )
        width = model.intermediate
        if model.experts is not None and model.experts.count % self.devices:
            width = model.experts.intermediate
        if width % self.devices:
            raise ValueError(
                f"tp * dp: expected a divisor of the MLP's width ({width}), got {self.devices}"
            )
