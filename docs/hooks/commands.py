"""The reference of the command line, made from the commands themselves: ``commands.md``."""

from collections.abc import Iterator
from typing import Any

import typer
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

from ridgeline.cli import app

INTRO = "# Commands\n\nWhat `--help` says, of every command.\n"


def on_files(files: Files, config: MkDocsConfig) -> Files:
    sections = commands("ridgeline", typer.main.get_command(app))
    text = "\n".join([INTRO, *(section(name, command) for name, command in sections)])
    files.append(File.generated(config, "commands.md", content=text))
    return files


def commands(name: str, command: Any) -> Iterator[tuple[str, Any]]:
    """Every command below ``command`` that is no group, with its whole name."""
    if not hasattr(command, "commands"):
        yield name, command
        return
    for each, sub in command.commands.items():
        yield from commands(f"{name} {each}", sub)


def section(name: str, command: Any) -> str:
    rows = [row(param) for param in command.params if param.name != "help"]
    table = "\n".join(["| | | default |", "|---|---|---|", *rows]) if rows else ""
    return f"## {name}\n\n{command.help}\n\n{table}\n"


def row(param: Any) -> str:
    names = param.opts + param.secondary_opts if param.param_type_name == "option" else [param.name]
    default = "" if param.default in (None, False) or callable(param.default) else param.default
    shown = str(default).encode("unicode_escape").decode()  # a line of a table is one line
    about = (getattr(param, "help", None) or "").replace("|", "\\|")
    return f"| `{' / '.join(names)}` | {about} | {shown and f'`{shown}`'} |"
