"""Does a test notice when a synchronising line is missing or weaker?

Every kernel's acceptance: each of its synchronising calls deleted, or weakened (the other phase, a
count off by one, a wait for one less), must be caught within twenty seeds:

>>> assert not survivors(check)  # doctest: +SKIP

where ``check(seed)`` runs the kernel on the interpreter and asserts that the result is right.
Kernels are not edited: the interpreter runs a changed code object of the same file and lines.
"""

import ast
import copy
import linecache
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import CodeType, FunctionType
from typing import Any
from unittest import mock

from ridgeline.ops.common.gluon import warpgroup_mma_wait
from ridgeline.testing.gluon import launch, namespace
from ridgeline.testing.gluon.errors import GluonError, LayoutError, UnsupportedError
from ridgeline.testing.gluon.sites import Site
from ridgeline.testing.gluon.versions import gl, hopper

Check = Callable[[int], Any]


@dataclass(frozen=True)
class Mutation:
    """One call of one function, changed in one way."""

    function: FunctionType
    line: int
    column: int
    change: str

    def __str__(self) -> str:
        return f"{self.where}: {self.change}: `{self.text}`"

    @property
    def where(self) -> str:
        code = self.function.__code__
        return f"{Path(code.co_filename).name}:{self.line} in {code.co_qualname}"

    @property
    def text(self) -> str:
        return linecache.getline(self.function.__code__.co_filename, self.line).strip()


@dataclass(frozen=True)
class Outcome:
    """What became of a mutation: the first seed that caught it and how, or None."""

    mutation: Mutation
    seed: int | None
    caught: str | None


def _plus(argument: ast.expr, number: int) -> ast.expr:
    return ast.BinOp(argument, ast.Add() if number > 0 else ast.Sub(), ast.Constant(abs(number)))


def _argument(call: ast.Call, position: int, name: str) -> ast.expr | None:
    for keyword in call.keywords:
        if keyword.arg == name:
            return keyword.value
    return call.args[position] if len(call.args) > position else None


def _with(call: ast.Call, position: int, name: str, value: ast.expr) -> ast.Call:
    call = copy.deepcopy(call)
    for keyword in call.keywords:
        if keyword.arg == name:
            keyword.value = value
            return call
    if len(call.args) > position:
        call.args[position] = value
    else:
        call.keywords.append(ast.keyword(name, value))
    return call


def _shifted(position: int, name: str, number: int, default: int) -> Callable:
    def change(call: ast.Call) -> ast.expr:
        old = _argument(call, position, name) or ast.Constant(default)
        return _with(call, position, name, _plus(old, number))

    return change


def _other_phase(call: ast.Call) -> ast.expr:
    phase = _argument(call, 1, "phase")
    return _with(call, 1, "phase", ast.BinOp(phase, ast.BitXor(), ast.Constant(1)))


def _deleted(call: ast.Call) -> ast.expr:
    return ast.Constant(None)


def _deps(call: ast.Call) -> ast.expr:
    """Instead of a wait for products: its dependencies, as they are."""
    deps = _argument(call, 1, "deps")
    if isinstance(deps, ast.List | ast.Tuple) and len(deps.elts) == 1:
        return deps.elts[0]
    waited = ast.parse(
        "(lambda deps: deps[0] if len(deps) == 1 else tuple(deps))()", mode="eval"
    ).body
    waited.args = [deps]
    return waited


_bar, _copy = hopper.mbarrier, hopper.async_copy
_DELETE = {"deleted": _deleted}
# What can be done to a call, by the function that it calls.
CHANGES: dict[int, dict[str, Callable[[ast.Call], ast.expr]]] = {
    id(function): changes
    for function, changes in [
        (_bar.wait, _DELETE | {"the other phase": _other_phase}),
        (_bar.arrive, _DELETE | {"one arrival more": _shifted(1, "count", 1, 1)}),
        (_bar.expect, _DELETE | {
            "16 bytes more": _shifted(1, "bytes", 16, 0),
            "16 bytes less": _shifted(1, "bytes", -16, 0),
        }),
        (_bar.init, _DELETE | {
            "a count of one more": _shifted(1, "count", 1, 1),
            "a count of one less": _shifted(1, "count", -1, 1),
        }),
        (hopper.fence_async_shared, _DELETE),
        *((wait, {
            "deleted": _deps, "one product more in flight": _shifted(0, "num_outstanding", 1, 0),
        }) for wait in (hopper.warpgroup_mma_wait, warpgroup_mma_wait)),
        (hopper.tma.store_wait, _DELETE | {
            "one store more in flight": _shifted(0, "pendings", 1, 0),
        }),
        (_copy.wait_group, _DELETE | {
            "one group more in flight": _shifted(0, "num_outstanding", 1, 0),
        }),
        (_copy.commit_group, _DELETE),
        (_copy.mbarrier_arrive, _DELETE),
        (gl.thread_barrier, _DELETE),
    ]
}  # fmt: skip


