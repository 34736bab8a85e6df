"""Lines of the kernel: whose code called into the interpreter."""

import linecache
import sys
import threading
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from types import CodeType, FrameType
from typing import NamedTuple

from ridgeline.testing.gluon.errors import GluonError

_PACKAGE = str(Path(__file__).parent) + "/"


class Site(NamedTuple):
    """A line of a kernel."""

    code: CodeType | None
    line: int

    def __str__(self) -> str:
        if self.code is None:
            return "?"
        text = linecache.getline(self.code.co_filename, self.line).strip()
        name = Path(self.code.co_filename).name
        return f"{name}:{self.line} in {self.code.co_name}: `{text[:100]}`"


@cache
def _is_internal(filename: str) -> bool:
    return filename.startswith(_PACKAGE) or filename == threading.__file__


def kernel_frames() -> Iterator[FrameType]:
    """Frames of kernel code, innermost first."""
    frame = sys._getframe(1)
    while frame is not None:
        if not _is_internal(frame.f_code.co_filename):
            yield frame
        frame = frame.f_back


def site() -> Site:
    frame = next(kernel_frames(), None)
    return Site(None, 0) if frame is None else Site(frame.f_code, frame.f_lineno)


def locate(error: GluonError) -> None:
    """Adds the kernel's line to a report that names none."""
    found, step = None, error.__traceback__
    while step is not None:
        if not _is_internal(step.tb_frame.f_code.co_filename):
            found = Site(step.tb_frame.f_code, step.tb_lineno)
        step = step.tb_next
    if found is not None and ".py:" not in str(error):
        error.args = (f"{error}, at {found}",)
