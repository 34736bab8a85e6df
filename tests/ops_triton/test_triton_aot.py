"""Every kernel compiles without a GPU for SM80, SM90 and SM100, and takes of it what is expected.

``python -m ridgeline.testing.triton_aot --write tests/ops_triton/expected_resources.json`` writes
the expectations again: look at what changed.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

EXPECTED = Path(__file__).parent / "expected_resources.json"
SHARED_BYTES = {80: 163 << 10, 90: 227 << 10, 100: 227 << 10}  # that a program may have
MATRIX = {"mma.sync", "wgmma", "tcgen05"}


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict]:
    """Compiled anew by a process without the interpreter."""
    folder = tmp_path_factory.mktemp("aot")
    written = folder / "resources.json"
    source = Path(__file__).parents[2] / "src"
    environment = os.environ | {"TRITON_CACHE_DIR": str(folder), "PYTHONPATH": str(source)}
    environment["TRITON_INTERPRET"] = "0"
    command = [sys.executable, "-m", "ridgeline.testing.triton_aot", "--write", str(written)]
    subprocess.run(command, env=environment, check=True, capture_output=True, timeout=600)
    return json.loads(written.read_text())


def test_resources_are_as_expected(found: dict[str, dict]) -> None:
    assert found == json.loads(EXPECTED.read_text())


def test_resources_fit_the_device(found: dict[str, dict]) -> None:
    for name, kernel in found.items():
        arch = int(name.rpartition("sm_")[2])
        assert kernel["shared"] <= SHARED_BYTES[arch], name
        assert kernel["registers"] <= 255, name
        assert kernel["stack"] <= 1024, name


def test_decode_multiplies_on_the_matrix_units(found: dict[str, dict]) -> None:
    decode = {name: k["instructions"] for name, k in found.items() if "_decode_kernel" in name}
    assert len(decode) >= 11
    for name, instructions in decode.items():
        assert MATRIX & instructions.keys(), name
        assert "cp.async" in instructions, name
    assert "wgmma" in decode["mla-128/tied_decode_kernel/sm_90"]
    assert "tcgen05" in decode["mla-128/tied_decode_kernel/sm_100"]


def test_prefetch_is_compiled_in_where_asked(found: dict[str, dict]) -> None:
    for name, kernel in found.items():
        asked = name.startswith(("gqa-32-8-d128/paged", "mla-16/tied"))
        assert ("prefetch" in kernel["instructions"]) is asked, name
