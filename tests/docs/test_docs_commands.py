"""Commands that pages show exist, with their options; so do make's targets and pip's extras."""

import re
import shlex
import tomllib

import docs_pages
import pytest
import typer
from docs_pages import PAGES, ROOT, blocks

from ridgeline.cli import app

# `ridgeline ...` where a command is expected: a line of a block, behind a shell's prompt, another
# program or a variable, or a code span.
COMMAND = re.compile(r"(?:^|[\s(]|bin/)ridgeline((?: +[^\n]*)?)$")
SPAN = re.compile(r"`(ridgeline [^`\n]+)`")


def commands(page) -> list[str]:
    """What stands behind ``ridgeline`` in each command that ``page`` shows."""
    found = [span[1] for span in SPAN.finditer(page.read_text(encoding="utf-8"))]
    for block in blocks(page, "", "sh", "bash", "shell", "console"):
        found += block.text.replace("\\\n", " ").splitlines()
    lines = [COMMAND.search(line.split(" #")[0].rstrip()) for line in found]
    return [each for line in lines if line for each in alternatives(line[1].strip())]


def alternatives(line: str) -> list[str]:
    """``bench decode | attention`` as ``bench decode`` and ``bench attention``."""
    first, *others = (part.strip() for part in line.split("|"))
    return [first, *(f"{first.rsplit(' ', 1)[0]} {other}" for other in others)]


def problem(line: str) -> str | None:
    """What is wrong with a command, if something is."""
    command, words, path = typer.main.get_command(app), shlex.split(line), "ridgeline"
    while words and not words[0].startswith("-") and (subs := getattr(command, "commands", None)):
        if words[0] not in subs:
            return f"{path}: no command {words[0]}"
        command, path, words = subs[words[0]], f"{path} {words[0]}", words[1:]
    options = {name for param in command.params for name in (*param.opts, *param.secondary_opts)}
    own = words[: words.index("--")] if "--" in words else words  # the rest is another program's
    given = {word.split("=")[0] for word in own if word.startswith("--")}
    unknown = sorted(given - options - {"--help"})
    return f"{path}: no option {unknown}" if unknown else None


WITH_COMMANDS = [page for page in PAGES if commands(page)]


@pytest.mark.parametrize("page", WITH_COMMANDS, ids=docs_pages.name)
def test_commands_exist(page):
    assert [found for line in commands(page) if (found := problem(line))] == []


@pytest.mark.parametrize(
    "line", ["benhc decode", "bench decode --lenght 4", "bench decode | atention", "dpo --no-such"]
)
def test_wrong_commands_are_found(line):
    assert any(problem(each) for each in alternatives(line))


def test_make_targets_and_extras_exist():
    make = (ROOT / "Makefile").read_text(encoding="utf-8")
    targets = set(re.findall(r"^([a-z]+):", make, re.MULTILINE))
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = set(project["optional-dependencies"])
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        assert set(re.findall(r"(?:^|`)make (?!sure)([a-z]+)", text, re.MULTILINE)) <= targets
        named = {
            name
            for found in re.findall(r"(?:ridgeline|\.)\[([a-z,]+)\]", text)
            for name in found.split(",")
        }
        assert named <= extras, page
