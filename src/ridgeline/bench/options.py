"""Options of a command that typer and argparse both read, from the signature of one function.

Where typer is not installed, as on many a GPU machine, ``python -m ridgeline.bench`` parses the
same options with argparse.
"""

import argparse
import inspect
import types
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any, NamedTuple, get_args, get_origin


class Option(NamedTuple):
    """How a parameter is shown: ``Annotated[int, Option("Tokens.")]``.

    ``default``: what is shown for a default of ``None``. ``switch``: a flag without its ``--no-``.
    """

    help: str
    default: str | None = None
    minimum: int | None = None
    switch: bool = False


def for_typer(function: Callable[..., None]) -> Callable[..., None]:
    """``function`` with its options as typer's."""
    import typer

    def converted(p: inspect.Parameter) -> inspect.Parameter:
        kind, option = get_args(p.annotation)
        names = [f"--{p.name}"] if option.switch else []
        found = typer.Option(
            *names, help=option.help, min=option.minimum, show_default=option.default or True
        )
        return p.replace(annotation=Annotated[kind, found])

    def command(**given: Any) -> None:
        function(**given)

    parameters = [converted(p) for p in inspect.signature(function).parameters.values()]
    command.__signature__ = inspect.Signature(parameters)
    command.__annotations__ = {p.name: p.annotation for p in parameters}
    command.__doc__ = function.__doc__
    return command


def add_to(parser: argparse.ArgumentParser, function: Callable[..., None]) -> None:
    """``function``'s options as those of ``parser``."""
    for p in inspect.signature(function).parameters.values():
        kind, option = get_args(p.annotation)
        name = "--" + p.name.replace("_", "-")
        shown = f"{option.help} [default: {option.default or p.default}]"
        if kind is bool:
            action = "store_true" if option.switch else argparse.BooleanOptionalAction
            parser.add_argument(name, action=action, default=p.default, help=option.help)
        else:
            parser.add_argument(name, type=_plain(kind), default=p.default, help=shown)


def run(program: str, commands: dict[str, Callable[..., None]], argv: Sequence[str]) -> None:
    """Run the command that ``argv`` names with its options."""
    parser = argparse.ArgumentParser(prog=program)
    chosen = parser.add_subparsers(dest="command", required=True)
    for name, function in commands.items():
        add_to(chosen.add_parser(name, help=inspect.getdoc(function)), function)
    given = vars(parser.parse_args(argv))
    commands[given.pop("command")](**given)


def _plain(kind: Any) -> type[str] | type[int] | type[Path]:
    """``int | None`` as ``int``: what parses the text."""
    if get_origin(kind) is types.UnionType:
        kind = next(x for x in get_args(kind) if x is not types.NoneType)
    return kind
