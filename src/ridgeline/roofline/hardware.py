"""What a device can do: data-sheet entries (``hardware.toml``), user files, measured machines."""

from dataclasses import dataclass
from functools import cache
from importlib import resources
from pathlib import Path

from ridgeline.roofline import fields
from ridgeline.roofline.roofs import Roofs

# Bytes of an element; "fp8" multiplies at the FP8 rate, the others at the BF16 rate.
WIDTHS = {"bf16": 2, "fp16": 2, "fp32": 4, "fp8": 1}
DATA = "hardware.toml"


@dataclass(frozen=True)
class Hardware:
    """One device of a node of equal ones.

    Args:
        bf16, fp8: dense FLOP a second; ``fp8`` is 0 where the device multiplies no FP8.
        memory: bytes.
        bandwidth: bytes a second of memory read.
        link: bytes a second that a device sends to the others of its node; 0 for a lone device.
        link_latency: seconds of a collective that moves next to nothing.
    """

    name: str
    bf16: float
    memory: float
    bandwidth: float
    fp8: float = 0.0
    link: float = 0.0
    link_latency: float = 10e-6

    def __post_init__(self) -> None:
        fields.positive(bf16=self.bf16, memory=self.memory, bandwidth=self.bandwidth)
        fields.positive(link_latency=self.link_latency)
        for name in ("fp8", "link"):
            if getattr(self, name) != 0:
                fields.positive(**{name: getattr(self, name)})

    def flops(self, dtype: str) -> float:
        """FLOP a second of products of ``dtype``; FP8 operands are widened where it has no FP8."""
        return self.fp8 if dtype == "fp8" and self.fp8 else self.bf16

    def roofs(self, dtype: str = "bf16") -> Roofs:
        return Roofs(memory=self.bandwidth, gemm=self.flops(dtype))


@cache
def data_sheets() -> dict[str, Hardware]:
    """The entries that the package ships, by name."""
    path = resources.files("ridgeline.roofline") / DATA
    with resources.as_file(path) as file:
        return _entries(file)


def find(which: str) -> Hardware:
    """A data sheet's entry by name, or the only entry of a TOML file.

    Raises:
        ValueError: no entry has this name, or the file's fields are wrong; what is possible is
            named.
    """
    sheets = {name.lower(): entry for name, entry in data_sheets().items()}
    if which.lower() in sheets:
        return sheets[which.lower()]
    path = Path(which)
    if path.suffix == ".toml" and path.is_file():
        found = _entries(path)
        if len(found) != 1:
            raise ValueError(f"{path}: expected one entry, found {', '.join(found) or 'none'}")
        return next(iter(found.values()))
    raise ValueError(
        f"hardware: expected one of {', '.join(data_sheets())}, 'measured', a CSV or JSON file of "
        f"`ridgeline bench decode`, or a TOML file, got {which!r}"
    )


def _entries(path: Path) -> dict[str, Hardware]:
    tables = fields.read_toml(path)
    for name, table in tables.items():
        if not isinstance(table, dict):
            raise ValueError(f"{path}: expected tables like [H100], found the field {name!r}")
    return {
        name: fields.build(Hardware, f"{path.name} [{name}]", {"name": name, **table})
        for name, table in tables.items()
    }
