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
ATTENTION = ("attention.tiles", "attention.triton.forward", "attention.triton.backward")


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
        names = ATTENTION if self.op == "attention" else DECODE
        # All of them first: one that is imported later would keep those with the bug.
        right = {name: import_module(f"ridgeline.ops.{name}") for name in names}
        for name, module in right.items():
            full = module.__name__
            source = Path(module.__file__).read_text()
            if name == self.module:
                assert source.count(self.old) == 1, f"{self.old!r} is not one place"
                source = source.replace(self.old, self.new)
            path = folder / f"{name}.py"
            path.write_text(source)
            spec = spec_from_file_location(full, path)
            planted = module_from_spec(spec)
            monkeypatch.setitem(sys.modules, full, planted)
            package, _, last = full.rpartition(".")
            monkeypatch.setattr(sys.modules[package], last, planted)
            spec.loader.exec_module(planted)
