"""Building the CPU core with a bug planted in its C++ source.

The parts that no mutation touches are compiled once per test run and shared by its processes; a
mutation then compiles what its operation has of its file, for one instruction set, in a second or
two. Nothing is optimised: compiling costs more than running. The AVX-512 kernels run everywhere:
where the machine lacks their instructions, plain vector code stands in for them.
"""

import fcntl
import platform
import re
import subprocess
import sysconfig
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from importlib.machinery import ExtensionFileLoader
from importlib.util import module_from_spec, spec_from_loader
from pathlib import Path
from types import ModuleType

import nanobind

from ridgeline.ops.common import core

X86 = platform.machine().lower() in ("x86_64", "amd64")
CSRC = Path(__file__).parents[2] / "csrc"
NANOBIND = Path(nanobind.__file__).parent
INCLUDES = (NANOBIND / "include", NANOBIND / "ext/robin_map/include", sysconfig.get_path("include"))
COMPILE = ["c++", "-std=gnu++17", "-O0", "-fPIC", "-fopenmp", "-fvisibility=hidden"]
COMPILE += ["-fno-math-errno", "-fno-trapping-math", *(f"-I{path}" for path in INCLUDES)]
AVX2 = ["-mavx2", "-mfma", "-mf16c"]
AVX512 = [*AVX2, *(f"-mavx512{part}" for part in ("f", "bw", "dq", "vl"))]
FLAGS = {
    "portable": ["-Wno-psabi"],
    "avx2": AVX2,
    "avx512": AVX512,
    "avx512_bf16": [*AVX512, "-mavx512bf16"],
}
EMULATE = [*AVX2, "-Wno-psabi", "-include", str(Path(__file__).with_name("emulated_avx512.h"))]
EMULATED = {"avx512": EMULATE, "avx512_bf16": [*EMULATE, "-DRIDGELINE_EMULATE_BF16"]}


def instruction_sets() -> list[str]:
    """Those that can be built and run here, natively or emulated."""
    native = core.isas()
    return [isa for isa in FLAGS if isa in native or (isa in EMULATED and "avx2" in native)]


def missing_instruction_sets() -> list[str]:
    """Those that can only be emulated here."""
    return [isa for isa in instruction_sets() if isa not in core.isas()]


@dataclass(frozen=True)
class CoreMutation:
    """``old`` becomes ``new`` in ``csrc/<file>``, seen by instruction set ``isa``."""

    name: str
    file: str
    old: str
    new: str
    isa: str = "portable"
    operation: str = "decode"

    def build(self, base: Path, into: Path) -> ModuleType:
        """The mutated core; ``base`` holds what ``build_base`` made."""
        for path in CSRC.iterdir():
            (into / path.name).write_text(path.read_text())
        source = (into / self.file).read_text()
        assert source.count(self.old) == 1, f"{self.name}: {self.old!r} is not one place"
        (into / self.file).write_text(source.replace(self.old, self.new))
        parts = [name for name in PARTS[self.operation] if self.file in _included(f"{name}.cpp")]
        rebuilt = [_object(name, self.isa) for name in parts]
        for name, target in zip(parts, rebuilt, strict=True):
            _compile(into / f"{name}.cpp", into / target, self.isa if name in PER_ISA else None)
        kept = [path for path in base.glob("*.o") if path.name not in rebuilt]
        # First, so that their inline functions are those that the linker keeps.
        return _load(_link([*(into / target for target in rebuilt), *kept], into))


PARTS = {
    "decode": ("schedule", "decode_isa"),
    "attention": ("attention", "attention_forward_isa", "attention_backward_isa"),
}
COMMON = ("schedule", "attention", "bindings", "isa", "roofs")
PER_ISA = ("decode_isa", "attention_forward_isa", "attention_backward_isa")


@cache
def _included(name: str) -> frozenset[str]:
    """A source file and the project's headers that it includes, directly or not."""
    names = {name}
    for header in re.findall(r'#include "(.+)"', (CSRC / name).read_text()):
        names |= _included(header)
    return frozenset(names)


def build_base(directory: Path) -> None:
    """Compiles what mutations share, once: other processes wait for the one that came first."""
    with _locked(directory / "lock"):
        if (directory / "done").exists():
            return
        jobs = [(CSRC / f"{part}.cpp", directory / f"{part}.o", None) for part in COMMON]
        jobs.append((NANOBIND / "src/nb_combined.cpp", directory / "nb_combined.o", None))
        jobs += [
            (CSRC / f"{part}.cpp", directory / _object(part, isa), isa)
            for isa in instruction_sets()
            for part in PER_ISA
        ]
        with ThreadPoolExecutor(2) as pool:
            list(pool.map(lambda job: _compile(*job), jobs))
        (directory / "done").touch()


def load_base(base: Path, into: Path) -> ModuleType:
    """The core without a mutation, with every instruction set that can be emulated."""
    return _load(_link(list(base.glob("*.o")), into))


def _object(part: str, isa: str) -> str:
    return f"{part}-{isa}.o" if part in PER_ISA else f"{part}.o"


def _compile(source: Path, target: Path, isa: str | None = None) -> None:
    options = []
    if isa is not None:
        flags = FLAGS if isa in core.isas() else EMULATED
        options = [f"-DRIDGELINE_ISA={isa}", *flags[isa]]
    if X86 and source.name == "isa.cpp":
        options = ["-DRIDGELINE_X86", "-D__builtin_cpu_supports(feature)=1"]
    _run([*COMPILE, *options, "-c", str(source), "-o", str(target)])


def _link(objects: list[Path], into: Path) -> Path:
    target = into / "_core.so"
    _run(["c++", "-shared", "-fopenmp", *map(str, objects), "-o", str(target)])
    return target


def _load(path: Path) -> ModuleType:
    loader = ExtensionFileLoader("_core", str(path))
    module = module_from_spec(spec_from_loader("_core", loader))
    loader.exec_module(module)
    return module


def _run(command: list[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, f"{' '.join(command)}\n{done.stderr}"


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
