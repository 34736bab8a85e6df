"""Parameters that the tests of the operations share."""

import pytest
import torch

from ridgeline.testing.run import cpu_implementations, implementations


@pytest.fixture(autouse=True)
def _threads():
    """Every test starts from one thread and may choose another number."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "impl" in metafunc.fixturenames:
        metafunc.parametrize("impl", implementations())
    if "cpu_impl" in metafunc.fixturenames:
        metafunc.parametrize("cpu_impl", cpu_implementations())
