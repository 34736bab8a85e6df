"""The KV cache: what a token costs, where it is stored, and which sequence owns which page."""

from ridgeline.cache.block_manager import BlockManager, OutOfBlocks
from ridgeline.cache.paged import PagedCache
from ridgeline.cache.spec import CacheSpec
from ridgeline.cache.step import CacheStep

__all__ = ["BlockManager", "CacheSpec", "CacheStep", "OutOfBlocks", "PagedCache"]
