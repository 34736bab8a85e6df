"""Planting a bug: one line of a module of ``ridgeline.ops`` is replaced and compiled again."""

import sys
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from types import FunctionType

import pytest


@dataclass(frozen=True)
class Mutation:
    """``old`` becomes ``new`` in the source of ``ridgeline.ops.<module>``."""

    name: str
    module: str
    old: str
    new: str

    def plant(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Replaces the module's functions wherever ``ridgeline.ops`` refers to them."""
        module = import_module(f"ridgeline.ops.{self.module}")
        source = Path(module.__file__).read_text()
        assert source.count(self.old) == 1, f"{self.name}: {self.old!r} is not one place"
        changed = {"__name__": module.__name__}
        exec(compile(source.replace(self.old, self.new), module.__file__, "exec"), changed)
        for name, function in list(vars(module).items()):
            if isinstance(function, FunctionType) and function.__module__ == module.__name__:
                _replace_everywhere(monkeypatch, name, function, changed[name])


def _replace_everywhere(
    monkeypatch: pytest.MonkeyPatch, name: str, old: FunctionType, new: FunctionType
) -> None:
    for key, module in list(sys.modules.items()):
        if key.startswith("ridgeline.ops") and vars(module).get(name) is old:
            monkeypatch.setattr(module, name, new)
