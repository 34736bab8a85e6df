"""Every synchronising line is needed: without it, or with a weaker one, some seed fails.

For both operations, both sides of wgmma that rows may be on, and every way to read the cache.
"""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hopper_cases import run

from ridgeline.ops.common.triton import INTERPRETED
from ridgeline.testing import assert_matches, paged_case, tied_case
from ridgeline.testing.generate import FP8

pytestmark = pytest.mark.skipif(not INTERPRETED, reason="mutations are for the interpreter")

# One program computes all: two whole tiles, of which each of two consumers has one; a cut one
# that leaves a consumer without; an item that ends with a cut one; and one more reuse of queries.
PLAIN = {
    "dtype": torch.bfloat16,
    "lengths": [128, 20, 150, 64],
    "dim": 64,
    "kv_heads": 1,
    "group": 8,
    "query_len": 1,
    "strides": False,
    "num_splits": 0,
    "magnitude": 1.0,
}
OPERATIONS = {
    "tied": (tied_case, {"nope_dim": 64, "rope_dim": 16}),
    "paged": (paged_case, {"value_dim": 64, "window": None, "softcap": 0.0}),
}
LAYOUTS = {"transposed": {"block_m": 8}, "rows-on-m": {"block_m": 64, "consumers": 1}}
LOADS = {
    "tma": {"page_size": 64},
    "cp.async": {"page_size": 7},
    "registers": {"page_size": 64, "cache_dtype": FP8, "scale_kind": 1},
}
# An only consumer waits for an item's first tile, too, before it reads queries or releases them,
# and the producer hands it over after them. One of two may have no tile of an item to wait for.
NOT_NEEDED = {"transposed": set(), "rows-on-m": {("Queries.wait_full", "deleted")}}


def checked(operation: str, layout: str, load: str) -> Callable[[int], None]:
    make, widths = OPERATIONS[operation]
    case: Any = make(0, **PLAIN | widths | LOADS[load])

    def check(seed: int) -> None:
        assert_matches(case, *run(case, seed, stages=2, q_stages=1, **LAYOUTS[layout]))

    return check


# Any two of an operation, a side of wgmma and a way to read meet in one of them.
MEETINGS = [
    ("tied", "transposed", "tma"),
    ("paged", "rows-on-m", "tma"),
    ("tied", "rows-on-m", "cp.async"),
    ("paged", "transposed", "cp.async"),
    ("tied", "transposed", "registers"),
    ("paged", "rows-on-m", "registers"),
]


@pytest.mark.parametrize(("operation", "layout", "load"), MEETINGS)
def test_no_synchronising_line_is_idle(
    operation: str, layout: str, load: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from ridgeline.testing.gluon.mutations import found_by, outcome

    monkeypatch.setattr("ridgeline.ops.common.device.INTERPRETED_PROCESSORS", 1)
    check = checked(operation, layout, load)
    found = found_by(check)
    assert len(found) >= 25
    check(1)
    alive = {
        (mutation.function.__code__.co_qualname, mutation.change)
        for mutation in found
        if outcome(check, mutation).caught is None
    }
    assert alive == NOT_NEEDED[layout]
