"""``import ridgeline`` is light: beyond torch, nothing is imported but the package itself."""

import subprocess
import sys
from pathlib import Path

SRC = Path(__file__).parent.parent / "src"


def python(code: str) -> str:
    command = [sys.executable, "-c", f"import sys; sys.path.insert(0, {str(SRC)!r})\n{code}"]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


def test_nothing_is_imported_beyond_torch_and_itself() -> None:
    """Operations load when they are first named."""
    code = """
import torch
before = set(sys.modules)
import ridgeline
print(*sorted(set(sys.modules) - before))
ridgeline.paged_decode, ridgeline.tied_decode, ridgeline.merge, ridgeline.attention
print(*{name.partition(".")[0] for name in set(sys.modules) - before})
"""
    assert python(code).splitlines() == ["ridgeline", "ridgeline"]


def test_every_public_name_loads() -> None:
    assert python("import ridgeline\nfor n in ridgeline.__all__: getattr(ridgeline, n)") == ""
