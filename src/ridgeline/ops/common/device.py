"""What can be said about Triton, the GPU and tile sizes without importing Triton."""

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cache, wraps
from importlib.util import find_spec
from typing import Literal, ParamSpec, TypeVar, get_args

import torch
from torch import Tensor

from ridgeline.ops.common import check, masks, paging

MAX_DIM = 1024
MIN_ARCH = 80
FP8_ARCH = 89  # the first with instructions for e4m3
INTERPRETED_ARCH = 90
INTERPRETED_PROCESSORS = 3  # few, so that sequences are cut between programs
_DTYPES = (torch.bfloat16, torch.float16, torch.float32)
# Shared memory that one program may use, by compute capability, less what Triton itself needs.
_SHARED_BYTES = {80: 160 << 10, 86: 96 << 10, 89: 96 << 10, 90: 224 << 10, 100: 224 << 10}


Kernel = Literal[
    "decode", "hopper_decode", "forward", "hopper_forward", "hopper_backward", "dkdv", "dq"
]
_TUNED: dict[str, dict[str, int]] = {}
Config = TypeVar("Config")
P = ParamSpec("P")
R = TypeVar("R")


@dataclass(frozen=True)
class DecodeConfig:
    """How a decode kernel is tiled and scheduled."""

    block_m: int  # query rows of a tile
    block_n: int  # cached tokens of a tile
    num_warps: int
    num_stages: int
    prefetch: int = 0  # distance in tiles of the prefetch into L2; 0: none
    programs: int = 2  # a processor, of the balanced schedule


def unsupported(q: Tensor, cache: Tensor, widths: tuple[int, ...], interpret: bool) -> str | None:
    """Why the Triton kernels cannot run a decode of ``q`` over ``cache``, or ``None``.

    ``interpret``: whether tensors on the CPU may go to Triton's interpreter where it is active.
    It is slow, so only an explicit choice of the implementation takes it.
    """
    if q.dtype not in _DTYPES:
        have = str(q.dtype).removeprefix("torch.")
        return f"queries are bfloat16, float16 or float32, got {have}; use impl='reference'"
    if max(widths) > MAX_DIM:
        return f"head dims are at most {MAX_DIM}, got {max(widths)}; use impl='reference'"
    return _no_device(q, interpret)


def merge_unsupported(outs: Tensor, lses: Tensor) -> str | None:
    """As ``unsupported``, of ``merge``."""
    for name, x, allowed in (("outs", outs, _DTYPES), ("lses", lses, (torch.float32,))):
        if x.dtype not in allowed:
            return f"{name} are float32 or narrower, got {str(x.dtype).removeprefix('torch.')}"
    return _no_device(outs, interpret=False)


def _no_device(x: Tensor, interpret: bool) -> str | None:
    if x.is_cuda:
        if arch(x) < MIN_ARCH:
            return f"the GPU has compute capability {arch(x) / 10}, expected 8.0 or newer"
    elif not (interpret and interpreting()):
        return (
            f"tensors are on {x.device}, this implementation runs on a CUDA device (or on the CPU "
            "by Triton's interpreter: set TRITON_INTERPRET=1 before Triton is imported)"
        )
    elif x.dtype == torch.bfloat16:
        return "Triton's interpreter multiplies bfloat16 matrices wrongly; use float16 or float32"
    return None if find_spec("triton") else "Triton is not installed; `pip install triton`"


def interpreting() -> bool:
    """Whether Triton's kernels run, or would run once imported, by its interpreter."""
    kernels = sys.modules.get("ridgeline.ops.common.triton")
    if kernels is not None:
        return bool(kernels.INTERPRETED)
    return os.environ.get("TRITON_INTERPRET", "0").lower() in ("1", "true", "on", "yes")


def arch(x: Tensor) -> int:
    """Compute capability of the device of ``x`` as one number: 90 for 9.0."""
    return _properties(x.device)[0] if x.is_cuda else INTERPRETED_ARCH


def processors(x: Tensor) -> int:
    """Multiprocessors of the device of ``x``."""
    return _properties(x.device)[1] if x.is_cuda else INTERPRETED_PROCESSORS


