"""Ahead-of-time compilation of the Triton kernels, and what they take of a GPU, without one.

``python -m ridgeline.testing.triton_aot`` prints the resources of every kernel for the calls of
``triton_aot_decode`` and ``triton_aot_attention``, on the architectures that are given there;
``--arch 80 90 100`` on these, ``--calls gqa d256`` of the calls whose names have one of these
words; ``--write PATH`` writes them. Must not run under Triton's interpreter.
"""

import argparse
import json
import re
import subprocess
import tempfile
from collections.abc import Callable
from dataclasses import asdict, dataclass
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
# Light kernels: compiled for the first call of an architecture that has them.
ONCE = ("combine_kernel", "delta_kernel", "ends_kernel", "lists_kernel")
# Architectures that a call is compiled for in the tests, and the call.
Calls = dict[str, tuple[tuple[int, ...], Callable[[], None]]]


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


def every_call() -> Calls:
    """By name."""
    from ridgeline.testing import triton_aot_attention, triton_aot_decode

    return triton_aot_decode.CALLS | triton_aot_attention.CALLS


def report(call: Callable[[], Any], arch: int, known: set[tuple[str, int]]) -> dict[str, Resources]:
    """The resources of every kernel that a call launches, by the kernel's name.

    Without kernels of ``ONCE`` that are ``known`` for the architecture; new ones become so.
    """
    launches = {x.kernel.__name__: x for x in recorded(call, arch)}
    launches = {name: x for name, x in launches.items() if (name, arch) not in known}
    known |= {(name, arch) for name in launches if name in ONCE}
    return {name: resources(compiled(launch, arch)) for name, launch in launches.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--write", type=Path, help="JSON file to write")
    parser.add_argument("--arch", type=int, nargs="*", help="in place of those of each call")
    parser.add_argument("--calls", nargs="*", default=[""], help="words of their names")
    options = parser.parse_args()
    found, known = {}, set()
    for name, (archs, call) in every_call().items():
        for arch in options.arch or archs:
            if any(word in name for word in options.calls):
                for kernel, taken in report(call, arch, known).items():
                    found[f"{name}/{kernel}/sm_{arch}"] = asdict(taken)
    lines = [f"  {json.dumps(key)}: {json.dumps(value)}" for key, value in found.items()]
    text = "{\n" + ",\n".join(lines) + "\n}\n"
    if options.write:
        options.write.write_text(text)
    else:
        print(text, end="")


if __name__ == "__main__":
    main()
