"""Layouts that Triton's compiler derives, from Triton itself: without a GPU, in microseconds."""

from functools import cache
from typing import Any

from ridgeline.testing.gluon import layouts
from ridgeline.testing.gluon.errors import LayoutError
from ridgeline.testing.gluon.versions import gl, semantic


def register(op: str, layout: Any, shape: tuple[int, ...], argument: tuple[int, ...] = ()) -> Any:
    """Of ``permute``, ``reshape``, ``join`` or ``split`` of a tensor."""
    return layout if layouts.is_auto(layout) else _register(op, layout, shape, argument)


@cache
def _register(op: str, layout: Any, shape: tuple[int, ...], argument: tuple[int, ...]) -> Any:
    ask = semantic()
    tensor = ask.full(list(shape), 0, gl.float32, layout)
    try:
        if op == "permute":
            result = ask.permute(tensor, argument)
        elif op == "reshape":
            result = ask.reshape(tensor, list(argument), False)
        elif op == "join":
            result = ask.join(tensor, tensor)
        else:
            result = ask.split(tensor)[0]
    except (ValueError, AssertionError, RuntimeError) as error:
        raise LayoutError(f"{op} of {list(shape)} {layout}: {error}") from error
    return result.type.layout


@cache
def shared(
    op: str, layout: Any, dtype: gl.dtype, shape: tuple[int, ...], argument: tuple[int, ...]
) -> Any:
    """Of ``permute`` or ``reshape`` of shared memory."""
    ask = semantic()
    try:
        memory = ask.allocate_shared(dtype, list(shape), layout, None)
        if op == "permute":
            return ask.memdesc_trans(memory, list(argument)).layout
        return ask.memdesc_reshape(memory, list(argument)).layout
    except (ValueError, AssertionError, RuntimeError) as error:
        raise LayoutError(f"{op} of {list(shape)} {layout}: {error}") from error


@cache
def same(a: Any, b: Any, shape: tuple[int, ...]) -> bool:
    """Whether a conversion between two layouts moves nothing."""
    ask = semantic()
    tensor = ask.full(list(shape), 0, gl.float32, a)
    wanted = gl.distributed_type(gl.float32, list(shape), b).to_ir(ask.builder)
    return ask.builder.is_convert_layout_trivial(wanted, tensor.handle)
