"""``import ridgeline`` is light: little time beyond torch, and no optional package."""

import subprocess
import sys
from pathlib import Path

SRC = Path(__file__).parent.parent / "src"
HEAVY = ("triton", "transformers", "vllm", "matplotlib", "rich", "typer", "tokenizers")


def python(code: str) -> str:
    command = [sys.executable, "-c", f"import sys; sys.path.insert(0, {str(SRC)!r})\n{code}"]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


def test_no_optional_package_is_imported() -> None:
    """Beyond what torch itself imports."""
    code = f"""
import torch
before = set(sys.modules)
import ridgeline
ridgeline.paged_decode, ridgeline.tied_decode, ridgeline.merge
print(sorted(name for name in {HEAVY} if name in sys.modules and name not in before))
"""
    assert python(code) == "[]"


def test_import_costs_little_beyond_torch() -> None:
    code = """
import time, torch
start = time.perf_counter()
import ridgeline
print(time.perf_counter() - start)
"""
    assert min(float(python(code)) for _ in range(3)) < 0.3


def test_operations_load_in_little_time() -> None:
    code = """
import time, torch
start = time.perf_counter()
import ridgeline
ridgeline.paged_decode, ridgeline.tied_decode, ridgeline.merge
print(time.perf_counter() - start)
"""
    assert min(float(python(code)) for _ in range(3)) < 0.3


def test_every_public_name_loads() -> None:
    assert python("import ridgeline\nfor n in ridgeline.__all__: getattr(ridgeline, n)") == ""
