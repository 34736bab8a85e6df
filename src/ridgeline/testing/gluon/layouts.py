"""Register layouts as far as they decide whether a kernel compiles.

A tensor without a layout, or of ``AutoLayout``, goes with any. Layouts that are more than a slice
or its parent away, ``infer`` asks Triton's compiler for.
"""

from typing import Any

from ridgeline.testing.gluon.errors import LayoutError
from ridgeline.testing.gluon.versions import DistributedLayout, gl


def is_auto(layout: Any) -> bool:
    return layout is None or isinstance(layout, gl.AutoLayout | gl.CoalescedLayout)


def common(a: Any, b: Any, what: str) -> Any:
    """The layout of an elementwise result; the operands' must be equal."""
    if a is b or is_auto(b):
        return a
    if is_auto(a):
        return b
    if a != b:
        raise LayoutError(f"{what}: layouts {a} and {b} differ; convert_layout makes them equal")
    return a


def expanded(layout: Any, axis: int, rank: int) -> Any:
    """Of ``x[:, None]``: the parent of the slice."""
    if is_auto(layout):
        return layout
    if not isinstance(layout, gl.SliceLayout):
        raise LayoutError(f"a new axis {axis} needs a SliceLayout({axis}, ...), not {layout}")
    if layout.dim != axis:
        raise LayoutError(f"a new axis {axis} for a layout sliced along axis {layout.dim}")
    return layout.parent


def reduced(layout: Any, axis: int) -> Any:
    return layout if is_auto(layout) else gl.SliceLayout(axis, layout)


def check(layout: Any, shape: tuple[int, ...], what: str) -> Any:
    """A layout given for a tensor of ``shape``: a register layout of its rank."""
    if layout is None:
        return None
    if not isinstance(layout, DistributedLayout):
        raise LayoutError(f"{what}: expected a register layout, got {layout}")
    if not is_auto(layout) and layout.rank != len(shape):
        raise LayoutError(f"{what}: shape {list(shape)} with a layout of rank {layout.rank}")
    for size in shape:
        if size & (size - 1) or size < 1:
            raise LayoutError(f"{what}: shape {list(shape)} has a size that is no power of two")
    return layout
