"""The command line: each command imports what it needs when it runs, so that --help is fast."""

import sys

import typer

from ridgeline import __version__

app = typer.Typer(
    name="ridgeline",
    help="Exact attention that does more work per byte.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


def _version(show: bool) -> None:
    if show:
        typer.echo(__version__)
        raise typer.Exit


@app.callback()
def _root(
    version: bool = typer.Option(
        False, "--version", callback=_version, is_eager=True, help="Print the version and exit."
    ),
) -> None:
    pass


def main() -> None:
    """Runs the app; an error that names its culprit is shown as one line, not as a traceback."""
    try:
        app()
    except (ValueError, TypeError, OSError) as e:
        typer.echo(f"ridgeline: error: {e}", err=True)
        sys.exit(1)
