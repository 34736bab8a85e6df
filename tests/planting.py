"""Planting a bug: one place of a module of ``ridgeline`` is replaced and compiled again."""

import sys
from importlib import import_module
from pathlib import Path
from types import FunctionType
from typing import Any

import pytest


def plant(monkeypatch: pytest.MonkeyPatch, module: str, old: str, new: str, within: str) -> None:
    """Replaces the module's functions and methods wherever modules ``within...`` refer to them."""
    found = import_module(module)
    source = Path(found.__file__).read_text()
    assert source.count(old) == 1, f"{old!r} is not one place in {module}"
    changed: dict[str, Any] = {"__name__": module}
    exec(compile(source.replace(old, new), found.__file__, "exec"), changed)
    for name, value in list(vars(found).items()):
        if getattr(value, "__module__", None) != module:
            continue
        if isinstance(value, FunctionType):
            _replace_everywhere(monkeypatch, within, name, value, changed[name])
        elif isinstance(value, type):
            for key, method in vars(changed[name]).items():
                if isinstance(method, (FunctionType, property)) and not key.startswith("__"):
                    monkeypatch.setattr(value, key, method)


def _replace_everywhere(
    monkeypatch: pytest.MonkeyPatch, within: str, name: str, old: FunctionType, new: FunctionType
) -> None:
    for key, module in list(sys.modules.items()):
        if key.startswith(within) and vars(module).get(name) is old:
            monkeypatch.setattr(module, name, new)
