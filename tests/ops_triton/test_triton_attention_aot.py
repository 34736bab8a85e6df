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


def compiled(arch: int, folder: Path) -> dict[str, dict]:
    """The resources of every kernel, nothing from a cache."""
    path = folder / "resources.json"
    source = str(Path(ridgeline.__file__).parent.parent)
    environment = os.environ | {"PYTHONPATH": source, "TRITON_CACHE_DIR": str(folder)}
    environment["TRITON_INTERPRET"] = "0"
    module = "ridgeline.testing.triton_aot_attention"
    command = [sys.executable, "-m", module, "--arch", str(arch), "--write", str(path)]
    subprocess.run(command, env=environment, check=True)
    return json.loads(path.read_text())


@pytest.mark.parametrize("arch", MATRIX, ids=lambda arch: f"sm_{arch}")
def test_what_the_kernels_take(arch: int, tmp_path: Path) -> None:
    """No more than is known; tensor cores for all products; loads that run ahead.

    Neither a test of a tile nor a list of tiles may keep the next one from being loaded.
    """
    found = compiled(arch, tmp_path)
    assert found.keys() == {key for key in EXPECTED if key.endswith(f"sm_{arch}")}
    for key, now in found.items():
        known = EXPECTED[key]
        for name in ("registers", "stack", "shared", "warps"):
            assert now[name] <= known[name], f"{key}: {name}"
        assert now["instructions"].keys() == known["instructions"].keys(), key
        multiplies = any(name in key for name in ("forward_kernel", "dkdv_kernel", "dq_kernel"))
        assert (MATRIX[arch] in now["instructions"]) is multiplies, key
        assert ("cp.async" in now["instructions"]) is multiplies, key
