"""The kernels of ``attention`` compile for every architecture and take what they are known to take.

After a change that is meant: ``python -m ridgeline.testing.triton_aot_attention --write
tests/ops_triton/attention_resources.json``.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import ridgeline

EXPECTED = json.loads((Path(__file__).parent / "attention_resources.json").read_text())
MATRIX = {80: "mma.sync", 90: "wgmma", 100: "tcgen05"}


@pytest.fixture(scope="module", params=MATRIX, ids=lambda arch: f"sm_{arch}")
def found(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory):
    """The architecture, and the resources of every kernel compiled for it, nothing from a cache."""
    folder = tmp_path_factory.mktemp("aot")
    path = folder / "resources.json"
    source = str(Path(ridgeline.__file__).parent.parent)
    environment = os.environ | {"PYTHONPATH": source, "TRITON_CACHE_DIR": str(folder)}
    environment["TRITON_INTERPRET"] = "0"
    module = "ridgeline.testing.triton_aot_attention"
    command = [sys.executable, "-m", module, "--arch", str(request.param), "--write", str(path)]
    subprocess.run(command, env=environment, check=True)
    return request.param, json.loads(path.read_text())


def test_no_kernel_takes_more_than_is_known(found) -> None:
    arch, resources = found
    assert resources.keys() == {key for key in EXPECTED if key.endswith(f"sm_{arch}")}
    for key, now in resources.items():
        known = EXPECTED[key]
        for name in ("registers", "stack", "shared", "warps"):
            assert now[name] <= known[name], f"{key}: {name}"
        assert now["instructions"].keys() == known["instructions"].keys(), key


def test_products_run_on_tensor_cores(found) -> None:
    """All but those of float32, which are exact."""
    arch, resources = found
    for key, now in resources.items():
        multiplies = any(name in key for name in ("forward_kernel", "dkdv_kernel", "dq_kernel"))
        assert (MATRIX[arch] in now["instructions"]) is (multiplies and "fp32" not in key), key


def test_loads_run_ahead(found) -> None:
    """Loops are pipelined: a test of a tile, or a list of tiles, does not keep them from it."""
    _, resources = found
    for key, now in resources.items():
        if "d128" in key.split("/")[0] or "tree" in key:
            multiplies = any(name in key for name in ("forward_kernel", "dkdv_kernel", "dq_kernel"))
            assert ("cp.async" in now["instructions"]) is multiplies, key
