"""The forward kernel compiles without a GPU for SM90: instructions, their order, and limits."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from ridgeline.testing.gluon_aot import Resources

# Representative launches: products, most bytes of stack (what every item starts and ends with; no
# loop over keys reads it), exponentials of a thread for a tile of keys, copies: for each 128 bytes
# of two consumers' queries, of keys and values in two places each, by parts of pages. Others:
# ``python -m ridgeline.testing.gluon_aot hopper_attention_launches:launches``.
EXPECTED = {
    "forward-128-causal": ({"HGMMA.64x128x16"}, 16, 64 * 128 // 128, 2 * 6),
    "forward-256-causal": ({"HGMMA.64x64x16", "HGMMA.64x256x16"}, 64, 64 * 64 // 128, 4 * 6),
    "fp8-128-causal": ({"QGMMA.64x128x32", "QGMMA.64x64x32"}, 48, 64 * 128 // 128, 6),
    "paged-128-page-16": ({"HGMMA.64x128x16"}, 16, 64 * 128 // 128, 2 * (2 + 4 * 8)),
}


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict]:
    """Compiled anew by a process without Triton's interpreter."""
    folder, here = tmp_path_factory.mktemp("hopper"), Path(__file__).parent
    environment = os.environ | {"TRITON_CACHE_DIR": str(folder), "TRITON_INTERPRET": "0"}
    environment["PYTHONPATH"] = os.pathsep.join([str(here.parents[1] / "src"), str(here)])
    command = [sys.executable, here / "hopper_attention_launches.py", *EXPECTED, "careful-256"]
    run = subprocess.run(command, env=environment, check=True, capture_output=True, timeout=600)
    return json.loads(run.stdout)


@pytest.mark.parametrize("name", EXPECTED)
def test_the_forward_kernel_as_compiled(found: dict[str, dict], name: str) -> None:
    products, stack, exponentials, copies = EXPECTED[name]
    under_products = found[name].pop("under_products")
    kernel = Resources(**found[name])
    assert kernel.shared <= 227 << 10
    assert kernel.stack <= stack
    # Three warpgroups start with what 65,536 registers allow each thread, and then share them out.
    assert (kernel.warps, kernel.registers) == (12, 168)
    assert kernel.count("USETMAXREG") >= 4
    assert kernel.count("UTMALDG") == copies
    counts = [kernel.count(product) for product in products]
    assert min(counts) > 0
    assert kernel.count("HGMMA") + kernel.count("QGMMA") == sum(counts)
    # Both loops of both consumers: the softmax runs while values are multiplied.
    assert len(under_products) == 4
    assert min(under_products) >= exponentials


def test_the_careful_kernel_as_compiled(found: dict[str, dict]) -> None:
    assert found["careful-256"]["stack"] == 0
    assert found["careful-256"]["registers"] <= 255
