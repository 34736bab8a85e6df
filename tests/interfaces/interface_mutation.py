"""A bug to plant in an interface."""

from dataclasses import dataclass

import pytest

from planting import plant


@dataclass(frozen=True)
class Mutation:
    """``old`` becomes ``new`` in ``ridgeline.<module>``; ``makers`` are the cases to find it."""

    name: str
    makers: str
    module: str
    old: str
    new: str

    def plant(self, monkeypatch: pytest.MonkeyPatch) -> None:
        plant(monkeypatch, f"ridgeline.{self.module}", self.old, self.new, "ridgeline.flash_")
