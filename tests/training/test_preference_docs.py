"""The examples that are shown run."""

import doctest
import re
from pathlib import Path

from ridgeline.training.preference import trees

DOCS = Path(__file__).parents[2] / "docs" / "prefix_sharing.md"


def test_docstrings():
    found = doctest.testmod(trees)
    assert found.attempted > 3
    assert found.failed == 0


def test_the_page(capsys):
    blocks = re.findall(r"```python\n(.*?)```", DOCS.read_text(), re.DOTALL)
    names: dict[str, object] = {}
    for block in blocks:
        exec(block, names)
    first, lengths = capsys.readouterr().out.splitlines()
    assert lengths == "10 9"
    assert 0 < float(first.split()[0]) < 1
    assert names["part"].isfinite()
