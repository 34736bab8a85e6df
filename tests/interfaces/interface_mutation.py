"""Planting a bug: one place of a module of the interfaces is replaced and compiled again."""

import sys
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from types import FunctionType
from typing import Any

import pytest


@dataclass(frozen=True)
class Mutation:
    """``old`` becomes ``new`` in ``ridgeline.<module>``; ``makers`` are the cases to find it."""

    name: str
    makers: str
    module: str
    old: str
    new: str

    def plant(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Replaces the module's functions and methods wherever the interfaces refer to them."""
        module = import_module(f"ridgeline.{self.module}")
        source = Path(module.__file__).read_text()
        assert source.count(self.old) == 1, f"{self.name}: {self.old!r} is not one place"
        changed: dict[str, Any] = {"__name__": module.__name__}
        exec(compile(source.replace(self.old, self.new), module.__file__, "exec"), changed)
        for name, value in list(vars(module).items()):
            if getattr(value, "__module__", None) != module.__name__:
                continue
            if isinstance(value, FunctionType):
                _replace_everywhere(monkeypatch, name, value, changed[name])
            elif isinstance(value, type):
                for key, method in vars(changed[name]).items():
                    if isinstance(method, (FunctionType, property)) and not key.startswith("__"):
                        monkeypatch.setattr(value, key, method)


def _replace_everywhere(
    monkeypatch: pytest.MonkeyPatch, name: str, old: FunctionType, new: FunctionType
) -> None:
    for key, module in list(sys.modules.items()):
        if key.startswith("ridgeline.flash_") and vars(module).get(name) is old:
            monkeypatch.setattr(module, name, new)
