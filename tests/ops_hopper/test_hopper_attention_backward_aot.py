"""The backward kernels compile without a GPU for SM90: instructions, their order, and limits."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from ridgeline.testing.gluon_aot import Resources

# Bytes of stack of a thread, which no loop over tiles touches. Others on demand:
# `python -m ridgeline.testing.gluon_aot hopper_attention_backward_launches:launches`.
STACK = {"128-causal": 24, "128-dq": 0}
PRODUCTS = {"128-causal": 8 + 8 + 4 + 8 + 4, "128-dq": 8 + 8 + 4}  # of a tile


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict]:
    """Compiled anew by a process without Triton's interpreter."""
    folder, here = tmp_path_factory.mktemp("backward"), Path(__file__).parent
    environment = os.environ | {"TRITON_CACHE_DIR": str(folder), "TRITON_INTERPRET": "0"}
    environment["PYTHONPATH"] = os.pathsep.join([str(here.parents[1] / "src"), str(here)])
    command = [sys.executable, here / "hopper_attention_backward_launches.py", *STACK]
    run = subprocess.run(command, env=environment, check=True, capture_output=True, timeout=600)
    return json.loads(run.stdout)


def count(instructions: dict[str, int], opcode: str) -> int:
    return sum(n for name, n in instructions.items() if name.split(".")[0] == opcode)


@pytest.mark.parametrize("name", STACK)
def test_what_the_kernel_takes(found: dict[str, dict], name: str) -> None:
    kernel = Resources(**found[name]["resources"])
    assert kernel.shared <= 227 << 10
    assert kernel.stack <= STACK[name]
    assert kernel.warps == 12
    assert kernel.registers <= 168  # with which three warpgroups start
    assert kernel.count("USETMAXREG") >= 4
    assert kernel.count("UTMALDG") > 0
    assert (kernel.count("UTMAREDG") > 0) is (name != "128-dq")


@pytest.mark.parametrize("name", STACK)
def test_its_loops_have_every_product_and_no_spill(found: dict[str, dict], name: str) -> None:
    """Masked tiles, and those that are seen whole."""
    assert len(found[name]["loops"]) == 2
    for instructions, _ in found[name]["loops"]:
        assert count(instructions, "HGMMA") == PRODUCTS[name]
        assert count(instructions, "STL") == count(instructions, "LDL") == 0


def test_dk_and_dv_compute_under_products(found: dict[str, dict]) -> None:
    """Exponentials under dP, dS under the product of dV, the copy of dQ under that of dK."""
    for _, waits in found["128-causal"]["loops"]:
        assert [left for left, _ in waits] == [1, 1, 1, 0]
        (_, under_dp), (_, under_dv), (_, under_dk), _ = waits
        assert under_dp["MUFU.EX2"] == 64 * 128 // 256
        assert under_dv["STSM.16.M88.4"] == 4
        assert under_dk["STS.64"] == 64 * 128 // 256 // 2
        assert under_dk["UTMAREDG.2D.ADD"] == 1


def test_dq_computes_under_products(found: dict[str, dict]) -> None:
    """Exponentials under dP, dS under the product of the tile before; of masked tiles all there."""
    masked, whole = (waits for _, waits in found["128-dq"]["loops"])
    for waits in (masked, whole):
        assert [left for left, _ in waits] == [2, 1, 0]
        under = [instructions.get("MUFU.EX2", 0) for _, instructions in waits]
        assert under[0] + under[1] == 128 * 64 // 256
    assert whole[0][1]["MUFU.EX2"] >= 24
    assert whole[1][1]["FMUL"] >= 24
