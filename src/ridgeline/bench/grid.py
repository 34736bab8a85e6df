"""A table of text, and a console, that need no package: rich draws them where it is installed."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from rich.table import Table

GAP = "  "


class Grid:
    """Columns, rows and sections as of ``rich.table.Table``; ``str`` is the plain form."""

    def __init__(self) -> None:
        self._columns: list[tuple[str, str]] = []
        self._rows: list[tuple[str, ...] | None] = []  # None ends a section

    def add_column(self, name: str, *, justify: str = "left") -> None:
        self._columns.append((name, justify))

    def add_section(self) -> None:
        self._rows.append(None)

    def add_row(self, *cells: str) -> None:
        self._rows.append(cells)

    def __str__(self) -> str:
        titles = [name.split("\n") for name, _ in self._columns]
        height = max(map(len, titles))
        head = list(zip(*([""] * (height - len(x)) + x for x in titles), strict=True))
        lines = [*head, *(row for row in self._rows if row is not None)]
        widths = [max(len(line[i]) for line in lines) for i in range(len(titles))]

        def line(cells: tuple[str, ...]) -> str:
            aligned = (
                cell.rjust(width) if justify == "right" else cell.ljust(width)
                for cell, width, (_, justify) in zip(cells, widths, self._columns, strict=True)
            )
            return GAP.join(aligned).rstrip()

        rule = "-" * (sum(widths) + len(GAP) * (len(widths) - 1))
        body = ("" if row is None else line(row) for row in self._rows)
        return "\n".join([*map(line, head), rule, *body])

    def __rich__(self) -> "Table":
        from rich import box
        from rich.table import Table

        found = Table(box=box.SIMPLE_HEAD, padding=(0, 1), collapse_padding=True, pad_edge=False)
        for name, justify in self._columns:
            found.add_column(name, justify=justify, no_wrap=True)
        for row in self._rows:
            if row is None:
                found.add_section()
            else:
                found.add_row(*row)
        return found


class Terminal(Protocol):
    """What of ``rich.console.Console`` a benchmark uses."""

    is_terminal: bool

    def print(self, text: object = "", **options: Any) -> None: ...

    def status(self, text: str) -> AbstractContextManager[Any]: ...


class PlainConsole:
    """A ``Terminal`` of plain lines."""

    is_terminal = False

    def print(self, text: object = "", **_: Any) -> None:
        print(text, flush=True)

    @contextmanager
    def status(self, _: str) -> Iterator["PlainConsole"]:
        yield self

    def update(self, _: str) -> None:
        """Without a terminal there is no line to rewrite."""
