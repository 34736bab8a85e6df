"""A bug to plant in an operation."""

from dataclasses import dataclass

import pytest

from planting import plant


@dataclass(frozen=True)
class Mutation:
    """``old`` becomes ``new`` in the source of ``ridgeline.ops.<module>``."""

    name: str
    module: str
    old: str
    new: str

    def plant(self, monkeypatch: pytest.MonkeyPatch) -> None:
        plant(monkeypatch, f"ridgeline.ops.{self.module}", self.old, self.new, "ridgeline.ops")
