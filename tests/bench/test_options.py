"""One declaration of options, two command lines; and the one that needs no package."""

import ast
import inspect
import sys
from pathlib import Path
from typing import Annotated

import pytest
import typer.main
from typer.testing import CliRunner

from ridgeline.bench import __main__ as plain
from ridgeline.bench import arguments, commands, options, table
from ridgeline.bench.grid import Grid, PlainConsole
from ridgeline.bench.options import Option
from ridgeline.cli import app

TINY = "--batch 1 --length 16 --heads 8 --head-dim 16 --reps 1 --no-peers"
PACKAGES = {"typer", "click", "rich", "matplotlib"}
# Modules that need one of them, which no command of ``python -m ridgeline.bench`` imports unasked.
OTHERS = {"plot.py", "demo.py", "end_to_end.py"}


def both(
    count: Annotated[int, Option("A count.", minimum=1)] = 3,
    name: Annotated[str | None, Option("A name.", default="nobody")] = None,
    fast_path: Annotated[bool, Option("Yes or no.")] = True,
    quick: Annotated[bool, Option("A switch.", switch=True)] = False,
    csv: Annotated[Path | None, Option("A file.")] = None,
) -> None:
    """What it does."""
    print(count, name, fast_path, quick, csv)


def with_typer(*argv: str) -> str:
    found = typer.Typer()
    found.command()(options.for_typer(both))
    result = CliRunner().invoke(found, list(argv))
    assert result.exit_code == 0, result.output
    return result.output


@pytest.mark.parametrize(
    ("argv", "expected"),
    [
        ("", "3 None True False None"),
        ("--count 5 --name x --no-fast-path --quick --csv a/b.csv", "5 x False True a/b.csv"),
    ],
    ids=["defaults", "given"],
)
def test_both_parsers_read_the_same(argv, expected, capsys) -> None:
    options.run("program", {"both": both}, ["both", *argv.split()])
    assert capsys.readouterr().out == with_typer(*argv.split()) == f"{expected}\n"


def test_help_shows_the_default_that_none_stands_for(capsys) -> None:
    with pytest.raises(SystemExit):
        options.run("program", {"both": both}, ["both", "--help"])
    assert "A name. [default: nobody]" in " ".join(capsys.readouterr().out.split())
    assert "nobody" in with_typer("--help")


@pytest.mark.parametrize("name", commands.COMMANDS)
def test_every_option_is_on_both_command_lines(name) -> None:
    bench = typer.main.get_command(app).commands["bench"]
    parameters = inspect.signature(commands.COMMANDS[name]).parameters
    assert [p.name for p in bench.commands[name].params] == list(parameters)
    assert bench.commands[name].help == commands.COMMANDS[name].__doc__


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        ("decode --device tpu", "--device: expected cpu or cuda"),
        ("decode --prefetch 1", "--prefetch: expected together with --device cuda"),
        ("decode --page-size 64,1", "--page-size: expected one number without --device cuda"),
        ("decode --dtype fp8", "dtype: expected one of bf16, fp16, fp32, got 'fp8'"),
        ("attention --length 8 --reps 0", "reps: expected"),
    ],
)
def test_an_error_is_one_line(argv, message, monkeypatch) -> None:
    monkeypatch.setattr(sys, "argv", ["ridgeline.bench", *argv.split()])
    with pytest.raises(SystemExit) as raised:
        plain.main()
    assert str(raised.value).startswith(f"ridgeline.bench: error: {message}")


@pytest.mark.parametrize(
    ("text", "expected"), [(None, None), ("none", ()), ("0,2,4", (0, 2, 4))], ids=str
)
def test_distances(text, expected) -> None:
    assert arguments.distances("--prefetch", text) == expected
    for bad in ("1,x", "-1"):
        with pytest.raises(ValueError, match=r"^--prefetch: expected"):
            arguments.distances("--prefetch", bad)


def test_the_command_line_on_a_gpu(gpu, monkeypatch, tmp_path, capsys) -> None:
    monkeypatch.setattr("ridgeline.bench.device.open_device", lambda name: gpu)
    path = tmp_path / "x.csv"
    argv = f"--device cuda --variants gqa,gla {TINY} --impl reference --page-size 4,8"
    commands_run = ["decode", *argv.split(), "--prefetch", "none", "--csv", str(path)]
    options.run("program", commands.COMMANDS, commands_run)
    rows = [x.split(",")[:3] for x in path.read_text().splitlines() if x[0] != "#"][1:]
    assert rows == [["reference", page, name] for name in ("gqa", "gla") for page in ("4", "8")]
    argv = "attention --device cuda --length 8 --mask full --heads 2 --head-dim 16 --no-peers"
    options.run("program", commands.COMMANDS, [*argv.split(), "--impl", "reference", "--reps", "1"])
    assert "1 x 8, 2 heads, d 16" in capsys.readouterr().out


def test_no_module_imports_typer_rich_or_matplotlib_unasked() -> None:
    files = [x for x in Path(options.__file__).parent.rglob("*.py") if x.name not in OTHERS]
    assert len(files) > 30
    for file in files:
        for node in ast.parse(file.read_text()).body:
            names = [x.name for x in node.names] if isinstance(node, ast.Import) else []
            names += [node.module] if isinstance(node, ast.ImportFrom) else []
            assert not PACKAGES & {name.split(".")[0] for name in names}, file


def test_without_rich_and_matplotlib(monkeypatch) -> None:
    for name in ("rich.console", "matplotlib"):
        monkeypatch.setitem(sys.modules, name, None)  # what an import then does not find
    assert isinstance(table.console(), PlainConsole)
    with pytest.raises(ValueError, match=r"^--plot: expected matplotlib to be installed"):
        commands.decode(variants="gqa", plot=Path("x.png"))


def test_a_plain_table(capsys) -> None:
    grid = Grid()
    grid.add_column("name")
    grid.add_column("milli-\nseconds", justify="right")
    grid.add_row("a", "1.5")
    grid.add_section()
    grid.add_row("long name", "10")
    with PlainConsole().status("working") as status:
        status.update("1 of 2")
        PlainConsole().print(grid)
    assert capsys.readouterr().out.splitlines() == [
        "            milli-",
        "name       seconds",
        "------------------",
        "a              1.5",
        "",
        "long name       10",
    ]