@cache
def _properties(device: torch.device) -> tuple[int, int]:
    found = torch.cuda.get_device_properties(device)
    return 10 * found.major + found.minor, found.multi_processor_count


def pieces(width: int) -> tuple[int, int]:
    """A width as one or two tiles whose sizes are powers of two of at least 16: 576 is 512 + 64.

    Two where that leaves fewer columns of padding than one.
    """
    whole = max(16, next_power_of_2(width))
    rest = width - whole // 2
    if width <= 16 or whole // 2 + max(16, next_power_of_2(rest)) >= whole:
        return whole, 0
    return whole // 2, max(16, next_power_of_2(rest))


def tied_pieces(nope_dim: int, state_dim: int) -> tuple[int, int]:
    """The tiles of a state, cut after its key where that is a tile: GTA's 128 is 64 + 64."""
    rest = max(16, next_power_of_2(state_dim - nope_dim))
    alone = nope_dim >= 16 and nope_dim == next_power_of_2(nope_dim)
    if nope_dim < state_dim and alone and nope_dim + rest <= sum(pieces(state_dim)):
        return nope_dim, rest
    return pieces(state_dim)


def next_power_of_2(n: int) -> int:
    return 1 << max(n - 1, 0).bit_length()


def scale_bytes(scale: Tensor | None, dim: int) -> int:
    """Bytes of FP8 scales that a kernel loads a token: one a block, or one an element."""
    if scale is None or scale.dim() < 2:
        return 0
    blocks = scale.shape[3]
    whole = pieces(dim) == (dim, 0) and next_power_of_2(blocks) == blocks
    return 4 * (blocks if whole else sum(pieces(dim)))


def decode_config(
    arch: int, rows: int, loaded: int, accumulated: int, dtype: str, scales: int = 0
) -> DecodeConfig:
    """The tiling of a decode kernel.

    Nothing here is measured yet: the sizes are predictions from shared memory and registers, and
    L2 prefetch stays off until a measurement shows a gain.

    Args:
        arch: compute capability, 90 for 9.0.
        rows: query rows of one cached head, ``L_q * h_q / h_kv``.
        loaded: elements of a cached token that one program loads.
        accumulated: columns of the output.
        dtype: of the caches: "bfloat16", "float16", "float32" or "float8_e4m3".
        scales: bytes of scales that are loaded a token, beside the elements.
    """
    itemsize = {"float32": 4, "float8_e4m3": 1}.get(dtype, 2)
    # Accumulators of 64 registers a thread in eight warps. With the 128 that 64 rows of MLA take,
    # compilers spill as many to memory as a tile has bytes.
    most = 64 if accumulated <= 256 else 32 if accumulated <= 512 else 16
    if itemsize == 4 and accumulated > 128:
        most = 16
    block_m = min(most, max(16, next_power_of_2(rows)))
    num_warps = 8 if block_m == 64 or block_m * accumulated > 64 * 128 else 4
    limit = _SHARED_BYTES[max(known for known in _SHARED_BYTES if known <= arch)]
    fixed = block_m * loaded * max(itemsize, 2) * 5 // 4  # queries and probabilities
    if arch >= 100 and block_m == 64:
        fixed += 104 << 10  # tensor memory's accumulators pass through shared memory
    buffers = 3 if 90 <= arch < 100 else 2
    token = loaded * itemsize + scales
    block_n = 128 if itemsize < 4 else 32
    while block_n > 16 and (
        block_n * token > 40 << 10 or buffers * block_n * token + fixed > limit
    ):
        block_n //= 2
    # Scales of elements are applied in float32, in registers beside the accumulators.
    while scales and block_n > 16 and (block_m + block_n) * accumulated > 80 * 32 * num_warps:
        block_n //= 2
    # Without asynchronous products every warp converts an FP8 operand whole, in its registers.
    while itemsize == 1 and arch < 90 and block_n > 16 and block_n * loaded > 64 * 128:
        block_n //= 2
    # The block table is loaded as far ahead of a tile as the tile of its use.
    return DecodeConfig(block_m, block_n, num_warps, 2 * buffers + 1)


