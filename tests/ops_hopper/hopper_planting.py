"""Planting a bug in a Gluon kernel of ``attention``.

Kernels are not edited: the interpreter runs the code of a changed source, with the same lines.
"""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from types import CodeType, FunctionType
from unittest import mock

from ridgeline.testing import violations


def codes(code: CodeType) -> Iterator[CodeType]:
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield constant
            yield from codes(constant)


@contextmanager
def planted(module: str, right: str, wrong: str) -> Iterator[None]:
    """``module`` of ``ridgeline.ops.attention.hopper`` with ``wrong`` in the place of ``right``."""
    from ridgeline.testing.gluon.namespace import Function

    path = import_module(f"ridgeline.ops.attention.hopper.{module}").__file__
    source = Path(path).read_text()
    assert source.count(right) == 1, f"{right!r} is not one place"
    changed = compile(source.replace(right, wrong), path, "exec")
    found = {(c.co_qualname, c.co_firstlineno): c for c in codes(changed)}

    def code_of(fn: FunctionType) -> CodeType:
        code = fn.__code__
        ours = code.co_filename == path
        return found[code.co_qualname, code.co_firstlineno] if ours else code

    with mock.patch.object(Function, "code_of", staticmethod(code_of)):
        yield


def problem(made: Iterable[tuple], run: Callable[..., tuple]) -> str | None:
    """What is wrong with the first of the cases, each with the options of its run, if anything."""
    for case, options in made:
        try:
            wrong = violations(case, *run(case, **options))
        except Exception as error:
            wrong = f"raised {type(error).__name__}: {error}"
        if wrong:
            return wrong
    return None
