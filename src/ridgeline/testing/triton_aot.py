"""Ahead-of-time compilation of the Triton kernels, and what they take of a GPU, without one.

``python -m ridgeline.testing.triton_aot`` prints the resources of every kernel for representative
calls and architectures; ``--write PATH`` writes them. Must not run under Triton's interpreter.
"""

import argparse
import json
import re
import subprocess
import tempfile
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any
from unittest import mock

import torch
import triton
from torch import Tensor
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from triton.runtime.jit import JITFunction

from ridgeline.ops.common import device
from ridgeline.ops.merge.triton import merge
from ridgeline.ops.paged_decode import triton as paged
from ridgeline.ops.tied_decode import triton as tied

_TYPES = {
    torch.bfloat16: "*bf16",
    torch.float16: "*fp16",
    torch.float32: "*fp32",
    torch.float8_e4m3fn: "*fp8e4nv",
    torch.uint8: "*u8",
    torch.int32: "*i32",
}
_INSTRUCTIONS = {
    "mma.sync": r"mma\.sync\.",
    "wgmma": r"wgmma\.mma_async\.",
    "tcgen05": r"tcgen05\.mma\.",
    "cp.async": r"cp\.async\.c[ag]\.",
    "prefetch": r"prefetch\.global\.L2",
}
BF16, FP8 = torch.bfloat16, torch.float8_e4m3fn
EVERYWHERE, HOPPER = (80, 90, 100), (90,)
# What to compile for which architectures. Arguments: L_q, h_q, h_kv or h_s, dims, dtype of the
# cache, page size.
CALLS = {
    "gqa-32-8-d128": (EVERYWHERE, lambda: _paged(1, 32, 8, 128, BF16, 64, prefetch=2)),
    "gqa-page-1-window": (HOPPER, lambda: _paged(2, 32, 8, 128, BF16, 1, window=1024)),
    "mqa-32-d64-fp8": ((80, 90), lambda: _paged(1, 32, 1, 64, FP8, 64, softcap=30.0)),
    "gta-32-8-d128": (EVERYWHERE, lambda: _tied(1, 32, 8, (64, 64, 128), BF16, 64)),
    "mla-16": (HOPPER, lambda: _tied(1, 16, 1, (512, 64, 512), BF16, 64, prefetch=1)),
    "mla-128": ((90, 100), lambda: _tied(1, 128, 1, (512, 64, 512), BF16, 64)),
    "gla-2-of-128-fp8": (HOPPER, lambda: _tied(1, 128, 2, (256, 64, 256), FP8, 1)),
    "merge-d128": (EVERYWHERE, lambda: _merge(128)),
}


@dataclass(frozen=True)
class Resources:
    """What a compiled kernel takes: a thread's registers and stack (spills), a program's bytes."""

    registers: int
    stack: int
    shared: int
    warps: int
    instructions: dict[str, int]


@dataclass(frozen=True)
class Launch:
    """A recorded call of a kernel."""

    kernel: JITFunction
    arguments: dict[str, Any]
    options: dict[str, int]


def recorded(call: Callable[[], Any], arch: int) -> list[Launch]:
    """The kernels that a call launches on a device of ``arch``; none of them runs."""
    launches = []

    def run(self: JITFunction, *args: Any, grid: Any, warmup: bool, **kwargs: Any) -> None:
        options = {k: kwargs.pop(k) for k in ("num_warps", "num_stages") if k in kwargs}
        arguments = dict(zip(self.arg_names, args, strict=False)) | kwargs
        launches.append(Launch(self, arguments, options))

    with (
        mock.patch.object(JITFunction, "run", run),
        mock.patch.object(device, "arch", return_value=arch),
    ):
        call()
    return launches


def compiled(launch: Launch, arch: int) -> Any:
    """The kernel as the launch would compile it: aligned pointers, integers specialised."""
    signature, constants, attributes = {}, {}, {}
    for i, param in enumerate(launch.kernel.params):
        value = launch.arguments[param.name]
        fixed = param.is_constexpr or value is None or (isinstance(value, int) and value == 1)
        if fixed:
            signature[param.name], constants[param.name] = "constexpr", value
        elif isinstance(value, Tensor):
            signature[param.name] = _TYPES[value.dtype]
        elif isinstance(value, float):
            signature[param.name] = "fp32"
        else:
            signature[param.name] = "i32" if abs(value) < 2**31 else "i64"
        if (
            not fixed
            and not isinstance(value, float)
            and (isinstance(value, Tensor) or value % 16 == 0)
        ):
            attributes[(i,)] = [["tt.divisibility", 16]]
    source = ASTSource(launch.kernel, signature, constants, attributes)
    return triton.compile(source, target=GPUTarget("cuda", arch, 32), options=launch.options)


