"""Ahead-of-time compilation of Gluon kernels for SM90, and what they take of it, without a GPU.

``python -m ridgeline.testing.gluon_aot MODULE:FUNCTION`` prints the resources of every launch that
``FUNCTION()`` gives as a dict of names to ``Launch``; ``--write PATH`` writes them. Must not run
under Triton's interpreter.
"""

import argparse
import json
import re
import subprocess
import tempfile
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
import triton
from torch import Tensor
from triton.backends.compiler import GPUTarget

from ridgeline.testing.gluon.versions import GluonASTSource, TensorDescriptor

_TYPES = {
    torch.float64: "fp64",
    torch.float32: "fp32",
    torch.bfloat16: "bf16",
    torch.float16: "fp16",
    torch.float8_e4m3fn: "fp8e4nv",
    torch.float8_e5m2: "fp8e5",
    torch.int64: "i64",
    torch.int32: "i32",
    torch.int8: "i8",
    torch.uint8: "u8",
}
_OPCODE = re.compile(r"^\s+/\*[0-9a-f]+\*/\s+(?:@!?U?P\w+\s+)?([A-Z][\w.]*)", re.MULTILINE)
_LINE = re.compile(r"^\s+/\*([0-9a-f]+)\*/.*$", re.MULTILINE)
_BRANCH = re.compile(r"^\s+/\*([0-9a-f]+)\*/.*\bBRA\b[^;]*?0x([0-9a-f]+)", re.MULTILINE)
_TOOLS = Path(triton.__file__).parent / "backends/nvidia/bin"


@dataclass(frozen=True)
class Launch:
    """A kernel and the arguments to compile it for: CPU tensors, descriptors, numbers."""

    kernel: Any
    arguments: dict[str, Any]
    options: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Resources:
    """What a compiled kernel takes: a thread's registers and bytes of stack, spilled loads and
    stores, a block's bytes of shared memory and warps; counts of its SASS instructions."""

    registers: int
    stack: int
    spills: int
    shared: int
    warps: int
    instructions: dict[str, int]

    def count(self, opcode: str) -> int:
        """Instructions of an opcode, such as ``HGMMA`` or ``HGMMA.64x16x16``."""
        return sum(n for name, n in self.instructions.items() if _has(name, opcode))


def _has(name: str, opcode: str) -> bool:
    return name == opcode or name.startswith(opcode + ".")


def launch(kernel: Any, *args: Any, num_warps: int = 4, **kwargs: Any) -> Launch:
    """With arguments as for ``ridgeline.testing.gluon.run``."""
    names = [param.name for param in kernel.params]
    given = dict(zip(names, args, strict=False)) | kwargs
    if len(args) > len(names) or given.keys() - set(names):
        raise ValueError(f"{kernel.fn.__name__}: expected arguments {names}, got {list(given)}")
    return Launch(kernel, given, {"num_warps": num_warps})


def compiled(launch: Launch, arch: int = 90) -> Any:
    """The kernel as the launch would compile it: aligned pointers, integers specialised."""
    signature, constants, attributes = {}, {}, {}
    for i, param in enumerate(launch.kernel.params):
        value = launch.arguments[param.name]
        if param.is_constexpr or value is None or (type(value) is int and value == 1):
            signature[param.name], constants[param.name] = "constexpr", value
            continue
        signature[param.name] = _type(value)
        if isinstance(value, Tensor) or (type(value) is int and value % 16 == 0):
            attributes[(i,)] = [["tt.divisibility", 16]]
    source = GluonASTSource(launch.kernel, signature, constants, attributes)
    return triton.compile(source, target=GPUTarget("cuda", arch, 32), options=launch.options)


def _type(value: Any) -> str:
    if isinstance(value, TensorDescriptor):
        dtype, block = _TYPES[value.base.dtype], list(value.block_shape)
        return f"tensordesc<{dtype}{block},{value.layout!r}>"
    if isinstance(value, Tensor):
        return "*" + _TYPES[value.dtype]
    if isinstance(value, bool):
        return "i1"
    if isinstance(value, float):
        return "fp32"
    if isinstance(value, int):
        return "i32" if -(2**31) <= value < 2**31 else "i64"
    raise TypeError(f"expected a tensor, a descriptor or a number, got {value!r}")


def resources(binary: Any) -> Resources:
    """Of a compiled kernel, from its machine code."""
    usage, code = disassembled(binary)
    registers, stack = (int(re.search(rf"{name}:(\d+)", usage)[1]) for name in ("REG", "STACK"))
    counts = instructions(code)
    spills = sum(n for name, n in counts.items() if _has(name, "LDL") or _has(name, "STL"))
    metadata = binary.metadata
    return Resources(registers, stack, spills, metadata.shared, metadata.num_warps, counts)


def disassembled(binary: Any) -> tuple[str, str]:
    """What ``cuobjdump`` says of a compiled kernel: its resources, and its SASS."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(binary.asm["cubin"])
        file.flush()
        return _tool("-res-usage", file.name), _tool("-sass", file.name)


def loops(code: str, opcode: str) -> list[str]:
    """SASS of each innermost loop with an instruction of ``opcode``.

    A jump back from behind a loop into it, as for another look at a barrier, makes no loop.
    """
    jumps = [(int(b, 16), int(a, 16)) for a, b in _BRANCH.findall(code) if int(b, 16) < int(a, 16)]
    whole = [x for x in jumps if not any(y[0] <= x[0] <= y[1] < x[1] for y in jumps)]
    lines = [(int(line[1], 16), line[0]) for line in _LINE.finditer(code)]
    bodies = {x: "\n".join(text for at, text in lines if x[0] <= at <= x[1]) for x in whole}
    found = [x for x in whole if any(_has(name, opcode) for name in _OPCODE.findall(bodies[x]))]
    inner = [x for x in found if not any(x[0] <= y[0] and y[1] <= x[1] and x != y for y in found)]
    return [bodies[x] for x in sorted(inner)]


def instructions(code: str) -> dict[str, int]:
    """Counts of instructions in SASS."""
    return dict(sorted(Counter(_OPCODE.findall(code)).items()))


def _tool(option: str, path: str) -> str:
    command = [_TOOLS / "cuobjdump", option, path]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def reports(launches: dict[str, Launch]) -> dict[str, Resources]:
    return {name: resources(compiled(launch)) for name, launch in launches.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("launches", help="MODULE:FUNCTION that returns a dict of launches")
    parser.add_argument("--write", type=Path, help="JSON file to write")
    options = parser.parse_args()
    module, _, name = options.launches.partition(":")
    function: Callable[[], dict[str, Launch]] = getattr(import_module(module), name)
    found = {key: asdict(value) for key, value in reports(function()).items()}
    text = json.dumps(found, indent=1) + "\n"
    if options.write:
        options.write.write_text(text)
    else:
        print(text, end="")


if __name__ == "__main__":
    main()
