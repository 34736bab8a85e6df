"""The Hopper kernels: on the GPU where there is one, else by the Gluon interpreter.

``tests/conftest.py`` has Triton's own interpreter run the merge, which is a kernel of Triton's.
"""

import torch

from ridgeline.ops.common.triton import INTERPRETED

if INTERPRETED:
    from ridgeline.testing.triton_interpreter import prepare

    prepare()


if not INTERPRETED and torch.cuda.get_device_capability() != (9, 0):
    collect_ignore_glob = [
        "test_hopper_fuzz.py",
        "test_hopper_gpu.py",
        "test_hopper_attention_*.py",
        "test_hopper_paged*.py",
    ]
