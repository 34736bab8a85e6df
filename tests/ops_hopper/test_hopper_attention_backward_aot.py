"""The backward kernels compile without a GPU for SM90, to Hopper's instructions, within limits."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from ridgeline.testing.gluon_aot import Resources

# Bytes of stack of a thread, where there are any. `gluon_aot hopper_attention_backward_launches:
# launches` reports those that the test does not compile.
STACK = {"128-causal": 56, "128-dq": 0}


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Resources]:
    """Compiled anew by a process without Triton's interpreter."""
    folder, here = tmp_path_factory.mktemp("backward"), Path(__file__).parent
    written = folder / "resources.json"
    paths = os.pathsep.join([str(here.parents[1] / "src"), str(here)])
    environment = os.environ | {"TRITON_CACHE_DIR": str(folder), "PYTHONPATH": paths}
    environment["TRITON_INTERPRET"] = "0"
    command = [sys.executable, "-m", "ridgeline.testing.gluon_aot"]
    command += ["hopper_attention_backward_launches:tested", "--write", str(written)]
    subprocess.run(command, env=environment, check=True, capture_output=True, timeout=600)
    return {name: Resources(**kernel) for name, kernel in json.loads(written.read_text()).items()}


@pytest.mark.parametrize("name", STACK)
def test_what_the_kernel_takes(found: dict[str, Resources], name: str) -> None:
    kernel = found[name]
    assert kernel.shared <= 227 << 10
    assert kernel.stack <= STACK[name]
    assert kernel.warps == 12
    assert kernel.registers <= 168  # with which three warpgroups start
    assert kernel.count("USETMAXREG") >= 4
    assert kernel.count("UTMALDG") > 0
    assert (kernel.count("UTMAREDG") > 0) is (name != "128-dq")
    # Each of two loops has every product: masked tiles, and those that are seen whole.
    assert kernel.count("HGMMA") == {"128-causal": 64, "128-dq": 40}[name]
