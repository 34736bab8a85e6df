"""A fault of vLLM's CPU linears that gives wrong tokens without a word: refused here."""

from functools import cache

import torch


def check_threads() -> None:
    """Raise unless weights are packed with as many threads as the first ones of this process.

    vLLM 0.32 keeps oneDNN's matmuls for the life of a process, by the size and type of the weight
    alone (``ClassMatmulCacheKey`` in its ``csrc/cpu/dnnl_helper.cpp``). oneDNN chooses the layout
    of a packed weight by the number of threads as well, so a matmul made for one layout would read
    another. n-gram drafts change that number: numba sets OpenMP's when it first runs.

    Raises:
        RuntimeError: the number of threads is another one than at the first call.
    """
    first, now = _threads_at_first(), torch.get_num_threads()
    if now != first:
        raise RuntimeError(
            f"expected {first} threads, as when this process first loaded a model, got {now}: "
            "vLLM's CPU linears would give wrong numbers; start this engine in a process of its own"
        )


@cache
def _threads_at_first() -> int:
    return torch.get_num_threads()
