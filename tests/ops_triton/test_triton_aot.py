"""Every kernel compiles without a GPU for SM80, SM90 and SM100, and takes of it what is expected.

``python -m ridgeline.testing.triton_aot --write tests/ops_triton/expected_resources.json`` writes
the expectations again: look at what changed.
"""

import fcntl
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

EXPECTED = json.loads((Path(__file__).parent / "expected_resources.json").read_text())
SHARED_BYTES = {80: 163 << 10, 90: 227 << 10, 100: 227 << 10}  # that a program may have
MATRIX = {"mma.sync", "wgmma", "tcgen05"}
MULTIPLY = {
    "paged_decode_kernel",
    "tied_decode_kernel",
    "forward_kernel",
    "dkdv_kernel",
    "dq_kernel",
}
LIGHT = {"combine_kernel", "merge_kernel", "delta_kernel", "ends_kernel", "lists_kernel"}
FP8 = {"quantize_kernel"}  # where there are instructions for e4m3
SPILLS = 32  # bytes a thread: what is put aside once, not for every tile


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict]:
    """Compiled by a process without the interpreter, which may find unchanged kernels in Triton's
    own cache."""
    root = tmp_path_factory.getbasetemp()
    folder = (root.parent if "PYTEST_XDIST_WORKER" in os.environ else root) / "triton_aot"
    folder.mkdir(exist_ok=True)
    written = folder / "resources.json"
    with (folder / "lock").open("w") as lock:  # one process of a parallel run compiles
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not written.exists():
            _compile_all(folder, written)
    return json.loads(written.read_text())


def _compile_all(folder: Path, written: Path) -> None:
    source = Path(__file__).parents[2] / "src"
    environment = os.environ | {"PYTHONPATH": str(source)}
    environment["TRITON_INTERPRET"] = "0"
    command = [sys.executable, "-m", "ridgeline.testing.triton_aot", "--write", str(written)]
    subprocess.run(command, env=environment, check=True, capture_output=True, timeout=900)


def test_resources_are_as_expected(found: dict[str, dict]) -> None:
    assert found == EXPECTED


@pytest.mark.parametrize("arch", SHARED_BYTES, ids=lambda arch: f"sm_{arch}")
def test_every_kernel_is_compiled(arch: int, found: dict[str, dict]) -> None:
    names = {name.split("/")[1] for name in found if name.endswith(f"sm_{arch}")}
    assert names == MULTIPLY | LIGHT | (FP8 if arch >= 90 else set())


def test_resources_fit_the_device(found: dict[str, dict]) -> None:
    for name, kernel in found.items():
        arch = int(name.rpartition("sm_")[2])
        assert kernel["shared"] <= SHARED_BYTES[arch], name
        assert kernel["registers"] <= 255, name
        assert kernel["stack"] <= SPILLS, name


def test_products_are_of_the_matrix_units(found: dict[str, dict]) -> None:
    for name, kernel in found.items():
        multiplies = name.split("/")[1] in MULTIPLY
        assert bool(MATRIX & kernel["instructions"].keys()) is multiplies, name
    for name in ("gla-2-of-128/tied_decode", "mha-16-d128-causal/forward"):
        assert "wgmma" in found[f"{name}_kernel/sm_90"]["instructions"]
    for kernel in ("forward", "dkdv", "dq"):
        assert "tcgen05" in found[f"mha-16-d128-causal/{kernel}_kernel/sm_100"]["instructions"]


def test_loads_run_ahead(found: dict[str, dict]) -> None:
    """Neither a test of a tile nor a list of tiles keeps the next one from being loaded."""
    for name, kernel in found.items():
        call, function, _ = name.split("/")
        # One stage, where two would not fit the registers.
        single = "d256" in call and function != "forward_kernel"
        ahead = function in MULTIPLY and not single
        assert ("cp.async" in kernel["instructions"]) is ahead, name


def test_prefetch_is_compiled_in_where_asked(found: dict[str, dict]) -> None:
    for name, kernel in found.items():
        asked = name.startswith(("gqa-32-8-d128/paged", "mla-16/tied"))
        assert ("prefetch" in kernel["instructions"]) is asked, name
