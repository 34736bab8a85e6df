"""The Triton implementations: on the GPU, or by Triton's interpreter where there is none.

``tests/conftest.py`` chooses the interpreter before anything imports Triton.
"""

import pytest

from ridgeline.ops.common.triton import INTERPRETED
from ridgeline.testing.run import triton_implementations

if INTERPRETED:
    from ridgeline.testing.triton_interpreter import prepare

    prepare()


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "triton_impl" in metafunc.fixturenames:
        metafunc.parametrize("triton_impl", triton_implementations())
