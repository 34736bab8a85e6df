"""The kernel compiles without a GPU for SM90, to Hopper's instructions, within its limits."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from ridgeline.testing.gluon_aot import Resources

# One of each way to read the cache and each side of wgmma that rows may be on; all the others by
# ``python -m ridgeline.testing.gluon_aot hopper_launches:launches``.
PRODUCTS = {
    "mla-16": {"64x16x16"},
    "mla-128": {"64x32x16", "64x256x16"},
    "mla-16-fp8-blocks": {"64x16x16"},
    "gla-2-of-32-page-1": {"64x16x16"},
    "gqa-32-8": {"64x8x16"},
}
THROUGH_REGISTERS = {"mla-16-fp8-blocks"}
# Bytes of stack of a thread, where there are any: registers of reductions between warps that some
# threads do not read, and with two heads what the producer's addresses begin with.
STACK = {"gla-2-of-32-page-1": 32, "mla-16-fp8-blocks": 8}


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Resources]:
    """Compiled anew by a process without Triton's interpreter."""
    folder, here = tmp_path_factory.mktemp("hopper"), Path(__file__).parent
    written = folder / "resources.json"
    paths = os.pathsep.join([str(here.parents[1] / "src"), str(here)])
    environment = os.environ | {"TRITON_CACHE_DIR": str(folder), "PYTHONPATH": paths}
    environment["TRITON_INTERPRET"] = "0"
    command = [sys.executable, "-m", "ridgeline.testing.gluon_aot", "hopper_launches:tested"]
    command += ["--write", str(written)]
    subprocess.run(command, env=environment, check=True, capture_output=True, timeout=600)
    return {name: Resources(**kernel) for name, kernel in json.loads(written.read_text()).items()}


@pytest.mark.parametrize("name", PRODUCTS)
def test_what_the_kernel_takes(found: dict[str, Resources], name: str) -> None:
    kernel = found[name]
    assert kernel.shared <= 227 << 10
    assert kernel.stack <= STACK.get(name, 0)
    assert kernel.warps == 12
    # Warpgroups start with what 65,536 registers allow each thread, and then share them out.
    assert kernel.registers * kernel.warps * 32 <= 65536
    assert kernel.count("USETMAXREG") >= 4


@pytest.mark.parametrize("name", PRODUCTS)
def test_its_instructions(found: dict[str, Resources], name: str) -> None:
    kernel = found[name]
    shapes = PRODUCTS[name]
    assert kernel.count("HGMMA") == sum(kernel.count(f"HGMMA.{shape}") for shape in shapes) > 0
    assert all(kernel.count(f"HGMMA.{shape}") for shape in shapes)
    assert (kernel.count("UTMALDG") == 0) is (name in THROUGH_REGISTERS | {"gla-2-of-32-page-1"})
    assert (kernel.count("LDGSTS.E.BYPASS.128") == 0) is (name in THROUGH_REGISTERS)
    assert kernel.count("UBLKPF") == (name == "mla-16")
