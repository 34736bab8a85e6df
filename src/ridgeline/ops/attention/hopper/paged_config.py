"""Which calls of ``paged_decode`` the forward kernel takes, and its tiles; no Triton needed."""

from dataclasses import replace
from math import gcd

from torch import Tensor

from ridgeline.ops.attention.hopper.config import MAX_DIM, ROWS, ForwardConfig, forward_config
from ridgeline.ops.common import device, hopper_config

LEAST_ROWS = 8  # of a page that are copied at a time: what the unit swizzles
# Of a thread: a producer that looks pages up spills less with more than without pages.
REGISTERS = {"consumer_regs": 232, "producer_regs": 40}


def part_rows(page_size: int, block_n: int) -> int:
    """Rows of a page that are one copy: as many as divide pages and tiles of keys."""
    return gcd(page_size, block_n)


def paged_config(
    q: Tensor, k_cache: Tensor, v_cache: Tensor, num_splits: int
) -> ForwardConfig | None:
    """The forward kernel's tiling of a call of ``paged_decode``; ``None``: the decode kernel's.

    The forward kernel overlaps softmax and products, but cuts no sequence. It takes queries whose
    rows fill a tile of two consumers, and with ``num_splits=0`` at least half of the processors;
    with ``num_splits=1``, where the batch must not decide, all of those. Caches are as the tensor
    memory unit reads them, in the dtype of the queries, in pages of multiples of 8 tokens.
    """
    batch, query_len, heads, dim = q.shape
    page_size, kv_heads = k_cache.shape[1:3]
    value_dim = v_cache.shape[3]
    if num_splits > 1 or k_cache.dtype != q.dtype or max(dim, value_dim) > MAX_DIM:
        return None
    config = replace(forward_config(dim, value_dim, query_len, heads // kv_heads), **REGISTERS)
    config = device.as_tuned("hopper_forward", config)
    if part_rows(page_size, config.block_n) < LEAST_ROWS:
        return None
    if hopper_config.load_of(hopper_config.BLOCK_N, (k_cache, v_cache))[0] != "tma":
        return None
    rows = query_len * config.pack
    items = batch * (heads // config.pack) * -(-rows // config.block_m)
    filled = num_splits == 1 or 2 * items >= device.processors(q)
    return config if filled and rows >= 2 * ROWS else None