def resources(binary: Any) -> Resources:
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(binary.asm["cubin"])
        file.flush()
        tool = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"
        command = [tool, "-res-usage", file.name]
        text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    registers, stack = (int(re.search(rf"{name}:(\d+)", text)[1]) for name in ("REG", "STACK"))
    counts = {name: len(re.findall(p, binary.asm["ptx"])) for name, p in _INSTRUCTIONS.items()}
    found = {name: count for name, count in counts.items() if count}
    return Resources(registers, stack, binary.metadata.shared, binary.metadata.num_warps, found)


def report(name: str, arch: int) -> dict[str, Resources]:
    """The resources of every kernel that a call of ``CALLS`` launches."""
    return {
        f"{name}/{launch.kernel.__name__}/sm_{arch}": resources(compiled(launch, arch))
        for launch in recorded(CALLS[name][1], arch)
    }


def reports(processes: int = 1) -> dict[str, Resources]:
    """Of all calls and architectures; kernels that two calls share are compiled once a process."""
    pairs = [(name, arch) for name, (archs, _) in CALLS.items() for arch in archs]
    if processes == 1:
        found = [report(*pair) for pair in pairs]
    else:
        with ProcessPoolExecutor(processes) as pool:
            found = list(pool.map(report, *zip(*pairs, strict=True)))
    return {key: value for part in found for key, value in part.items()}


def _table(page_size: int, lengths: int = 4, tokens: int = 8192) -> tuple[Tensor, Tensor]:
    table = torch.zeros(lengths, tokens // page_size, dtype=torch.int32)
    return table, torch.zeros(lengths, dtype=torch.int32)


def _merge(dim: int) -> None:
    merge(torch.zeros(4, 8, dim, dtype=BF16), torch.zeros(4, 8))


def _paged(
    query_len: int,
    heads: int,
    kv_heads: int,
    dim: int,
    cache_dtype: torch.dtype,
    page_size: int,
    *,
    window: int = -1,
    softcap: float = 0.0,
    prefetch: int = 0,
) -> None:
    table, lengths = _table(page_size)
    q = torch.empty(lengths.shape[0], query_len, heads, dim, dtype=BF16)
    cache = torch.empty(4, page_size, kv_heads, dim, dtype=cache_dtype)
    scale = torch.ones(kv_heads) if cache_dtype == FP8 else None
    config = replace(paged.config_for(q, cache, dim, scale, scale), prefetch=prefetch)
    options = (dim**-0.5, True, window, -1, softcap, scale, scale, 4 if softcap else 0)
    out, lse = torch.empty_like(q), torch.empty(q.shape[:3])
    paged.paged_decode(q, cache, cache, table, lengths, *options, out, lse, config=config)


def _tied(
    query_len: int,
    heads: int,
    state_heads: int,
    dims: tuple[int, int, int],
    cache_dtype: torch.dtype,
    page_size: int,
    *,
    prefetch: int = 0,
) -> None:
    nope, rope, state = dims
    table, lengths = _table(page_size)
    q = torch.empty(lengths.shape[0], query_len, heads, nope + rope, dtype=BF16)
    q_nope, q_rope = q[..., :nope], q[..., nope:]
    cache = torch.empty(4, page_size, state_heads, state, dtype=cache_dtype)
    rope_cache = torch.empty(4, page_size, rope, dtype=BF16)
    scale = torch.ones(4, page_size, state_heads, state // 128) if cache_dtype == FP8 else None
    config = replace(tied.config_for(q_nope, q_rope, cache, scale), prefetch=prefetch)
    out, lse = torch.empty(*q.shape[:3], state, dtype=BF16), torch.empty(q.shape[:3])
    inputs = (q_nope, q_rope, cache, rope_cache, table, lengths)
    tied.tied_decode(*inputs, 192**-0.5, True, scale, 0, out, lse, config=config)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--write", type=Path, help="JSON file to write")
    parser.add_argument("--processes", type=int, default=1)
    options = parser.parse_args()
    found = {key: asdict(value) for key, value in reports(options.processes).items()}
    lines = [f"  {json.dumps(key)}: {json.dumps(value)}" for key, value in found.items()]
    text = "{\n" + ",\n".join(lines) + "\n}\n"
    if options.write:
        options.write.write_text(text)
    else:
        print(text, end="")


if __name__ == "__main__":
    main()
