"""The kernels that the interpreter runs compile for SM90 as they are, to the right instructions."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from ridgeline.testing.gluon_aot import Resources, instructions, loops

ETAP = {"etap-16-64": "64x16x16", "etap-8-256": "64x8x16"}


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Resources]:
    """Compiled anew by a process without Triton's interpreter."""
    folder, here = tmp_path_factory.mktemp("gluon"), Path(__file__).parent
    written = folder / "resources.json"
    paths = os.pathsep.join([str(here.parents[1] / "src"), str(here)])
    environment = os.environ | {"TRITON_CACHE_DIR": str(folder), "PYTHONPATH": paths}
    environment["TRITON_INTERPRET"] = "0"
    command = [sys.executable, "-m", "ridgeline.testing.gluon_aot", "gluon_launches:launches"]
    command += ["--write", str(written)]
    subprocess.run(command, env=environment, check=True, capture_output=True, timeout=600)
    return {name: Resources(**kernel) for name, kernel in json.loads(written.read_text()).items()}


def test_every_kernel_fits_without_spills(found: dict[str, Resources]) -> None:
    for name, kernel in found.items():
        assert (kernel.stack, kernel.spills) == (0, 0), name
        assert kernel.shared <= 227 << 10, name
        assert kernel.registers <= 255, name


@pytest.mark.parametrize("name", ETAP)
def test_the_transposed_kernel_has_the_instructions_of_hopper(
    found: dict[str, Resources], name: str
) -> None:
    kernel = found[name]
    assert kernel.count(f"HGMMA.{ETAP[name]}") == kernel.count("HGMMA") > 0
    assert kernel.count("UTMALDG.2D") >= 2
    assert kernel.count("UTMASTG.2D") >= 1
    assert kernel.count("USETMAXREG") >= 3
    assert kernel.count("SYNCS") > 0
    assert kernel.warps == 12


@pytest.mark.parametrize(
    ("name", "opcode"),
    [
        ("ring", "UTMALDG"),
        ("store", "UTMASTG"),
        ("reduce", "UTMAREDG"),
        ("wgmma", "HGMMA"),
        ("wgmma-fp8", "QGMMA"),
        ("register-operand", "HGMMA"),
        ("cp.async-groups", "LDGSTS"),
        ("last-block", "ATOMG"),
    ],
)
def test_a_micro_kernel_has_its_instruction(
    found: dict[str, Resources], name: str, opcode: str
) -> None:
    assert found[name].count(opcode) > 0


SASS = """
        /*0000*/                   MOV R1, c[0x0][0x28] ;                   /* 0x00000a00ff017624 */
        /*0010*/                   HGMMA.64x64x16.F32.BF16 R24, gdesc[UR4], R24 ;  /* 0x08e0 */
        /*0020*/              @!P1 BRA 0x60 ;                               /* 0x0000000000000947 */
        /*0030*/               @P0 BRA 0x10 ;                               /* 0xfffffff000000947 */
        /*0040*/               @P2 BRA 0x0 ;                                /* 0xfffffff000000947 */
        /*0050*/                   EXIT ;                                   /* 0x000000000000794d */
        /*0060*/                   BRA 0x20 ;                               /* 0xfffffff000007947 */
"""


def test_a_loop_is_innermost_and_no_jump_from_behind_it() -> None:
    (loop,) = loops(SASS, "HGMMA")
    assert instructions(loop) == {"BRA": 2, "HGMMA.64x64x16.F32.BF16": 1}
    assert loops(SASS, "EXIT") == []
