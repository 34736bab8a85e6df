"""For all tests: one thread, and Triton's interpreter where no GPU runs its kernels."""

import os
from collections.abc import Iterator

import pytest
import torch

if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"  # before any test imports Triton
torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """Every test, and what several share, starts from one thread and may choose another number."""
    yield
    torch.set_num_threads(1)
