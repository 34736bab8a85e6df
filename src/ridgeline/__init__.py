"""Exact attention that does more work per byte, from a laptop's CPU to a Hopper GPU.

The names below load on first use, so that ``import ridgeline`` costs little more than torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

_EXPORTS = {
    "ridgeline.ops.attention": ["attention", "fp8", "subtree_end"],
    "ridgeline.ops.paged_decode": ["paged_decode"],
    "ridgeline.ops.tied_decode": ["tied_decode"],
    "ridgeline.ops.merge": ["merge"],
    "ridgeline.layers": [
        "GroupedQueryAttention",
        "GroupedTiedAttention",
        "GroupedLatentAttention",
    ],
    "ridgeline.cache": ["BlockManager", "CacheSpec", "PagedCache"],
    "ridgeline.models": ["RidgelineConfig", "RidgelineForCausalLM"],
}
_MODULE_OF = {name: module for module, names in _EXPORTS.items() for name in names}
__all__ = [
    "BlockManager",
    "CacheSpec",
    "GroupedLatentAttention",
    "GroupedQueryAttention",
    "GroupedTiedAttention",
    "PagedCache",
    "RidgelineConfig",
    "RidgelineForCausalLM",
    "__version__",
    "attention",
    "fp8",
    "merge",
    "paged_decode",
    "subtree_end",
    "tied_decode",
]

if TYPE_CHECKING:
    from ridgeline.cache import BlockManager, CacheSpec, PagedCache
    from ridgeline.layers import (
        GroupedLatentAttention,
        GroupedQueryAttention,
        GroupedTiedAttention,
    )
    from ridgeline.models import RidgelineConfig, RidgelineForCausalLM
    from ridgeline.ops.attention import attention, fp8, subtree_end
    from ridgeline.ops.merge import merge
    from ridgeline.ops.paged_decode import paged_decode
    from ridgeline.ops.tied_decode import tied_decode


def __getattr__(name: str) -> Any:
    if name not in _MODULE_OF:
        raise AttributeError(f"module 'ridgeline' has no attribute {name!r}")
    value = getattr(import_module(_MODULE_OF[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
