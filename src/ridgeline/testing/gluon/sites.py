"""Lines of the kernel: whose code called into the interpreter."""

import linecache
import sys
from collections.abc import Iterator
from pathlib import Path
from types import CodeType, FrameType
from typing import NamedTuple

_PACKAGE = str(Path(__file__).parent) + "/"
_internal: dict[CodeType, bool] = {}


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


def kernel_frames() -> Iterator[FrameType]:
    """Frames of kernel code, innermost first."""
    frame = sys._getframe(1)
    while frame is not None:
        code = frame.f_code
        internal = _internal.get(code)
        if internal is None:
            name = code.co_filename
            internal = name.startswith(_PACKAGE) or name == threading_file
            _internal[code] = internal
        if not internal:
            yield frame
        frame = frame.f_back


def site() -> Site:
    frame = next(kernel_frames(), None)
    return Site(None, 0) if frame is None else Site(frame.f_code, frame.f_lineno)


threading_file = sys.modules["threading"].__file__
