"""The Triton implementations: on the GPU, or by Triton's interpreter where there is none.

``tests/conftest.py`` chooses the interpreter before anything imports Triton.
"""

import pytest
import torch

from ridgeline.ops.common.triton import INTERPRETED
from ridgeline.testing.run import triton_implementations

if INTERPRETED:
    from ridgeline.testing.triton_interpreter import prepare

    prepare()


@pytest.fixture(autouse=True)
def _one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "triton_impl" in metafunc.fixturenames:
        metafunc.parametrize("triton_impl", triton_implementations())
