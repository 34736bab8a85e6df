"""Garbage where an implementation must not look: the result must not change by one bit."""

from dataclasses import replace

import torch

from ridgeline.testing.cases import DecodeCase, read_by
from ridgeline.testing.layouts import clone

VALUES = (float("nan"), float("inf"), 1e30)
ENTRIES = (2147480000, -7)


def poisoned(case: DecodeCase, value: float, entry: int) -> DecodeCase:
    """The case with every cached token that no query sees set to ``value`` (pages in no table, the
    tails of last pages, tokens behind the window) and every table entry that is not needed set to
    ``entry``. Strides stay as they are.
    """
    caches = {name: clone(getattr(case, name)) for name in case.caches}
    num_pages, page_size = next(iter(caches.values())).shape[:2]
    used = torch.zeros(num_pages, page_size, dtype=torch.bool)
    table = torch.full_like(case.block_table, entry)
    for b in range(table.shape[0]):
        for t in read_by(case, b):
            page = case.block_table[b, t // page_size]
            used[page, t % page_size] = True
            table[b, t // page_size] = page
    for cache in caches.values():
        garbage = torch.tensor(value).to(cache.dtype)
        if cache.element_size() == 1:  # float8 tensors cannot be masked
            cache, garbage = cache.view(torch.uint8), garbage.view(torch.uint8)
        cache[~used] = garbage
    return replace(case, block_table=table, **caches)
