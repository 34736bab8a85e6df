"""Planting a bug in a kernel: its modules are loaded again from files, one of them changed."""

import sys
from dataclasses import dataclass
from importlib import import_module
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path

import pytest

# Each imports only those before it.
DECODE = ("common.device", "common.triton", "common.triton_splits")
DECODE += ("paged_decode.triton", "tied_decode.triton", "merge.triton")
ATTENTION = tuple(f"attention.triton.{name}" for name in ("tiles", "forward", "backward"))


@dataclass(frozen=True)
class Bug:
    """``old`` becomes ``new`` in the source of ``ridgeline.ops.<module>``."""

    name: str
    op: str
    module: str
    old: str
    new: str

    def plant(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """Loads the kernel modules of the operation again in place of the right ones."""
        for name in ATTENTION if self.op == "attention" else DECODE:
            full = f"ridgeline.ops.{name}"
            source = Path(import_module(full).__file__).read_text()
            if name == self.module:
                assert source.count(self.old) == 1, f"{self.old!r} is not one place"
                source = source.replace(self.old, self.new)
            path = folder / f"{name}.py"
            path.write_text(source)
            spec = spec_from_file_location(full, path)
            module = module_from_spec(spec)
            monkeypatch.setitem(sys.modules, full, module)
            package, _, last = full.rpartition(".")
            monkeypatch.setattr(sys.modules[package], last, module)
            spec.loader.exec_module(module)
