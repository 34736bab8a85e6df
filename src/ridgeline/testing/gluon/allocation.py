"""Bytes of shared memory, and who accessed what of them in which order.

An allocation holds its bytes twice: as generic accesses see them, and as the asynchronous proxy
(TMA, wgmma) does, which sees a generic write only after a ``fence_async_shared`` that is ordered
after the write. A third plane says which bytes were ever written.
"""

from collections.abc import Hashable
from dataclasses import dataclass
from typing import Any

import numpy as np

from ridgeline.testing.gluon.sites import Site

POISON = 0xFF  # NaN in every floating type


@dataclass
class Access:
    """One access of a view: by whom, at which epoch of theirs, and through which proxy."""

    view: Any
    agent: Hashable
    epoch: float
    write: bool
    asynchronous: bool
    site: Site
    what: str


class Allocation:
    """Bytes of a block's shared memory."""

    def __init__(self, name: str, size: int) -> None:
        self.name, self.size = name, size
        self.generic = np.full(size, POISON, np.uint8)
        self.fenced = self.generic.copy()
        self.written = np.zeros(size, np.uint8)
        self.accesses: list[Access] = []
        self.unfenced: list[Access] = []  # generic writes that the asynchronous proxy cannot see

    def fence(self, clock: dict) -> None:
        """Shows the asynchronous proxy the generic writes that ``clock`` knows of."""
        left = []
        for access in self.unfenced:
            if access.epoch <= clock.get(access.agent, 0):
                access.view.plane(self.fenced)[...] = access.view.plane(self.generic)
            else:
                left.append(access)
        self.unfenced = left
