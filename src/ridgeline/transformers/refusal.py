"""Saying no: conditions on tensors that hold, or the call ends with a sentence."""

import torch
from torch import Tensor


def require(holds: Tensor, message: str) -> None:
    """Raise ``ValueError`` unless ``holds``, a bool of one element, is true.

    Inside ``torch.compile`` its value is not at hand: there the graph asserts it when it runs, and
    fails with ``RuntimeError``.
    """
    if torch.compiler.is_compiling():
        torch._assert_async(holds, message)
    elif not holds:
        raise ValueError(message)
