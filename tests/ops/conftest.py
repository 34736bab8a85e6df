"""Parameters that the tests of the operations share."""

import os
from pathlib import Path

import pytest
from core_mutation import build_base

from ridgeline.testing.run import attention_implementations, cpu_implementations, implementations


@pytest.fixture(scope="session")
def core_base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What builds of the core share: one directory for all processes of a parallel run."""
    root = tmp_path_factory.getbasetemp()
    directory = (root.parent if "PYTEST_XDIST_WORKER" in os.environ else root) / "core"
    directory.mkdir(exist_ok=True)
    build_base(directory)
    return directory


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "impl" in metafunc.fixturenames:
        metafunc.parametrize("impl", implementations())
    if "attention_impl" in metafunc.fixturenames:
        metafunc.parametrize("attention_impl", attention_implementations())
    if "attention_name" in metafunc.fixturenames:  # what the public function takes
        names = dict.fromkeys(impl.partition("-")[0] for impl in attention_implementations())
        metafunc.parametrize("attention_name", list(names))
    if "cpu_impl" in metafunc.fixturenames:
        metafunc.parametrize("cpu_impl", cpu_implementations())
