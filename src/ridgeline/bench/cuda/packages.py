"""Other people's attention kernels for GPUs: which are installed. None is needed."""

from collections.abc import Iterator
from importlib import import_module
from importlib.util import find_spec
from types import ModuleType

# A peer's name in tables and columns, and the module that has its functions.
MODULES = {
    "flash-attn 2": "flash_attn",
    "flash-attn 3": "flash_attn_interface",
    "flash-attn 4": "flash_attn.cute",
    "flashinfer": "flashinfer",
    "flashmla": "flash_mla",
    "vllm": "vllm.vllm_flash_attn",
    "sglang": "sgl_kernel.flash_attn",
}


def installed(peer: str) -> bool:
    """Whether the package is there; it may yet fail to load."""
    return find_spec(MODULES[peer].split(".")[0]) is not None


def load(peer: str) -> ModuleType:
    """The module of an installed peer.

    Raises:
        Exception: whatever the package raises where it does not load.
    """
    return import_module(MODULES[peer])


def lines() -> Iterator[str]:
    """For ``ridgeline info``: every optional peer of the GPU benchmarks."""
    for peer, module in MODULES.items():
        yield f"{peer:<18} {'installed' if installed(peer) else 'not installed'} ({module})"


def missing_note() -> list[str]:
    """A line that names the peers that are not installed, if any."""
    found = [peer for peer in MODULES if not installed(peer)]
    return [f"Not installed, so not timed: {', '.join(found)}."] if found else []
