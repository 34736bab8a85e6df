"""The Hopper kernels: on the GPU where there is one, else by the Gluon interpreter.

``tests/conftest.py`` has Triton's own interpreter run the merge, which is a kernel of Triton's.
"""

import pytest
import torch

from ridgeline.ops.common.triton import INTERPRETED

if INTERPRETED:
    from ridgeline.testing.triton_interpreter import prepare

    prepare()


if not INTERPRETED and torch.cuda.get_device_capability() != (9, 0):
    collect_ignore_glob = ["test_hopper_fuzz.py", "test_hopper_gpu.py"]


@pytest.fixture(autouse=True)
def _one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