@cache
def _tree(filename: str) -> ast.Module:
    return ast.parse(Path(filename).read_text(), filename)


def _definition(tree: ast.Module, code: CodeType) -> ast.FunctionDef:
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef) and node.name == code.co_name:
            first = min([node.lineno, *(d.lineno for d in node.decorator_list)])
            if first == code.co_firstlineno:
                return node
    raise LookupError(f"no source for {code.co_qualname} in {code.co_filename}")


def _callee(call: ast.Call, scope: dict[str, Any]) -> Any:
    """The object that a call's dotted name means, if it is one."""
    names, node = [], call.func
    while isinstance(node, ast.Attribute):
        names.append(node.attr)
        node = node.value
    if not isinstance(node, ast.Name) or node.id not in scope:
        return None
    found = scope[node.id]
    for name in reversed(names):
        found = getattr(found, name, None)
    return found


def mutations_of(function: FunctionType, sites: Iterable[Site] | None = None) -> list[Mutation]:
    """All mutations of one kernel function; with ``sites`` only of calls that ran."""
    code = function.__code__
    lines = None if sites is None else {s.line for s in sites if s.code is code}
    found = []
    for node in ast.walk(_definition(_tree(code.co_filename), code)):
        if not isinstance(node, ast.Call):
            continue
        changes = CHANGES.get(id(_callee(node, function.__globals__)), {})
        if lines is None or lines & set(range(node.lineno, node.end_lineno + 1)):
            found += [Mutation(function, node.lineno, node.col_offset, c) for c in changes]
    return sorted(found, key=lambda m: (m.line, m.column))


def _mutated_code(mutation: Mutation) -> CodeType:
    function, code = mutation.function, mutation.function.__code__
    tree = copy.deepcopy(_tree(code.co_filename))
    definition = _definition(tree, code)

    class Change(ast.NodeTransformer):
        def visit_Call(self, node: ast.Call) -> ast.AST:
            if (node.lineno, node.col_offset) == (mutation.line, mutation.column):
                changes = CHANGES.get(id(_callee(node, function.__globals__)), {})
                if mutation.change in changes:
                    return ast.copy_location(changes[mutation.change](node), node)
            return self.generic_visit(node)

    Change().visit(definition)
    module = compile(ast.fix_missing_locations(tree), code.co_filename, "exec")
    return next(c for c in _codes(module) if _same_function(c, code))


def _same_function(a: CodeType, b: CodeType) -> bool:
    return (a.co_qualname, a.co_firstlineno) == (b.co_qualname, b.co_firstlineno)


def _codes(code: CodeType) -> Iterator[CodeType]:
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield constant
            yield from _codes(constant)


@contextmanager
def applied(mutation: Mutation) -> Iterator[None]:
    """Kernels run with the mutation."""
    changed = _mutated_code(mutation)

    def code_of(fn: FunctionType) -> CodeType:
        return changed if fn.__code__ is mutation.function.__code__ else fn.__code__

    with mock.patch.object(namespace.Function, "code_of", staticmethod(code_of)):
        yield


def found_by(check: Check, seed: int = 0) -> list[Mutation]:
    """The mutations of all functions and calls that ``check(seed)`` runs, with nothing changed."""
    called: set[FunctionType] = set()
    sites: set[Site] = set()
    with (
        mock.patch.object(namespace.Function, "called", called),
        mock.patch.object(launch, "recorded_sites", sites),
    ):
        check(seed)
    order = sorted(called, key=lambda f: (f.__code__.co_filename, f.__code__.co_firstlineno))
    return [mutation for function in order for mutation in mutations_of(function, sites)]


def outcome(check: Check, mutation: Mutation, seeds: Iterable[int] = range(20)) -> Outcome:
    """Runs a mutation until a seed catches it."""
    with applied(mutation):
        for seed in seeds:
            try:
                check(seed)
            except (LayoutError, UnsupportedError):
                raise  # not what the mutation is about
            except (AssertionError, GluonError) as error:
                return Outcome(mutation, seed, type(error).__name__)
    return Outcome(mutation, None, None)


def outcomes(check: Check, seeds: Iterable[int] = range(20)) -> list[Outcome]:
    """Of every mutation of the kernels that ``check`` runs.

    ``check(seed)`` must pass unchanged for every seed, or being caught would mean nothing.
    """
    seeds = list(seeds)
    found = found_by(check, seeds[0])
    for seed in seeds[1:]:
        check(seed)
    return [outcome(check, mutation, seeds) for mutation in found]


def survivors(check: Check, seeds: Iterable[int] = range(20)) -> list[Mutation]:
    """The mutations that no seed catches: lines that are not needed, or not tested."""
    return [o.mutation for o in outcomes(check, seeds) if o.caught is None]