@contextmanager
def tuned(kernel: Kernel, **fields: int) -> Iterator[None]:
    """Within the block, ``fields`` of every tiling that is chosen for ``kernel`` are these.

    For benchmarks: what another tile, or prefetch, would do, through the public functions and
    autograd. Of all threads, so that gradients follow; outside the block all is as before.

    >>> with tuned("decode", prefetch=2), tuned("forward", block_n=64, num_warps=4):
    ...     ridgeline.paged_decode(q, k_cache, v_cache, block_table, cache_seqlens)

    Args:
        kernel: "decode" (``paged_decode`` and ``tied_decode`` by Triton; fields of
            ``DecodeConfig``), "hopper_decode" (fields of ``HopperConfig``; to a ``block_m`` the
            rest is chosen), or of ``attention`` "forward", "dkdv" or "dq" (fields of
            ``AttentionConfig``) "hopper_forward" (of ``ForwardConfig``) and
            "hopper_backward" (of ``BackwardConfig``).
        fields: a tile's sizes are powers of two of at least 16.

    Raises:
        ValueError: there is no such kernel, or a tile's size is not a power of two.
        TypeError: in the call inside the block, that the tiling has no such field.
    """
    if kernel not in get_args(Kernel):
        raise ValueError(f"kernel: expected one of {', '.join(get_args(Kernel))}, got {kernel!r}")
    for name, value in fields.items():
        if name.startswith("block") and value != max(16, next_power_of_2(value)):
            raise ValueError(f"{name}: expected a power of two of at least 16, got {value}")
    before = _TUNED.get(kernel, {})
    _TUNED[kernel] = before | fields
    try:
        yield
    finally:
        _TUNED[kernel] = before


def tuned_field(kernel: Kernel, name: str) -> int | None:
    """What ``tuned`` replaces a field of the tiling by, if anything."""
    return _TUNED.get(kernel, {}).get(name)


def as_tuned(kernel: Kernel, config: Config) -> Config:
    """The tiling that was chosen, with what ``tuned`` replaces."""
    return replace(config, **_TUNED.get(kernel, {}))


def launcher(launch: Callable[P, R]) -> Callable[P, R]:
    """Makes the device of a launcher's first tensor the current one: there Triton launches."""

    @wraps(launch)
    def on_its_device(*args: P.args, **kwargs: P.kwargs) -> R:
        if not args[0].is_cuda:
            return launch(*args, **kwargs)
        with torch.cuda.device(args[0].device):
            return launch(*args, **kwargs)

    return on_its_device


def check_values_of_decode(
    block_table: Tensor,
    cache_seqlens: Tensor,
    page_size: int,
    num_pages: int,
    query_len: int,
    window_left: int,
    scales: dict[str, Tensor | None],
) -> None:
    """What needs values: on the CPU, where they are at hand; a device would have to wait."""
    if block_table.device.type != "cpu":
        return
    first = [masks.first_visible(n, query_len, window_left) for n in cache_seqlens.tolist()]
    paging.check_values(block_table, cache_seqlens, page_size, num_pages, first)
    for name, scale in scales.items():
        paging.check_scale_values(name, scale)


def scale_arguments(scale: Tensor | None) -> tuple[Tensor | None, tuple[int, ...], int]:
    """A scale, its strides by page, token, head and block, and the scales of a token and head.

    -1 for a number or one a head, which hold for all tokens; 0 for no scale.
    """
    if scale is None:
        return None, (0, 0, 0, 0), 0
    if scale.dim() < 2:
        return scale, (0, 0, scale.stride(0) if scale.dim() else 0, 0), -1
    return scale, scale.stride(), scale.shape[3]


def is_fp8(cache: Tensor) -> bool:
    return cache.dtype == check.FP8


def readable(cache: Tensor) -> Tensor:
    """The cache as the device can load it: FP8 as bytes where there is no conversion."""
    return cache.view(torch.uint8) if is_fp8(cache) and arch(cache) < FP8_ARCH else cache
