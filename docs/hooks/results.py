"""Tables of benchmark results, made from their CSV files when the site is built.

A fenced block ``results`` names a file of ``benchmarks/results`` and its columns as Python format
strings over a row's fields::

    file: decode.csv
    where: {length: 8192}
    columns: {attention: "{variant} {heads}/{cache_heads}", ms: "{ms:.2f}"}

A cell one of whose fields is empty is empty. Below the table stands where the numbers come from.
"""

import csv
import os
import re
from pathlib import Path
from typing import Any

import yaml
from mkdocs.exceptions import PluginError
from mkdocs.structure.pages import Page

RESULTS = Path(__file__).parents[2] / "benchmarks" / "results"
FIELD = re.compile(r"{([^}:]+):?([^}]*)}")  # names of columns may hold slashes
BLOCK = re.compile(r"^```results\n(.*?)^```$", re.DOTALL | re.MULTILINE)


def on_page_markdown(markdown: str, page: Page, **_: Any) -> str:
    def rendered(block: re.Match) -> str:
        return table(yaml.safe_load(block[1]), os.path.relpath(RESULTS, folder))

    folder = Path(page.file.abs_src_path or "").parent
    return BLOCK.sub(rendered, markdown)


def table(block: dict[str, Any], results: str) -> str:
    """The block as a Markdown table; ``results`` is the path from its page to the files."""
    head, rows = read(RESULTS / block["file"])
    where, columns = block.get("where", {}), block["columns"]
    rows = [row for row in rows if all(row[name] == value for name, value in where.items())]
    if not rows:
        raise PluginError(f"results: no row of {block['file']} where {where}")
    lines = [list(columns), ["---"] * len(columns)]
    lines += [[cell(form, row) for form in columns.values()] for row in rows]
    text = "\n".join("| " + " | ".join(line) + " |" for line in lines)
    return f"{text}\n\n" + provenance(head, f"{results}/{block['file']}")


def read(path: Path) -> tuple[list[tuple[str, str]], list[dict[str, str | int | float]]]:
    """The comment lines of a result file as (name, value), and its rows with numbers as numbers."""
    lines = path.read_text(encoding="utf-8").splitlines()
    comments = [line[1:].split(":", 1) for line in lines if line.startswith("#")]
    head = [(name.strip(), rest[0].strip()) for name, *rest in comments if rest and rest[0].strip()]
    rows = csv.DictReader(line for line in lines if not line.startswith("#"))
    return head, [{name: number(value) for name, value in row.items()} for row in rows]


def number(text: str) -> str | int | float:
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            pass
    return text


def cell(form: str, row: dict[str, str | int | float]) -> str:
    if any(row[field[1]] == "" for field in FIELD.finditer(form)):
        return ""
    return FIELD.sub(lambda field: format(row[field[1]], field[2]), form)


def provenance(head: list[tuple[str, str]], link: str) -> str:
    parts = [f"`{value}`" if name == "command" else f"{name} {value}" for name, value in head]
    return f"*{', '.join(parts)}: [{Path(link).name}]({link})*"
